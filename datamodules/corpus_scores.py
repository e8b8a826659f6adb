"""CorpusScores: what a fusion of BM25 and the base encoder says of every passage of a corpus."""

import numpy as np
import pyarrow as pa

from datamodules.corpus import Corpus
from datamodules.hits import Bm25Index
from datamodules.specs import CorpusScoring

_BLOCK_NUMBERS = 2**24  # of a matrix of queries and the whole corpus


class CorpusScores:
    """Scores all N passages of a corpus for Q queries, in [0, 1].

    Each of the two retrievers is min-max scaled over its own best ``depth`` hits of a query, and 0 for what is none of
    them, as :func:`~datamodules.hits.fuse_scores` has it; the result is the weighted mean.

    Args:
        scoring: weights and depth.
        corpus: N passages.
        queries: Q texts.
        query_embeddings: float32 [Q, D] by the base weights; None where the encoder has no weight.
        passage_embeddings: [N, D] likewise.
    """

    def __init__(
        self,
        scoring: CorpusScoring,
        corpus: Corpus,
        queries: pa.Array,
        query_embeddings: np.ndarray | None,
        passage_embeddings: np.ndarray | None,
    ) -> None:
        self.scoring = scoring
        self.size = len(corpus)
        texts = corpus.passages.to_pylist(), queries.to_pylist()
        self._bm25 = Bm25Index(*texts, language=scoring.language) if scoring.bm25 else None
        self._queries, self._passages = query_embeddings, passage_embeddings

    def __call__(self, numbers: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Score passages for some queries, some queries at a time.

        Args:
            numbers: of the queries, [n].
            columns: rows of the corpus, [P].

        Returns:
            float32 [n, P].
        """
        size = max(1, _BLOCK_NUMBERS // self.size)
        blocks = [numbers[start : start + size] for start in range(0, len(numbers), size)]
        return np.concatenate([self._all(block)[:, columns] for block in blocks])

    def _all(self, numbers: np.ndarray) -> np.ndarray:
        """Score the whole corpus for some queries: float32 [n, N]."""
        total = np.zeros((len(numbers), self.size), np.float32)
        if self._bm25 is not None:
            total += self.scoring.bm25 * self._scaled(self._bm25.scores(numbers), found_above=0.0)
        if self._queries is not None and self._passages is not None:
            scores = self._queries[numbers] @ np.asarray(self._passages, np.float32).T
            total += self.scoring.encoder * self._scaled(scores)
        return total / (self.scoring.bm25 + self.scoring.encoder)

    def _scaled(self, scores: np.ndarray, found_above: float = -np.inf) -> np.ndarray:
        """Scale each row by its best ``depth`` scores that are found at all, so that the last of these is at 0."""
        depth = min(self.scoring.depth, scores.shape[1])
        best = -np.partition(-scores, depth - 1, axis=1)[:, :depth]
        hit = best > found_above
        high = best.max(1, keepdims=True, initial=-np.inf, where=hit)
        low = best.min(1, keepdims=True, initial=np.inf, where=hit)
        with np.errstate(invalid="ignore", divide="ignore"):
            scaled = (scores - low) / (high - low)
        return np.where(high > low, scaled.clip(0.0, 1.0), 0.0)
