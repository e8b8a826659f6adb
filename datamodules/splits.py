"""Train and dev by source passage, by a hash and so the same everywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def in_dev(source_ids: Sequence[Sequence[str]], fraction: float) -> np.ndarray:
    """Which queries belong to dev, so that all queries of a passage fall on one side.

    Queries that share a source passage, directly or through others, are kept together; the smallest hash among their
    passages decides.

    Args:
        source_ids: per query the ids of the passages it was written from or that are relevant to it.
        fraction: share of dev, in [0, 1].

    Returns:
        bool [N]; queries without a source passage are train.
    """
    passages = {p: i for i, p in enumerate(sorted({p for ids in source_ids for p in ids}))}
    n = len(source_ids)
    pairs = [(q, n + passages[p]) for q, ids in enumerate(source_ids) for p in ids]
    if not pairs:
        return np.zeros(n, dtype=bool)
    left, right = np.array(pairs).T
    graph = coo_array((np.ones(len(pairs)), (left, right)), shape=(n + len(passages),) * 2)
    _, component = connected_components(graph, directed=False)
    smallest = np.ones(component.max() + 1)
    np.minimum.at(smallest, component[n:], [_hash(p) for p in passages])
    # the minimum of m uniform hashes is below x with probability 1 − (1 − x)^m: undo that, to keep to the fraction
    size = np.bincount(component[n:], minlength=len(smallest))
    chance = 1 - (1 - smallest) ** np.maximum(size, 1)
    has_source = np.array([len(ids) > 0 for ids in source_ids])
    return has_source & (chance[component[:n]] < fraction)


def _hash(passage_id: str) -> float:
    return int.from_bytes(hashlib.sha256(passage_id.encode()).digest()[:8], "big") / 2**64
