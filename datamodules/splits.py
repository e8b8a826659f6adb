"""Train and dev by source passage, by a hash and so the same everywhere."""

import hashlib
from array import array
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

_HASHES = 2.0**64


def dev_and_test(
    source_ids: Iterable[Sequence[str]], dev_fraction: float, test_fraction: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Which queries belong to dev and which to test, so that all queries of a passage fall on one side.

    Queries that share a source passage, directly or through others, are kept together; the smallest hash among their
    passages decides.

    Args:
        source_ids: per query the ids of the passages it was written from or that are relevant to it.
        dev_fraction: share of dev, in [0, 1].
        test_fraction: share of test, in [0, 1 − ``dev_fraction``].

    Returns:
        Two of bool [N]; queries without a source passage are in neither.
    """
    hashes, ends = array("Q"), array("q", [0])
    for ids in source_ids:
        hashes.extend(map(_text_hash, ids))
        ends.append(len(hashes))
    chances = _chances(np.array(hashes, np.uint64), np.array(ends, np.int64))
    return chances < dev_fraction, (chances > 1 - test_fraction) & (chances <= 1) & (chances >= dev_fraction)


def rows_in_dev(source_rows: np.ndarray, offsets: np.ndarray, passage_ids: pa.Array, fraction: float) -> np.ndarray:
    """Which queries belong to dev, as :func:`dev_and_test` has it, for the sources of N queries as rows of a corpus.

    Args:
        source_rows: integers [T], those of all queries one after the other.
        offsets: int64 [N + 1].
        passage_ids: string array, the ids of the corpus.
        fraction: share of dev, in [0, 1].
    """
    return _chances_of_rows(source_rows, offsets, passage_ids) < fraction


def lowest_in_dev(source_rows: np.ndarray, offsets: np.ndarray, passage_ids: pa.Array, fraction: float) -> np.ndarray:
    """As :func:`rows_in_dev`, for lists that were split by these hashes before: the lowest that are left go to dev.

    Of those queries that have a source passage, ``fraction`` (and those that belong together with the last of them) are
    dev; none where that is less than half a query, or where it is all of them.
    """
    chances = _chances_of_rows(source_rows, offsets, passage_ids)
    sourced = np.sort(chances[chances <= 1])
    wanted = int(fraction * len(sourced) + 0.5)
    if not wanted or sourced[wanted - 1] == sourced[-1]:
        return np.zeros(len(chances), dtype=bool)
    return chances <= sourced[wanted - 1]


def _chances_of_rows(source_rows: np.ndarray, offsets: np.ndarray, passage_ids: pa.Array) -> np.ndarray:
    distinct, places = np.unique(source_rows, return_inverse=True)
    return _chances(text_hashes(passage_ids.take(pa.array(distinct)).to_pylist())[places], offsets)


def _chances(passages: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """A number for each query, uniform in [0, 1] by the hashes of its passages; infinite for those without any.

    Args:
        passages: uint64 [T], hashes of the passages of all queries, one after the other.
        offsets: int64 [N + 1].
    """
    lengths = np.diff(offsets)
    first = passages[offsets[:-1][lengths > 0]]
    lowest, size = first / _HASHES, np.ones(len(first), np.int64)
    bound, lowest_of_bound, size_of_bound = _bound_together(passages, lengths)
    if len(bound):
        at = np.minimum(np.searchsorted(bound, first), len(bound) - 1)
        inside = bound[at] == first
        lowest[inside], size[inside] = lowest_of_bound[at[inside]], size_of_bound[at[inside]]
    # the minimum of m uniform hashes is below x with probability 1 − (1 − x)^m: undo that, to keep to the fraction
    chances = np.full(len(lengths), np.inf)
    chances[lengths > 0] = 1 - (1 - lowest) ** size
    return chances


def _bound_together(passages: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Passages that queries of several passages bind together: hashes, sorted, and of each one's component the lowest
    hash, in [0, 1], and the number of passages.
    """
    several = lengths > 1
    bound, places = np.unique(passages[np.repeat(several, lengths)], return_inverse=True)
    if not len(bound):
        return bound, bound / _HASHES, places
    queries = np.repeat(np.arange(several.sum()), lengths[several])
    graph = coo_array(
        (np.ones(len(places)), (queries, several.sum() + places)), shape=(several.sum() + len(bound),) * 2
    )
    component = connected_components(graph, directed=False)[1][several.sum() :]
    lowest = np.ones(component.max() + 1)
    np.minimum.at(lowest, component, bound / _HASHES)
    return bound, lowest[component], np.bincount(component)[component]


def unit_hash(text: str) -> float:
    """A number in [0, 1) for a text, uniform over texts, by SHA-256."""
    return _text_hash(text) / _HASHES


def text_hashes(texts: Iterable[str]) -> np.ndarray:
    """Hash texts by SHA-256, uint64 [n]; the same everywhere."""
    return np.array(array("Q", map(_text_hash, texts)), np.uint64)


def _text_hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
