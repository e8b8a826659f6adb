"""Losses over a whole corpus, or over a weighted sample of it, as pure functions: one value per query, by log-sum-exp.

``Q`` queries, ``P`` passages. ``log_weights`` says for how many passages of the corpus each of the P counts: 0 for one
that is there for itself, log((N − U) / M) for each of M that are drawn, all alike, of the N − U others. Then
Σ_p w_p f(p) over the P is an unbiased estimate of Σ f over the corpus. −∞ leaves a passage out.
"""

import torch
from torch import Tensor

from retriever.losses.listwise import Scalar, at_least_float32


def corpus_distillation(
    scores: Tensor, teacher_scores: Tensor, log_weights: Tensor, temperature: Scalar, teacher_temperature: Scalar
) -> Tensor:
    """Compute the KL divergence of the student's distribution over the corpus from the teacher's.

    Σ_p w_p p_t(p) (log p_t(p) − log p_s(p)), where p_t(p) = e^{t_p/τ_t} / Σ_j w_j e^{t_j/τ_t}, and p_s likewise: the
    listwise distillation of arXiv 2505.19274, with the corpus for a list.

    Args:
        scores: the student's, [Q, P].
        teacher_scores: [Q, P].
        log_weights: [P], or [Q, P].
        temperature: τ_s > 0.
        teacher_temperature: τ_t > 0.

    Returns:
        [Q], float32 or better, each at least 0 up to rounding.
    """
    student = _log_density(scores, log_weights, temperature)
    teacher = _log_density(teacher_scores, log_weights, teacher_temperature)
    return ((teacher + log_weights).exp() * (teacher - student)).sum(1)


def corpus_infonce(
    scores: Tensor, positive: Tensor, excluded: Tensor, log_weights: Tensor, temperature: Scalar
) -> Tensor:
    """Compute −log of the positive's share among itself and all negatives of the corpus.

    Args:
        scores: [Q, P].
        positive: int64 [Q] into the P.
        excluded: bool [Q, P], passages that are no negatives; what it says of the positive does not count.
        log_weights: [P]; the positive counts for itself alone.
        temperature: τ > 0.

    Returns:
        [Q], float32 or better, each at least 0.
    """
    scores = at_least_float32(scores)
    positive = positive.unsqueeze(1)
    logits = (scores - scores.gather(1, positive)) / temperature + log_weights
    logits = logits.masked_fill(excluded, float("-inf")).scatter(1, positive, 0.0)
    return logits.logsumexp(1)


def _log_density(scores: Tensor, log_weights: Tensor, temperature: Scalar) -> Tensor:
    """Compute log of e^{s/τ} / Σ w e^{s/τ}, [Q, P]; the best score is taken off before the division."""
    scores = at_least_float32(scores)
    logits = (scores - scores.amax(1, keepdim=True).detach()) / temperature
    return logits - torch.logsumexp(logits + log_weights, 1, keepdim=True)
