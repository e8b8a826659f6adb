"""Losses over the pairs and the positions of a list, as pure functions: one value per query, float32 or better.

``Q`` queries, ``K`` passages of a list. Student scores are cosines (or inner products), not yet divided by a
temperature; values where ``list_mask`` is False are ignored. All are 0 for a list of one passage.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from retriever.errors import InputError
from retriever.losses.listwise import Scalar, at_least_float32

LAMBDA_WEIGHTS = ("ndcg_loss2", "lambdarank")


def margin_mse(
    scores: Tensor, teacher_scores: Tensor, list_mask: Tensor, temperature: Scalar, teacher_temperature: Scalar
) -> Tensor:
    """Compute the mean squared error between the student's and the teacher's margins.

    The mean of ( (s⁺ − s_j)/τ_s − (t⁺ − t_j)/τ_t )² over the list's other passages j, where + is the passage that the
    teacher scores best (Hofstätter et al. 2020, arXiv 2010.02666, its Margin-MSE loss; the temperatures bring cosines
    and normalised teacher scores to one scale). It is 0 where s/τ_s and t/τ_t differ by a constant, as is the
    divergence of :func:`~retriever.losses.listwise.listwise_distillation`.

    Args:
        scores: the student's, [Q, K].
        teacher_scores: [Q, K].
        list_mask: bool [Q, K], True for real entries; at least one in each row.
        temperature: τ_s > 0.
        teacher_temperature: τ_t > 0.

    Returns:
        [Q], each at least 0.
    """
    scores, teacher_scores = at_least_float32(scores), at_least_float32(teacher_scores)
    first = teacher_scores.masked_fill(~list_mask, float("-inf")).argmax(1, keepdim=True)
    # masked before the division, where a learned temperature's gradient would be inf · 0
    student = (scores.gather(1, first) - scores).masked_fill(~list_mask, 0.0) / temperature
    teacher = (teacher_scores.gather(1, first) - teacher_scores).masked_fill(~list_mask, 0.0) / teacher_temperature
    return (student - teacher).square().sum(1) / (list_mask.sum(1) - 1).clamp(min=1)


def ranknet(
    scores: Tensor, teacher_scores: Tensor, list_mask: Tensor, temperature: Scalar, weighted: bool = False
) -> Tensor:
    """Compute the logistic loss of each pair that the teacher orders.

    The mean of w_ij · log(1 + e^{−(s_i − s_j)/τ}) over all pairs with t_i > t_j (Burges et al. 2005, "Learning to Rank
    using Gradient Descent": its cost C_ij with the target probability 1). Passages that the teacher ties are no pair.

    Args:
        scores: the student's, [Q, K].
        teacher_scores: [Q, K].
        list_mask: bool [Q, K], True for real entries.
        temperature: τ > 0.
        weighted: w_ij = t_i − t_j in place of 1. The mean stays one over pairs, so that a list whose scores hardly
            differ counts little.

    Returns:
        [Q], each at least 0; 0 where the teacher orders no pair.
    """
    teacher_margins, ordered = _ordered_pairs(at_least_float32(teacher_scores), list_mask)
    each = -logsigmoid(_differences(at_least_float32(scores), list_mask) / temperature)
    if weighted:
        each = each * teacher_margins
    return each.masked_fill(~ordered, 0.0).sum((1, 2)) / ordered.sum((1, 2)).clamp(min=1)


def approx_ndcg(scores: Tensor, teacher_scores: Tensor, list_mask: Tensor, temperature: Scalar) -> Tensor:
    """Compute 1 − nDCG of the student's order of each list, with smooth positions.

    The position of a passage is taken as 1 + Σ_{j≠i} σ((s_j − s_i)/τ), which is its rank as τ → 0 (Qin, Liu, Li 2010,
    "A general approximation framework for direct optimization of information retrieval measures", its ApproxNDCG with
    α = 1/τ). Gains are the teacher scores themselves, the linear gain of trec_eval; the paper has 2^grade − 1.

    Args:
        scores: the student's, [Q, K].
        teacher_scores: [Q, K], not negative where real.
        list_mask: bool [Q, K], True for real entries.
        temperature: τ > 0; small against the differences of scores, positions are near ranks, and gradients small.

    Returns:
        [Q], in [0, 1]; 0 where all gains are 0.

    Raises:
        InputError: a teacher score is negative.
    """
    gains = _normalized_gains(at_least_float32(teacher_scores), list_mask)
    others = list_mask.unsqueeze(1) & ~torch.eye(list_mask.shape[1], dtype=torch.bool, device=list_mask.device)
    # [q, i, j]: how far j is above i
    above = -_differences(at_least_float32(scores), list_mask) / temperature
    positions = 1 + above.sigmoid().masked_fill(~others, 0.0).sum(2)
    # the ideal order's sum is 1; a list without gains has a loss of 0
    return (gains > 0).any(1).to(gains.dtype) - (gains / torch.log2(1 + positions)).sum(1)


def lambda_loss(
    scores: Tensor, teacher_scores: Tensor, list_mask: Tensor, temperature: Scalar, weights: str = "ndcg_loss2"
) -> Tensor:
    """Compute the logistic loss of each pair that the teacher orders, weighted by what the pair means for nDCG.

    Σ w_ij · log2(1 + e^{−(s_i − s_j)/τ}) over all pairs with t_i > t_j (Wang et al. 2018, "The LambdaLoss Framework for
    Ranking Metric Optimization"). With gains G (teacher scores over the ideal DCG), ranks r of the passages in the
    student's order, and discounts D_k = log2(1 + k):

    * ``ndcg_loss2``, that paper's NDCG-Loss2: w_ij = |1/D_{|r_i−r_j|} − 1/D_{|r_i−r_j|+1}| · |G_i − G_j|, which it
      derives by bounding the cost 1 − nDCG;
    * ``lambdarank``, the loss that it finds behind LambdaRank: w_ij = |1/D_{r_i} − 1/D_{r_j}| · |G_i − G_j|, the change
      of nDCG where i and j change places.

    Weights have no gradient. Passages that the student ties are ranked in the order of the list.

    Args:
        scores: the student's, [Q, K].
        teacher_scores: [Q, K], not negative where real.
        list_mask: bool [Q, K], True for real entries.
        temperature: τ > 0, the paper's 1/σ.
        weights: one of ``LAMBDA_WEIGHTS``.

    Returns:
        [Q], each at least 0; 0 where the teacher orders no pair.

    Raises:
        InputError: a teacher score is negative.
    """
    scores, teacher_scores = at_least_float32(scores), at_least_float32(teacher_scores)
    _, ordered = _ordered_pairs(teacher_scores, list_mask)
    gains = _normalized_gains(teacher_scores, list_mask)
    order = scores.detach().masked_fill(~list_mask, float("-inf")).argsort(dim=1, descending=True, stable=True)
    ranks = order.argsort(dim=1) + 1
    if weights == "lambdarank":
        inverse = 1 / torch.log2(1.0 + ranks)
        discounts = (inverse.unsqueeze(2) - inverse.unsqueeze(1)).abs()
    else:
        distances = (ranks.unsqueeze(2) - ranks.unsqueeze(1)).abs().clamp(min=1)  # 0 only of a passage to itself
        discounts = 1 / torch.log2(1.0 + distances) - 1 / torch.log2(2.0 + distances)
    pairs = -logsigmoid(_differences(scores, list_mask) / temperature) / math.log(2)
    each = pairs * discounts * (gains.unsqueeze(2) - gains.unsqueeze(1))
    return each.masked_fill(~ordered, 0.0).sum((1, 2))


def _differences(scores: Tensor, mask: Tensor) -> Tensor:
    """Compute s_i − s_j at [q, i, j], [Q, K, K]; finite where one of them is masked."""
    scores = scores.masked_fill(~mask, 0.0)
    return scores.unsqueeze(2) - scores.unsqueeze(1)


def _ordered_pairs(teacher_scores: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the teacher's t_i − t_j at [q, i, j], and whether i and j are real and it is above 0."""
    margins = _differences(teacher_scores, mask)
    return margins, (margins > 0) & mask.unsqueeze(2) & mask.unsqueeze(1)


def _normalized_gains(teacher_scores: Tensor, mask: Tensor) -> Tensor:
    """Divide teacher scores by the DCG of their best order, [Q, K]; 0 where masked, and where all are 0."""
    gains = teacher_scores.masked_fill(~mask, 0.0)
    if (gains < 0).any():
        raise InputError(
            f"A teacher score is {gains.min().item():g}; as a gain of nDCG it must not be negative. Set "
            "data.normalization to percentile or list_minmax."
        )
    places = torch.arange(gains.shape[1], device=gains.device) + 1
    ideal = (gains.sort(dim=1, descending=True).values / torch.log2(1.0 + places)).sum(1, keepdim=True)
    return gains / ideal.masked_fill(ideal == 0, float("inf"))
