"""Exact top-k search by inner product, streamed over chunks of passages (faiss)."""

from functools import cache
from typing import Any

import faiss
import numpy as np
import torch

_GPU_MAX_HITS = 2048  # faiss' kernels know no more


def exact_search(
    queries: np.ndarray, passages: np.ndarray, k: int, chunk: int = 100_000, first_row: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Find the ``k`` passages with the highest inner product for each query.

    The score matrix is never held: memory is that of one chunk of passages and 2k hits per query. Runs on the GPU where
    faiss has one and ``k`` is at most 2,048, else on the CPU.

    Args:
        queries: float32 [Q, D].
        passages: float32 or float16 [N, D]; may be memory-mapped.
        k: hits per query; fewer come back where N is smaller.
        chunk: passages searched at a time.
        first_row: number of the first passage, where ``passages`` is a part of a corpus.

    Returns:
        scores float32 [Q, min(k, N)], highest first, and rows int64 of the same shape.
    """
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    best = None
    for start in range(0, len(passages), chunk):
        block = np.ascontiguousarray(passages[start : start + chunk], dtype=np.float32)
        scores, rows = _nearest(queries, block, min(k, len(block)))
        found = scores, rows + (start + first_row)
        best = found if best is None else merge_hits([best, found], k)
    if best is None:
        return np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64)
    return best


def merge_hits(parts: list[tuple[np.ndarray, np.ndarray]], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` best of several hit lists per query, equal scores by ascending row.

    Args:
        parts: (scores [Q, k_i], rows [Q, k_i]) each.
        k: hits to keep.

    Returns:
        scores [Q, min(k, Σ k_i)] and rows, highest first.
    """
    scores = np.concatenate([p[0] for p in parts], axis=1)
    rows = np.concatenate([p[1] for p in parts], axis=1)
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def _nearest(queries: np.ndarray, passages: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    resources = _gpu_resources() if k <= _GPU_MAX_HITS else None
    if resources is None:
        return faiss.knn(queries, passages, k, metric=faiss.METRIC_INNER_PRODUCT)
    device = torch.cuda.current_device() if torch.cuda.is_available() else -1  # this rank's
    return faiss.knn_gpu(resources, queries, passages, k, metric=faiss.METRIC_INNER_PRODUCT, device=device)


@cache
def _gpu_resources() -> Any:
    """Kept for as long as the process lives: they hold scratch memory. None where faiss has no GPU."""
    return faiss.StandardGpuResources() if getattr(faiss, "get_num_gpus", lambda: 0)() else None
