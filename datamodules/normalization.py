"""Raw teacher scores to [0, 1], on reading, so that another normalisation needs no new scoring."""

from collections.abc import Mapping, Sequence

import numpy as np

from retriever.errors import choose

NORMALIZATIONS = ("percentile", "list_minmax", "none")
_BLOCK = 100_000


def normalize_scores(
    scores: np.ndarray,
    offsets: np.ndarray,
    groups: np.ndarray,
    method: str,
    scale: Mapping[int, Sequence[float]] | None = None,
) -> np.ndarray:
    """Normalise the teacher scores of N lists.

    Args:
        scores: float32 [T], raw, list after list.
        offsets: int64 [N + 1].
        groups: int [N]; lists of one group (corpus and query type) share their percentiles.
        method: ``percentile``: (score − p1) / (p99 − p1) over the group, clipped to [0, 1] (arXiv 2505.19274);
            ``list_minmax``: each list on its own from 0 to 1; ``none``: as they are.
        scale: group → its p1 and p99, where these are known of all candidates, and lists were cut since; a group that
            it lacks takes those of the scores that are here.

    Returns:
        float32 [T].
    """
    choose("data.normalization", method, NORMALIZATIONS)
    if method == "none":
        return scores
    if method == "list_minmax":
        low, high = np.minimum.reduceat(scores, offsets[:-1]), np.maximum.reduceat(scores, offsets[:-1])
    else:
        low, high = np.empty((2, len(groups)), scores.dtype)
        for group in np.unique(groups):
            bounds = (scale or {}).get(int(group))
            if bounds is None:
                bounds = np.percentile(_scores_of(scores, offsets, groups == group), [1, 99], overwrite_input=True)
            low[groups == group], high[groups == group] = bounds
    spread = np.where(high > low, high - low, 1.0)
    normalized = np.empty(len(scores), np.float32)
    for begin in range(0, len(groups), _BLOCK):  # one bound per score takes more memory than the scores
        part = slice(begin, begin + _BLOCK)
        ends = offsets[begin : begin + _BLOCK + 1]
        inside, lengths = slice(ends[0], ends[-1]), np.diff(ends)
        relative = (scores[inside] - np.repeat(low[part], lengths)) / np.repeat(spread[part], lengths)
        normalized[inside] = np.clip(relative, 0.0, 1.0)
    return normalized


def confident(scores: np.ndarray, offsets: np.ndarray, groups: np.ndarray, quantile: float) -> np.ndarray:
    """Lists whose best score is not below a quantile of all scores of their group (the paper: 0.25), bool [N]."""
    best = np.maximum.reduceat(scores, offsets[:-1])
    floor = np.empty(len(best))
    for group in np.unique(groups):
        values = _scores_of(scores, offsets, groups == group)
        floor[groups == group] = np.quantile(values, quantile, overwrite_input=True)
    return best >= floor


def _scores_of(scores: np.ndarray, offsets: np.ndarray, lists: np.ndarray) -> np.ndarray:
    """The scores of some lists (bool [N]) as a copy in float64."""
    return scores[np.repeat(lists, np.diff(offsets))].astype(np.float64)
