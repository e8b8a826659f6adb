"""Diagnostics of a training batch: gradients of an objective's parts, agreement with the teacher, embedding spread.

Pure functions, and :class:`WholeBatch`, which puts the rows of all ranks together. ``Q`` queries, ``K`` passages of a
list, ``D`` dimensions. Nothing here draws from torch's global generator or changes a gradient.
"""

from collections.abc import Mapping
from itertools import combinations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from retriever.batch import EncodedBatch
from retriever.distributed.ranks import gather_rows, gather_sizes
from retriever.losses.listwise import at_least_float32, masked_log_softmax
from retriever.losses.query_blocks import in_query_blocks


class WholeBatch:
    """Rows of all ranks together, as one process with the whole batch would hold them; all ranks must take part.

    Attributes:
        share: this rank's share of the queries, in (0, 1].
    """

    def __init__(self, batch: EncodedBatch) -> None:
        device = batch.queries.device
        self._queries = gather_sizes(len(batch.queries), device)
        self._passages = gather_sizes(len(batch.passages), device)
        keys = gather_rows(batch.passage_keys, self._passages)
        self._distinct, self._place, self._times = torch.unique(keys, return_inverse=True, return_counts=True)
        self.share = len(batch.queries) / sum(self._queries)

    def of_queries(self, rows: Tensor) -> Tensor:
        """Gather rows of this rank's queries into rows of all queries, in rank order."""
        return gather_rows(rows, self._queries)

    def passage_sums(self, rows: Tensor) -> Tensor:
        """Gather rows [P, …] of this rank's passages into one row for each distinct passage, summed over ranks."""
        rows = gather_rows(rows, self._passages)
        return rows.new_zeros(len(self._distinct), *rows.shape[1:]).index_add_(0, self._place, rows)

    def passage_means(self, rows: Tensor) -> Tensor:
        """Gather rows [P, D] likewise, averaged over the ranks that share a passage."""
        return self.passage_sums(rows) / self._times.unsqueeze(1)


def embedding_gradients(
    parts: Mapping[str, Tensor], batch: EncodedBatch, whole: WholeBatch
) -> dict[str, dict[str, Tensor]]:
    """Compute the gradient of each part of an objective with respect to the embeddings, of all ranks.

    The backward pass stops at the embeddings, so nothing is encoded again, and it leaves graph and ``grad`` as they
    are. Parts are taken as the objective returns them, without the weights that they have in the loss.

    Args:
        parts: name → scalar, each a mean over this rank's queries; those without a gradient are left out.
        batch: the embedded batch that they were computed from.
        whole: of this batch.

    Returns:
        ``query`` and ``passage``, where these have a gradient → part → gradient of the mean over all ranks' queries:
        [ΣQ, D], and [P', D] with a row for each distinct passage. Zeros for a part that does not depend on them.
    """
    sides = {"query": batch.queries, "passage": batch.passages}
    sides = {side: embeddings for side, embeddings in sides.items() if embeddings.requires_grad}
    together = {"query": whole.of_queries, "passage": whole.passage_sums}
    found: dict[str, dict[str, Tensor]] = {side: {} for side in sides}
    for name, value in parts.items():
        if not sides or not value.requires_grad:
            continue
        share = torch.full_like(value, whole.share)
        gradients = torch.autograd.grad(
            value, list(sides.values()), share, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        for side, gradient in zip(sides, gradients, strict=True):
            found[side][name] = together[side](gradient)
    return found


def norms_and_cosines(gradients: Mapping[str, Tensor]) -> tuple[dict[str, float], dict[tuple[str, str], float]]:
    """Compute the Euclidean norm of each gradient, and the cosine of each two that are not 0.

    Args:
        gradients: name → tensor, all of one shape.
    """
    norms = {name: float(torch.linalg.vector_norm(gradient)) for name, gradient in gradients.items()}
    directions = {name: gradients[name].flatten() / norm for name, norm in norms.items() if norm > 0}
    return norms, {(a, b): float(directions[a] @ directions[b]) for a, b in combinations(directions, 2)}


def kendall_tau_b(scores: Tensor, teacher_scores: Tensor, list_mask: Tensor) -> Tensor:
    """Compute Kendall's rank correlation of student and teacher over each list, corrected for ties.

    (C − D) / √((n − t_s)(n − t_t)): C concordant, D discordant and n all pairs, t_s and t_t pairs that the student or
    the teacher ties (Kendall 1945, "The treatment of ties in ranking problems", Biometrika 33(3), 239–251).

    Args:
        scores: the student's, [Q, K]; values where ``list_mask`` is False are not looked at.
        teacher_scores: [Q, K], likewise.
        list_mask: bool [Q, K].

    Returns:
        float32 [Q], in [−1, 1]; nan where one side ties all passages, or there is but one.
    """

    def taus(scores: Tensor, teacher_scores: Tensor, mask: Tensor) -> Tensor:
        pairs = mask.unsqueeze(1) & mask.unsqueeze(2)

        def order(values: Tensor) -> Tensor:
            values = values.masked_fill(~mask, 0.0)
            return (values.unsqueeze(2) - values.unsqueeze(1)).sign().float() * pairs

        student, teacher = order(scores), order(teacher_scores)
        untied = student.abs().sum((1, 2)).sqrt() * teacher.abs().sum((1, 2)).sqrt()
        return (student * teacher).sum((1, 2)) / untied

    return in_query_blocks(taus, scores, teacher_scores, list_mask, numbers_per_query=list_mask.shape[1] ** 2)


def top1_agreement(scores: Tensor, teacher_scores: Tensor, list_mask: Tensor) -> Tensor:
    """Tell of each list whether the student's first passage is the teacher's, or one that the teacher ties with it.

    Args:
        scores: the student's, [Q, K]; values where ``list_mask`` is False are not looked at.
        teacher_scores: [Q, K], likewise.
        list_mask: bool [Q, K], at least one True in each row.

    Returns:
        bool [Q].
    """
    first = scores.masked_fill(~list_mask, float("-inf")).argmax(1, keepdim=True)
    best = teacher_scores.masked_fill(~list_mask, float("-inf")).amax(1)
    return teacher_scores.gather(1, first).squeeze(1) >= best


def teacher_entropy(teacher_scores: Tensor, list_mask: Tensor, temperature: float) -> Tensor:
    """Compute the entropy of softmax(teacher / temperature) over each list, in nats: −Σ p log p.

    Args:
        teacher_scores: [Q, K]; values where ``list_mask`` is False are not looked at.
        list_mask: bool [Q, K], at least one True in each row.
        temperature: above 0.

    Returns:
        [Q], float32 or better, from 0 to the logarithm of the list's length.
    """
    return torch.special.entr(masked_log_softmax(at_least_float32(teacher_scores), list_mask, temperature).exp()).sum(1)


def duplicate_share(keys: Tensor) -> Tensor:
    """Compute the share of entries, int64 [n], whose value occurs more than once: a number in [0, 1]."""
    _, place, times = torch.unique(keys, return_inverse=True, return_counts=True)
    return (times[place] > 1).float().mean()


def anisotropy(embeddings: Tensor) -> Tensor:
    """Compute the mean cosine of two different rows: 0 for directions spread evenly, 1 for one direction.

    (‖Σ x‖² − n) / (n(n − 1)) of the normalised rows, so all pairs are counted in O(nD) (Ethayarajh 2019, arXiv
    1909.00512, estimates it from random pairs).

    Args:
        embeddings: [n, D], not zero.

    Returns:
        A number in [−1, 1]; nan for n < 2.
    """
    n = len(embeddings)
    return (normalize(embeddings).sum(0).square().sum() - n) / (n * (n - 1) or torch.nan)


def uniformity(embeddings: Tensor, most: int = 1024) -> Tensor:
    """Compute the log of the mean of e^{−2‖x − y‖²} over pairs of different normalised rows.

    The uniformity of Wang & Isola 2020, arXiv 2005.10242.

    Args:
        embeddings: [n, D], not zero.
        most: where there are more rows, this number of them is drawn, always the same ones.

    Returns:
        A number from −8 (not reached) to 0, where all rows point one way; lower is more uniform. nan for n < 2.
    """
    if len(embeddings) > most:
        drawn = torch.randperm(len(embeddings), generator=torch.Generator().manual_seed(0))[:most]
        embeddings = embeddings[drawn.to(embeddings.device)]
    rows, n = normalize(embeddings), len(embeddings)
    exponents = -2 * (2 - 2 * rows @ rows.T)
    pairs = torch.tensor(n * (n - 1.0), device=rows.device)
    return exponents.fill_diagonal_(float("-inf")).flatten().logsumexp(0) - pairs.log()


def alignment(queries: Tensor, positives: Tensor) -> Tensor:
    """Compute the squared distance of each normalised query from its normalised positive.

    The alignment of Wang & Isola 2020, arXiv 2005.10242, with α = 2.

    Args:
        queries: [Q, D].
        positives: [Q, D].

    Returns:
        [Q], in [0, 4]; lower is closer.
    """
    return (normalize(queries) - normalize(positives)).square().sum(1)
