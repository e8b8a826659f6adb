"""Losses over whole lists as pure functions: one value per query, float32 or better, by log-sum-exp.

``Q`` queries, ``P`` passages of a pool, ``K`` passages of a list. Scores are cosines (or inner products), not yet
divided by a temperature.
"""

import math
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, pad

Scalar: TypeAlias = float | Tensor  # a temperature, fixed or learned


def listwise_distillation(
    scores: Tensor, teacher_scores: Tensor, list_mask: Tensor, temperature: Scalar, teacher_temperature: Scalar
) -> Tensor:
    """Compute the KL divergence of the student's distribution over a list from the teacher's.

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
    student, teacher = _log_distributions(scores, teacher_scores, list_mask, temperature, teacher_temperature)
    return _divergence(teacher, student, list_mask)


def listwise_reverse_kl(
    scores: Tensor, teacher_scores: Tensor, list_mask: Tensor, temperature: Scalar, teacher_temperature: Scalar
) -> Tensor:
    """Compute the KL divergence the other way round: of the teacher's distribution over a list from the student's.

    KL( softmax(scores / τ_s) ‖ softmax(teacher / τ_t) ) (for distillation: Gu et al. 2023, arXiv 2306.08543). It is
    large where the student puts weight that the teacher does not, and lets it leave out some of what the teacher likes.
    Arguments and result as in :func:`listwise_distillation`.
    """
    student, teacher = _log_distributions(scores, teacher_scores, list_mask, temperature, teacher_temperature)
    return _divergence(student, teacher, list_mask)


def listwise_jensen_shannon(
    scores: Tensor, teacher_scores: Tensor, list_mask: Tensor, temperature: Scalar, teacher_temperature: Scalar
) -> Tensor:
    """Compute the Jensen–Shannon divergence between the student's and the teacher's distribution over a list.

    (KL(p ‖ m) + KL(q ‖ m)) / 2 with m = (p + q) / 2 (Lin 1991, "Divergence measures based on the Shannon entropy").
    Arguments as in :func:`listwise_distillation`; the result is at most log 2.
    """
    student, teacher = _log_distributions(scores, teacher_scores, list_mask, temperature, teacher_temperature)
    # finite where masked: the gradient of log-add-exp at two −inf is nan
    middle = torch.logaddexp(student.masked_fill(~list_mask, 0.0), teacher.masked_fill(~list_mask, 0.0)) - math.log(2)
    return (_divergence(teacher, middle, list_mask) + _divergence(student, middle, list_mask)) / 2


def _log_distributions(
    scores: Tensor, teacher_scores: Tensor, list_mask: Tensor, temperature: Scalar, teacher_temperature: Scalar
) -> tuple[Tensor, Tensor]:
    """Compute the student's and the teacher's log-probabilities over each list, [Q, K] each; −inf where masked."""
    student = masked_log_softmax(at_least_float32(scores), list_mask, temperature)
    return student, masked_log_softmax(at_least_float32(teacher_scores), list_mask, teacher_temperature)


def _divergence(log_p: Tensor, log_q: Tensor, mask: Tensor) -> Tensor:
    """Compute KL(p ‖ q) over the real entries of each row, [Q]."""
    # where masked, 0 · (−inf − −inf) would be nan
    return (log_p.exp() * (log_p - log_q).masked_fill(~mask, 0.0)).sum(1)


def excess_of_unknown(
    scores: Tensor,
    counts: Tensor,
    excluded: Tensor,
    list_scores: Tensor,
    teacher_scores: Tensor,
    list_mask: Tensor,
    temperature: Scalar,
    teacher_temperature: Scalar,
    margin: float = 0.0,
) -> Tensor:
    """Compute how far the student scores passages without a teacher score above an upper bound of that score.

    log( (1 + Σ_u c_u max(β_u, r)) / (1 + Σ_u c_u r) ), where β_u = e^{s_u/τ_s} / Σ_l e^{s_l/τ_s} are the student's odds
    of the passage u against the list as a whole, and r = e^{(t_min − margin)/τ_t} / Σ_l e^{t_l/τ_t} bounds the
    teacher's, t_min being the list's lowest teacher score (derived at
    :class:`~retriever.objectives.InBatchDistillation`).

    Args:
        scores: the student's of a pool of passages, [Q, P].
        counts: [P], not negative: how often each passage counts in the pool (parts of 1 where several rows are one).
        excluded: bool [Q, P], True where a passage is none of these, for example because it is in the list.
        list_scores: the student's of the list, [Q, K].
        teacher_scores: [Q, K]; values where ``list_mask`` is False are not looked at.
        list_mask: bool [Q, K], True for real entries; at least one in each row.
        temperature: τ_s > 0.
        teacher_temperature: τ_t > 0.
        margin: in units of teacher scores, not negative; infinity takes all of these passages for irrelevant.

    Returns:
        [Q], each at least 0; 0 where no such passage is above the bound, or there is none.
    """
    scores, list_scores = at_least_float32(scores), at_least_float32(list_scores)
    student, teacher = _log_distributions(list_scores, teacher_scores, list_mask, temperature, teacher_temperature)
    # log β by way of the list's best, so that differences are taken before the division
    best = list_scores.masked_fill(~list_mask, float("-inf")).argmax(1, keepdim=True)
    odds = (scores - list_scores.gather(1, best)) / temperature + student.gather(1, best)
    bound = teacher.masked_fill(~list_mask, float("inf")).amin(1, keepdim=True) - margin / teacher_temperature
    log_counts = counts.to(odds.dtype).log().expand_as(odds).masked_fill(excluded, float("-inf"))
    # a first column of 0 for the list itself
    above, least = (pad(x + log_counts, (1, 0)).logsumexp(1) for x in (torch.maximum(odds, bound), bound))
    return above - least


def masked_log_softmax(scores: Tensor, mask: Tensor, temperature: Scalar) -> Tensor:
    """Compute log softmax(scores / temperature) over the entries of each row where ``mask``; −inf elsewhere."""
    best = scores.masked_fill(~mask, float("-inf")).amax(1, keepdim=True).detach()
    # masked entries become −inf only after the division, where a learned temperature's gradient would be inf · 0
    logits = (scores.masked_fill(~mask, 0.0) - best) / temperature
    return log_softmax(logits.masked_fill(~mask, float("-inf")), dim=1)


def listwise_cross_entropy(scores: Tensor, positive: Tensor, mask: Tensor) -> Tensor:
    """Compute the softmax cross-entropy of each query's positives against its negatives.

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
    """Raise half precision to float32; leave float32 and float64 as they are."""
    return scores if scores.dtype in (torch.float32, torch.float64) else scores.float()
