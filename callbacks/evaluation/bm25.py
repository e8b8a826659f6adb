"""Bm25Ranker: BM25 over whole corpora, without an encoder."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from callbacks.evaluation.block_search import runs_of
from callbacks.evaluation.metrics import Run
from callbacks.evaluation.ranker import Ranker, Ranking
from datamodules.corpus import EvaluationSet
from datamodules.hits import bm25_search
from retriever.distributed.ranks import rank


class Bm25Ranker(Ranker):
    """Ranks by BM25, see :func:`~datamodules.hits.bm25_search`; the first rank alone works.

    Args:
        k1: term frequency saturation.
        b: length normalisation.
        language: of the stemmer and the stop words; None compares words as they are.
    """

    def __init__(self, k1: float = 0.9, b: float = 0.4, language: str | None = "english") -> None:
        super().__init__()
        self.k1, self.b, self.language = k1, b, language

    def rank(
        self, sets: Sequence[EvaluationSet], encoder: Any, step: int, how: Ranking
    ) -> Iterator[tuple[EvaluationSet, Iterable[Run]]]:
        """Search; no encoder is used."""
        for data in sets:
            if rank() != 0:
                yield data, []
                continue
            passages, queries = data.corpus.passages.to_pylist(), list(data.queries.values())
            # one more than asked for: a query's own passage is taken out of its hits
            yield data, runs_of(data, bm25_search(passages, queries, how.hits + 1, self.k1, self.b, self.language))
