"""Train and dev by source passage, by a hash and so the same everywhere."""

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def dev_and_test(
    source_ids: Sequence[Sequence[str]], dev_fraction: float, test_fraction: float = 0.0
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
    passages = {p: i for i, p in enumerate(sorted({p for ids in source_ids for p in ids}))}
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in source_ids])]).astype(np.int64)
    places = np.fromiter((passages[p] for ids in source_ids for p in ids), np.int64, offsets[-1])
    chances = _chances(places, offsets, list(passages))
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
    return _chances(places, offsets, passage_ids.take(pa.array(distinct)).to_pylist())


def _chances(places: np.ndarray, offsets: np.ndarray, passages: list[str]) -> np.ndarray:
    """A number for each query, uniform in [0, 1] by the hashes of its passages; infinite for those without any."""
    n, lengths = len(offsets) - 1, np.diff(offsets)
    if not len(places):
        return np.full(n, np.inf)
    left = np.repeat(np.arange(n), lengths)
    graph = coo_array((np.ones(len(places)), (left, n + places)), shape=(n + len(passages),) * 2)
    _, component = connected_components(graph, directed=False)
    smallest = np.ones(component.max() + 1)
    np.minimum.at(smallest, component[n:], [unit_hash(p) for p in passages])
    # the minimum of m uniform hashes is below x with probability 1 − (1 − x)^m: undo that, to keep to the fraction
    size = np.bincount(component[n:], minlength=len(smallest))
    chance = 1 - (1 - smallest) ** np.maximum(size, 1)
    return np.where(lengths > 0, chance[component[:n]], np.inf)


def unit_hash(text: str) -> float:
    """A number in [0, 1) for a text, uniform over texts, by SHA-256."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
