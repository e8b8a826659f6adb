"""The leak guard: training queries that give away an evaluation query."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

_WORD = re.compile(r"\w+")
_BLOCK = 10_000


@dataclass(frozen=True)
class Leak:
    """Why a training query gives away an evaluation query.

    Attributes:
        position: the training query's place in the sequence given.
        reason: ``shares a relevant passage with`` or ``is nearly equal to``.
        evaluation_query: the id of (one of) the evaluation queries concerned.
        similarity: token Jaccard similarity, in [0, 1]; 1 for a shared passage.
    """

    position: int
    reason: str
    evaluation_query: str
    similarity: float


def find_leaks(
    queries: Sequence[str],
    positive_ids: Sequence[Collection[str]] | None,
    evaluation_queries: Mapping[str, str],
    evaluation_relevant: Mapping[str, Collection[str]],
    jaccard: float = 0.6,
) -> list[Leak]:
    """Find training queries that share a relevant passage with, or nearly equal, an evaluation query.

    Args:
        queries: N training queries.
        positive_ids: N collections of labelled positives; an empty one skips the shared-passage rule for that query
            (a synthetic query may share its source with an evaluation query); None skips it for all.
        evaluation_queries: id → text.
        evaluation_relevant: id → ids of relevant passages.
        jaccard: similarity of the sets of lower-cased words from which two queries count as nearly equal; above 1
            switches that rule off.

    Returns:
        At most one leak per training query, a shared passage before near-equal wording, by position.
    """
    leaks: dict[int, Leak] = {}
    owner = {p: q for q, passages in evaluation_relevant.items() for p in passages}
    for position, ids in enumerate(positive_ids or ()):
        shared = sorted(p for p in ids if p in owner)
        if shared:
            leaks[position] = Leak(position, "shares a relevant passage with", owner[shared[0]], 1.0)
    names = list(evaluation_queries)
    for position, nearest, similarity in _nearest(queries, [evaluation_queries[n] for n in names]):
        if similarity >= jaccard and position not in leaks:
            leaks[position] = Leak(position, "is nearly equal to", names[nearest], similarity)
    return [leaks[position] for position in sorted(leaks)]


def count_reasons(leaks: Sequence[Leak]) -> dict[str, int]:
    """Reason → number of leaks."""
    return dict(Counter(leak.reason for leak in leaks))


def _nearest(queries: Sequence[str], others: Sequence[str]):
    """Position, nearest of the others, token Jaccard similarity; for queries that share a word with one."""
    other_words = [set(_WORD.findall(text.lower())) for text in others]
    vocabulary = {w: i for i, w in enumerate(sorted(set().union(*other_words)))} if other_words else {}
    right = _incidence(other_words, vocabulary).T.tocsc()
    right_sizes = np.array([len(w) for w in other_words])
    for start in range(0, len(queries), _BLOCK):
        words = [set(_WORD.findall(text.lower())) for text in queries[start : start + _BLOCK]]
        shared = (_incidence(words, vocabulary) @ right).tocoo()
        sizes = np.array([len(w) for w in words])
        similarity = shared.data / (sizes[shared.row] + right_sizes[shared.col] - shared.data)
        order = np.lexsort((shared.col, -similarity, shared.row))
        first = np.concatenate([[True], np.diff(shared.row[order]) > 0]) if len(order) else np.array([], bool)
        for at in order[first]:
            yield start + int(shared.row[at]), int(shared.col[at]), float(similarity[at])


def _incidence(word_sets: Sequence[set[str]], vocabulary: Mapping[str, int]) -> csr_array:
    columns = [[vocabulary[w] for w in words if w in vocabulary] for words in word_sets]
    indptr = np.concatenate([[0], np.cumsum([len(c) for c in columns])]).astype(np.int64)
    indices = np.array([c for row in columns for c in row], dtype=np.int64)
    return csr_array((np.ones(len(indices)), indices, indptr), shape=(len(word_sets), max(1, len(vocabulary))))
