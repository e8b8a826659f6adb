"""CorpusScores: what a fusion of BM25 and the base encoder says of every passage of a corpus."""

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from datamodules.corpus import Corpus
from datamodules.hits import Bm25Index, Hits, fuse_scores
from datamodules.specs import CorpusScoring
from datamodules.storage.columns import ColumnWriter, cached_columns, update_digest
from datamodules.storage.progress import progress_bar
from retriever.search import exact_search

_BLOCK = 4096  # queries that are searched at a time


class CorpusScores:
    """Scores passages of a corpus for Q queries, in [0, 1]; what is no hit of a query has 0.

    Args:
        hits: of the Q queries, see :func:`corpus_scores`.
    """

    def __init__(self, hits: Hits) -> None:
        self._hits = hits

    def __call__(self, numbers: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Score passages for some queries.

        Args:
            numbers: of the queries, [n].
            columns: rows of the corpus, ascending, [P].

        Returns:
            float32 [n, P].
        """
        rows = self._hits.rows[numbers]
        place = np.searchsorted(columns, rows).clip(max=len(columns) - 1)
        query, hit = np.nonzero(columns[place] == rows)
        found = np.zeros((len(numbers), len(columns)), np.float32)
        found[query, place[query, hit]] = self._hits.scores[numbers][query, hit]
        return found

    def best(self, numbers: np.ndarray, k: int) -> np.ndarray:
        """Return the rows of the best ``k`` passages of some queries, each once."""
        rows = self._hits.rows[numbers, :k]
        return np.unique(rows[rows >= 0])


def corpus_scores(
    scoring: CorpusScoring,
    corpus: Corpus,
    queries: Sequence[pa.Array],
    embeddings: tuple[np.ndarray, np.ndarray] | None,
    encoded_by: str,
    cache_dir: str | Path,
) -> list[CorpusScores]:
    """Search a corpus for the queries of several files, once; the hits are kept in the cache, by content.

    Args:
        scoring: weights and depth.
        corpus: N passages.
        queries: texts of each file, Q in all.
        embeddings: float32 [Q, D] of the queries and [N, D] of the passages, by the base weights; None where the
            encoder has no weight.
        encoded_by: what decides the embeddings, prompts and lengths included.
        cache_dir: the cache's folder.

    Returns:
        The teacher of each file.
    """
    texts = pa.chunked_array([file.cast(pa.large_string()) for file in queries])
    key = hashlib.sha256(repr((scoring.bm25, scoring.encoder, scoring.depth, scoring.language, encoded_by)).encode())
    for strings in (texts, corpus.passages):
        update_digest(key, strings)
    weights = np.array([w for w in (scoring.bm25, scoring.encoder) if w])
    width = len(weights) * min(scoring.depth, len(corpus))

    def write_hits(writer: ColumnWriter) -> dict[str, Any]:
        index = None
        if scoring.bm25:
            index = Bm25Index(corpus.passages.to_pylist(), texts.to_pylist(), language=scoring.language)
        with progress_bar(f"teacher's hits, {corpus.name}", len(texts), "queries") as advance:
            for start in range(0, len(texts), _BLOCK):
                part = slice(start, min(start + _BLOCK, len(texts)))
                runs = [index.best(scoring.depth, part)] if index else []
                if embeddings is not None:
                    runs.append(Hits(*exact_search(embeddings[0][part], embeddings[1], scoring.depth)))
                fused = fuse_scores(runs, weights / weights.sum(), width)
                writer.append("rows", fused.rows.reshape(-1))
                writer.append("scores", fused.scores.reshape(-1))
                advance(part.stop - start)
        return {}

    columns, _ = cached_columns(Path(cache_dir) / "corpus_scores" / key.hexdigest()[:32], write_hits)
    hits = [columns[name].reshape(len(texts), width) for name in ("scores", "rows")]
    ends = np.cumsum([0, *map(len, queries)])
    return [CorpusScores(Hits(*(a[start:end] for a in hits))) for start, end in itertools.pairwise(ends)]
