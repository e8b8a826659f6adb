"""Raw teacher scores to [0, 1], on reading, so that another normalisation needs no new scoring."""

from __future__ import annotations

import numpy as np

from retriever.errors import choose

NORMALIZATIONS = ("percentile", "list_minmax", "none")


def normalize_scores(scores: np.ndarray, offsets: np.ndarray, groups: np.ndarray, method: str) -> np.ndarray:
    """Normalise the teacher scores of N lists.

    Args:
        scores: float32 [T], raw, list after list.
        offsets: int64 [N + 1].
        groups: int [N]; lists of one group (corpus and query type) share their percentiles.
        method: ``percentile``: (score − p1) / (p99 − p1) over the group, clipped to [0, 1] (arXiv 2505.19274);
            ``list_minmax``: each list on its own from 0 to 1; ``none``: as they are.

    Returns:
        float32 [T].
    """
    choose("data.normalization", method, NORMALIZATIONS)
    if method == "none":
        return scores
    number = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    if method == "list_minmax":
        low, high = np.minimum.reduceat(scores, offsets[:-1])[number], np.maximum.reduceat(scores, offsets[:-1])[number]
    else:
        low, high = np.empty_like(scores), np.empty_like(scores)
        for group in np.unique(groups):
            inside = groups[number] == group
            low[inside], high[inside] = np.percentile(scores[inside].astype(np.float64), [1, 99])
    spread = np.where(high > low, high - low, 1.0)
    return np.clip((scores - low) / spread, 0.0, 1.0).astype(np.float32)


def confident(scores: np.ndarray, offsets: np.ndarray, groups: np.ndarray, quantile: float) -> np.ndarray:
    """Lists whose best score is not below a quantile of all scores of their group (the paper: 0.25), bool [N]."""
    best = np.maximum.reduceat(scores, offsets[:-1])
    number = np.repeat(np.arange(len(best)), np.diff(offsets))
    floor = np.empty(len(best))
    for group in np.unique(groups):
        floor[groups == group] = np.quantile(scores[groups[number] == group].astype(np.float64), quantile)
    return best >= floor
