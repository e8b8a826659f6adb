"""Losses as pure functions of scores: one value per query, float32 or better, by log-sum-exp.

``Q`` queries, ``P`` candidate passages, ``K`` passages of a list. Scores are cosines (or inner products), not yet
divided by a temperature.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import log_softmax


def infonce(
    scores: Tensor,
    positive: Tensor,
    temperature: float | Tensor,
    counts: Tensor | None = None,
    excluded: Tensor | None = None,
) -> Tensor:
    """InfoNCE over a pool in which a passage may count several times or not at all.

    −log( e^{s⁺/τ} / ( e^{s⁺/τ} + Σ_p c_p e^{s_p/τ} ) ), where the sum runs over every passage but the positive and
    those excluded (arXiv 2505.19274, its InfoNCE objective; van den Oord et al. 2018, arXiv 1807.03748).

    Args:
        scores: [Q, P].
        positive: int64 [Q], the column of each query's positive. It counts once, whatever ``counts`` and ``excluded``
            say of that column.
        temperature: τ > 0.
        counts: [P] or [Q, P], not negative: how often each passage stands in the pool; None counts each once.
        excluded: bool [Q, P], True where a passage is no negative of that query.

    Returns:
        [Q], each at least 0; 0 for a query that has no negative.
    """
    scores = at_least_float32(scores)
    positive = positive.unsqueeze(1)
    # the difference is taken before the division: exact where it matters, at scores close to the positive's
    logits = (scores - scores.gather(1, positive)) / temperature
    if counts is not None:
        logits = logits + counts.to(logits.dtype).log()
    if excluded is not None:
        logits = logits.masked_fill(excluded, float("-inf"))
    logits = logits.scatter(1, positive, 0.0)
    return logits.logsumexp(1)


def listwise_distillation(
    scores: Tensor,
    teacher_scores: Tensor,
    list_mask: Tensor,
    temperature: float | Tensor,
    teacher_temperature: float | Tensor,
) -> Tensor:
    """KL divergence of the student's distribution over a list from the teacher's.

    KL( softmax(teacher / τ_t) ‖ softmax(scores / τ_s) ) (arXiv 2505.19274, its distillation objective).

    Args:
        scores: the student's, [Q, K].
        teacher_scores: [Q, K]; values where ``list_mask`` is False are not looked at.
        list_mask: bool [Q, K], True for real entries; at least one in each row.
        temperature: τ_s > 0.
        teacher_temperature: τ_t > 0.

    Returns:
        [Q], each at least 0 up to rounding.
    """
    student = masked_log_softmax(at_least_float32(scores), list_mask, temperature)
    teacher = masked_log_softmax(at_least_float32(teacher_scores), list_mask, teacher_temperature)
    # both are -inf where masked; 0 · (−inf − −inf) would be nan
    difference = (teacher - student).masked_fill(~list_mask, 0.0)
    return (teacher.exp() * difference).sum(1)


def masked_log_softmax(scores: Tensor, mask: Tensor, temperature: float | Tensor) -> Tensor:
    """log softmax(scores / temperature) over the entries of each row where ``mask``; −inf elsewhere."""
    best = scores.masked_fill(~mask, float("-inf")).amax(1, keepdim=True).detach()
    # masked entries become −inf only behind the division, where a learned temperature's gradient would be inf · 0
    logits = (scores.masked_fill(~mask, 0.0) - best) / temperature
    return log_softmax(logits.masked_fill(~mask, float("-inf")), dim=1)


def likely_false_negatives(teacher_scores: Tensor, list_mask: Tensor, threshold: float) -> Tensor:
    """Entries whose teacher score is above ``threshold`` × the list's best one.

    Meant for teacher scores that are normalised to [0, 1] (the paper: threshold 0.6).

    Args:
        teacher_scores: [Q, K].
        list_mask: bool [Q, K].
        threshold: a share of the best score.

    Returns:
        bool [Q, K].
    """
    best = teacher_scores.masked_fill(~list_mask, float("-inf")).amax(1, keepdim=True)
    return list_mask & (teacher_scores > threshold * best)


def listwise_cross_entropy(scores: Tensor, positive: Tensor, mask: Tensor) -> Tensor:
    """Softmax cross-entropy of each query's positives against its negatives.

    The mean over the positives p of −log( e^{s_p} / ( e^{s_p} + Σ_n e^{s_n} ) ), n over the negatives: the other
    positives are masked out, so that positives do not push one another down and the least value is 0 however many there
    are. (With a uniform target over the positives they would, and it would be log of their number.) With one positive
    this is ListNet's top-one loss on binary labels (Cao et al. 2007) and the loss of arXiv 2101.08751.

    Args:
        scores: logits [Q, C]; values where ``mask`` is False are not looked at.
        positive: bool [Q, C]; at least one in each row.
        mask: bool [Q, C], True for real entries.

    Returns:
        [Q], float32 or better, each at least 0; 0 for a query that has no negative.
    """
    scores = at_least_float32(scores)
    # the lowest finite number, not −inf, whose gradient would be nan where a query has no negative
    low = torch.finfo(scores.dtype).min
    negatives = scores.masked_fill(positive | ~mask, low).logsumexp(1, keepdim=True)
    positive = positive & mask
    difference = (negatives - scores).masked_fill(~positive, 0.0)
    each = torch.logaddexp(difference, torch.zeros_like(difference)).masked_fill(~positive, 0.0)
    return each.sum(1) / positive.sum(1)


def at_least_float32(scores: Tensor) -> Tensor:
    """Half precision raised to float32; float32 and float64 as they are."""
    return scores if scores.dtype in (torch.float32, torch.float64) else scores.float()
