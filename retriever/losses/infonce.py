"""InfoNCE over a pool of passages, and rules for which passages are no negatives, as pure functions.

``Q`` queries, ``P`` passages of the pool, ``K`` passages of a list. Scores are cosines (or inner products), not yet
divided by a temperature.
"""

from torch import Tensor

from retriever.losses.listwise import at_least_float32


def infonce(
    scores: Tensor,
    positive: Tensor,
    temperature: float | Tensor,
    counts: Tensor | None = None,
    excluded: Tensor | None = None,
    hardness: float = 0.0,
) -> Tensor:
    """Compute InfoNCE over a pool in which a passage may count several times or not at all.

    −log( e^{s⁺/τ} / ( e^{s⁺/τ} + Σ_p c_p e^{s_p/τ} ) ), where the sum runs over every passage but the positive and
    those excluded (arXiv 2505.19274, its InfoNCE objective; van den Oord et al. 2018, arXiv 1807.03748).

    Args:
        scores: [Q, P].
        positive: int64 [Q], the column of each query's positive. It counts once, whatever ``counts`` and ``excluded``
            say of that column.
        temperature: τ > 0.
        counts: [P] or [Q, P], not negative: how often each passage counts in the pool; None counts each once.
        excluded: bool [Q, P], True where a passage is no negative of that query.
        hardness: α ≥ 0: a negative also counts e^{α s_p} times, by its score as a number without gradient, so that
            hard ones weigh more (arXiv 2503.04812, there 9; 2509.20354, there 5).

    Returns:
        [Q], each at least 0; 0 for a query that has no negative.
    """
    scores = at_least_float32(scores)
    positive = positive.unsqueeze(1)
    # the difference is taken before the division: exact where it matters, at scores close to the positive's
    logits = (scores - scores.gather(1, positive)) / temperature
    if hardness:
        logits = logits + hardness * scores.detach()
    if counts is not None:
        logits = logits + counts.to(logits.dtype).log()
    if excluded is not None:
        logits = logits.masked_fill(excluded, float("-inf"))
    logits = logits.scatter(1, positive, 0.0)
    return logits.logsumexp(1)


def likely_false_negatives(teacher_scores: Tensor, list_mask: Tensor, threshold: float) -> Tensor:
    """Find entries whose teacher score is above ``threshold`` × the list's best one.

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


def above_positive(scores: Tensor, positive_scores: Tensor, share: float, margin: float) -> Tensor:
    """Find passages that score too near their query's positive to be negatives.

    Above s⁺ − (1 − share) · |s⁺| − margin: the positive-aware limits of arXiv 2407.15831, a share of the positive's
    score (TopK-PercPos, there 0.95) and a margin below it (TopK-MarginPos), in one. The absolute value keeps the limit
    below a positive whose score is negative.

    Args:
        scores: [Q, P], of a teacher or of the student itself.
        positive_scores: [Q, 1], likewise.
        share: in [0, 1]; 1 leaves the margin alone.
        margin: not negative; 0 leaves the share alone.

    Returns:
        bool [Q, P].
    """
    return scores > positive_scores - (1 - share) * positive_scores.abs() - margin
