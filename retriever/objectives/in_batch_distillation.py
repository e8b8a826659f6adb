"""Distillation over a list and the other passages of the batch, which have no teacher score."""

import torch
from torch import Tensor

from retriever.agreement import STUDENT_TEMPERATURE, TEACHER_TEMPERATURE
from retriever.batch import EncodedBatch, membership_mask
from retriever.errors import InputError
from retriever.losses.infonce import above_positive
from retriever.losses.listwise import excess_of_unknown
from retriever.losses.query_blocks import in_query_blocks
from retriever.module import RetrieverModule
from retriever.objectives.distillation import DistillationLoss


class InBatchDistillation(RetrieverModule):
    """KL over each list + ``unknown_weight`` × how far passages of unknown teacher score are above their bound.

    A divergence over the list alone fixes differences inside the list. It does not see how the list as a whole scores
    against other passages, so a query may drift until passages of other lists come before those of its list; with
    frozen passages nothing else prevents that. Here the other passages of the batch do, without being taken for
    irrelevant.

    **Derivation.** Let L be a query's list, U the passages of the batch (of all ranks, each once) outside it, q the
    student's distribution over L ∪ U, and p* the teacher's, had it scored them all. By the chain rule,

        KL(p* ‖ q) = KL( p*(L), p*(U) ‖ q(L), q(U) ) + p*(L) · KL( p*(·|L) ‖ q(·|L) ) + p*(U) · KL( p*(·|U) ‖ q(·|U) ).

    * A softmax restricted to L is the softmax over L, so the second divergence is the plain listwise one, with nothing
      assumed of U. Its weight is 1 and not p*(L), so that a list does not count less in a batch with more passages.
    * Nothing is known of the order inside U, so the third is left out.
    * In the first, the teacher's probabilities are not known but bounded. A list holds the passages that the teacher
      scored highest, so an unknown passage is assumed to score at most t_min, the list's lowest score, minus
      ``unknown_margin``. Its odds against the list as a whole, p*(u)/p*(L), are then at most
      r = e^{(t_min − margin)/τ_t} / Σ_l e^{t_l/τ_t}, and the teacher's mass on the list at least 1 / (1 + |U| r).

    The second term of the loss is the log-loss of the student's mass on the list beyond that bound. With the student's
    odds β_u = q(u)/q(L),

        −log 1 / (1 + Σ_u max(β_u, r))  +  log 1 / (1 + |U| r).

    It is 0, and without gradient, wherever the student may be right (each β_u ≤ r), and moves only those passages that
    are above their bound, each by its share of the mass. The bound holds for each passage: a bound on q(U) as a whole,
    |U| r, would let one passage have the mass that a thousand may have together.

    **What it becomes.** Without other passages, plain listwise distillation. With ``unknown_margin`` = ∞ (r = 0) the
    terms add up to KL(p, 0 ‖ q) over L ∪ U, the common practice that takes unknown for irrelevant. In between, a near
    duplicate or an unlisted answer may score as high as the list's last passage at no cost.

    **What can break the bound.** ``data.candidates=sample`` leaves out candidates that the teacher may score above the
    list's lowest; keep the margin at 0 there. Answers that mining missed may deserve a place above the list's end:
    labelled positives are taken out of U, and ``false_negative_share`` takes out passages that the student scores near
    the teacher's first. That is off by default, because it also takes out passages that drift has lifted, which this
    term is to push down.

    Args:
        encoder: what is trained.
        temperature: τ_s of the student.
        learnable_temperature: learn τ_s from there on.
        teacher_temperature: τ_t, for teacher scores normalised to [0, 1].
        unknown_weight: of the second term, not negative; 0 is plain listwise distillation.
        unknown_margin: how far below the list's lowest teacher score an unknown passage is assumed to be, in units of
            normalised teacher scores; not negative. ``.inf`` takes unknown for irrelevant.
        false_negative_share: take out unknown passages that the student scores above this share of its score of the
            teacher's first, as they are at that step (arXiv 2407.15831: 0.95). None takes out none.
        **common: arguments of :class:`RetrieverModule`.
    """

    def __init__(
        self,
        encoder,
        *,
        temperature: float = STUDENT_TEMPERATURE,
        learnable_temperature: bool = False,
        teacher_temperature: float = TEACHER_TEMPERATURE,
        unknown_weight: float = 1.0,
        unknown_margin: float = 0.0,
        false_negative_share: float | None = None,
        **common,
    ) -> None:
        super().__init__(encoder, **common)
        if not 0 <= unknown_weight < float("inf") or not unknown_margin >= 0:
            raise InputError(
                f"module.unknown_weight is {unknown_weight} and module.unknown_margin {unknown_margin}; "
                "neither may be negative, and the weight must be finite."
            )
        if false_negative_share is not None and not 0 <= false_negative_share <= 1:
            raise InputError(
                f"module.false_negative_share is {false_negative_share}; it is a share of the student's score of the "
                "teacher's first, in [0, 1], or null for no mask."
            )
        self.imitation = DistillationLoss(temperature, learnable_temperature, teacher_temperature)
        self.unknown_weight = unknown_weight
        self.unknown_margin = unknown_margin
        self.false_negative_share = false_negative_share

    def objective(self, batch: EncodedBatch) -> dict[str, Tensor]:
        """Compute the weighted sum, and both parts for the log."""
        distillation, unknown = self.imitation(batch).mean(), self._unknown(batch).mean()
        return {
            "loss": distillation + self.unknown_weight * unknown,
            "distillation": distillation,
            "unknown": unknown,
        }

    def _unknown(self, batch: EncodedBatch) -> Tensor:
        """Compute the second term of each query, [Q]."""
        pool = batch.pool()
        counts = pool.once_each
        unique = torch.unique(pool.keys, return_inverse=True)
        list_keys = batch.passage_keys[batch.list_index].masked_fill(~batch.list_mask, -1)
        temperature = self.imitation.temperature()

        def excess(
            queries: Tensor, known_keys: Tensor, list_scores: Tensor, teacher_scores: Tensor, list_mask: Tensor
        ) -> Tensor:
            scores = queries @ pool.embeddings.T
            known = membership_mask(pool.keys, known_keys, unique)
            if self.false_negative_share is not None:
                first = teacher_scores.masked_fill(~list_mask, float("-inf")).argmax(1, keepdim=True)
                known = known | above_positive(scores, list_scores.gather(1, first), self.false_negative_share, 0.0)
            return excess_of_unknown(
                scores,
                counts,
                known,
                list_scores,
                teacher_scores,
                list_mask,
                temperature,
                self.imitation.teacher_temperature,
                self.unknown_margin,
            )

        return in_query_blocks(
            excess,
            batch.queries,
            torch.cat([list_keys, batch.labelled_keys], 1),
            batch.list_scores,
            batch.teacher_scores,
            batch.list_mask,
            numbers_per_query=len(pool.keys),
        )
