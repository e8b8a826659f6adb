"""The leak guard: training queries that give away an evaluation query."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa
from scipy.sparse import csr_array

from datamodules.leakage.same_passages import SAME_ID, Match
from datamodules.storage.columns import string_blocks
from datamodules.text.words import fold, terms

_BLOCK = 2_000


@dataclass(frozen=True)
class Leak:
    """Why a training query gives away an evaluation query.

    Attributes:
        position: the training query's place in the sequence given.
        reason: ``is nearly equal to``, or how a passage is shared (:class:`~datamodules.leakage.same_passages.Match`).
        evaluation_query: the id of (one of) the evaluation queries concerned.
        similarity: Jaccard similarity of the queries' words, in [0, 1]; for a shared passage that of the texts.
    """

    position: int
    reason: str
    evaluation_query: str
    similarity: float


def find_leaks(
    queries: Sequence[str] | pa.Array,
    positive_ids: Sequence[Collection[str]] | None,
    evaluation_queries: Mapping[str, str],
    evaluation_relevant: Mapping[str, Collection[str]],
    jaccard: float = 0.6,
    copies: Mapping[str, Match] | None = None,
) -> list[Leak]:
    """Find training queries that share a relevant passage with, or nearly equal, an evaluation query.

    Args:
        queries: N training queries (a list, or an Arrow string array).
        positive_ids: N collections of labelled positives; an empty one skips the shared-passage rule for that query
            (a synthetic query may share its source with an evaluation query); None skips it for all.
        evaluation_queries: id → text.
        evaluation_relevant: id → ids of relevant passages, those of the same text among them
            (:func:`~datamodules.leakage.same_passages.translated`).
        jaccard: similarity of the sets of words (:func:`~datamodules.text.words.terms`: in scripts without spaces, of
            characters) from which two queries count as nearly equal; above 1 switches that rule off.
        copies: passage id → how it is the same as a relevant passage; None where all ids are those of one corpus.

    Returns:
        At most one leak per training query, a shared passage before near-equal wording, by position.
    """
    leaks: dict[int, Leak] = {}
    how = copies or {}
    owner = {p: q for q, passages in evaluation_relevant.items() for p in passages}
    for position, ids in enumerate(positive_ids or ()):
        if ids and (shared := [p for p in ids if p in owner]):
            shares = [(how[p].reason if p in how else SAME_ID, p) for p in shared]
            reason, first = min(shares, key=lambda pair: (pair[0] != SAME_ID, pair))
            similarity = how[first].similarity if first in how else 1.0
            leaks[position] = Leak(position, reason, owner[first], similarity)
    names = list(evaluation_queries)
    for position, nearest, similarity in _nearest(queries, [evaluation_queries[n] for n in names], jaccard):
        if position not in leaks:
            leaks[position] = Leak(position, "is nearly equal to", names[nearest], similarity)
    return [leaks[position] for position in sorted(leaks)]


def _nearest(queries: Sequence[str] | pa.Array, others: Sequence[str], jaccard: float):
    """Position, nearest of the others, token Jaccard similarity; for queries with at least ``jaccard`` to one.

    Two sets of a and b words with that similarity share at least s = ⌈jaccard · max(a, b)⌉ words. So, in any order of
    all words, the first a − ⌈jaccard · a⌉ + 2 words of the one and the first b − ⌈jaccard · b⌉ + 2 of the other share
    two (one, where s is 1). With the rarest first, few pairs do, and only those are compared.
    """
    other_words = [set(terms(text)) for text in fold(others)]
    counts = Counter(word for words in other_words for word in words)
    vocabulary = {w: i for i, w in enumerate(sorted(counts, key=lambda w: (counts[w], w)))}
    if not vocabulary or jaccard > 1:
        return
    right, right_sizes, right_first = _incidence(other_words, vocabulary, jaccard)
    right_first = right_first.T.tocsr()
    for number, block in enumerate(string_blocks(queries, _BLOCK)):
        words = [set(terms(text)) for text in fold(block.to_pylist())]
        left, sizes, first = _incidence(words, vocabulary, jaccard)
        pairs = (first @ right_first).tocoo()
        least = np.ceil(jaccard * np.maximum(sizes[pairs.row], right_sizes[pairs.col]) - 1e-9)
        close = pairs.data >= np.minimum(least, 2)
        row, col = pairs.row[close], pairs.col[close]
        shared = left[row].multiply(right[col]).sum(axis=1)
        similarity = shared / (sizes[row] + right_sizes[col] - shared)
        row, col, similarity = (a[similarity >= jaccard] for a in (row, col, similarity))
        order = np.lexsort((col, -similarity, row))
        best = np.concatenate([[True], np.diff(row[order]) > 0]) if len(order) else np.array([], bool)
        for at in order[best]:
            yield number * _BLOCK + int(row[at]), int(col[at]), float(similarity[at])


def _incidence(
    word_sets: Sequence[set[str]], vocabulary: Mapping[str, int], jaccard: float
) -> tuple[csr_array, np.ndarray, csr_array]:
    """Which set holds which word [n, V], the sizes [n], and the same of each set's first words alone [n, V].

    Words outside of the vocabulary count as the rarest.
    """
    columns = [sorted(vocabulary[w] for w in words if w in vocabulary) for words in word_sets]
    sizes, known = (np.array([len(x) for x in sets], np.int64) for sets in (word_sets, columns))
    firsts = sizes - np.ceil(jaccard * sizes - 1e-9).astype(np.int64) + 2 - (sizes - known)
    shape = len(word_sets), len(vocabulary)
    indices = np.fromiter(chain.from_iterable(columns), np.int64, known.sum())
    indptr = np.concatenate([[0], np.cumsum(known)])
    whole = csr_array((np.ones(len(indices)), indices, indptr), shape=shape)
    inside = np.arange(len(indices)) - np.repeat(indptr[:-1], known) < np.repeat(firsts, known)
    ends = np.concatenate([[0], np.cumsum(np.clip(firsts, 0, known))])
    return whole, sizes, csr_array((np.ones(inside.sum()), indices[inside], ends), shape=shape)
