"""FusedRanker: several rankers' scores, added up."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from callbacks.evaluation.block_search import runs_of
from callbacks.evaluation.metrics import Run, in_trec_order, without_self_hits
from callbacks.evaluation.ranker import Ranker, Ranking
from callbacks.evaluation.sets import OpenedSet
from datamodules.corpus import EvaluationSet
from datamodules.hits import Hits, fuse_scores
from retriever.distributed.ranks import rank


class FusedRanker(Ranker):
    """Ranks by the weighted sum of several rankers' scores, each min-max scaled over its own best hits of a query.

    A passage that is none of a ranker's hits counts 0 there, see :func:`~datamodules.hits.fuse_scores`.

    Args:
        members: name → ranker, and the encoder that it ranks by (None for BM25).
        weights: name → weight.
        depth: hits of each ranker that are fused.
    """

    def __init__(
        self, members: Mapping[str, tuple[Ranker, Any]], weights: Mapping[str, float], depth: int = 100
    ) -> None:
        super().__init__()
        self.members, self.weights, self.depth = dict(members), dict(weights), depth

    def prepare(self, sets: Sequence[OpenedSet], encoder: Any, how: Ranking) -> list[EvaluationSet]:
        """Have each ranker prepare by its own encoder."""
        for ranker, own in self.members.values():
            ranker.prepare(sets, own, how)
        return super().prepare(sets, encoder, how)

    def rank(
        self, sets: Sequence[EvaluationSet], encoder: Any, step: int, how: Ranking
    ) -> Iterator[tuple[EvaluationSet, Iterable[Run]]]:
        """Fuse each set's runs."""
        how = replace(how, looked_at=self.depth)  # of each member, whatever is looked at of the fusion
        for data in sets:
            found = [self._hits(data, *member, how) for member in self.members.values()]
            weights = [self.weights[name] for name in self.members]
            fused = fuse_scores(found, weights, self.depth * len(found)) if rank() == 0 else None
            yield data, [] if fused is None else runs_of(data, fused)

    def _hits(self, data: EvaluationSet, ranker: Ranker, encoder: Any, how: Ranking) -> Hits:
        """A ranker's best hits, [Q, depth], queries in the set's order; nothing on other ranks than the first."""
        scores = np.full((len(data.queries), self.depth), -np.inf, np.float32)
        rows = np.full(scores.shape, -1, np.int64)
        places = {query: place for place, query in enumerate(data.queries)}
        for _, runs in ranker.rank([data], encoder, ranker.first_step, how):
            for run in runs:
                kept = without_self_hits(run, data.qrels) if how.ignore_identical_ids else run
                for query, hits in kept.items():
                    best = in_trec_order(hits, self.depth)
                    scores[places[query], : len(best)] = [score for _, score in best]
                    rows[places[query], : len(best)] = data.corpus.rows([passage for passage, _ in best])
        return Hits(scores, rows)
