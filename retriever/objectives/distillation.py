"""Listwise distillation: bring the student's distribution over each list near the teacher's."""

import torch
from torch import Tensor

from retriever.agreement import STUDENT_TEMPERATURE, TEACHER_TEMPERATURE
from retriever.batch import EncodedBatch
from retriever.errors import choose, require_positive
from retriever.losses.listwise import listwise_distillation, listwise_jensen_shannon, listwise_reverse_kl
from retriever.module import RetrieverModule
from retriever.objectives.temperature import Temperature

DIVERGENCES = {
    "kl": listwise_distillation,
    "reverse_kl": listwise_reverse_kl,
    "jensen_shannon": listwise_jensen_shannon,
}


class ListwiseDistillation(RetrieverModule):
    """KL( softmax(teacher / τ_t) ‖ softmax(s / τ_s) ) over each list (arXiv 2505.19274).

    Args:
        encoder: what is trained.
        temperature: τ_s of the student.
        learnable_temperature: learn τ_s from there on.
        teacher_temperature: τ_t, for teacher scores normalised to [0, 1].
        divergence: ``kl`` as above, ``reverse_kl`` with the two distributions swapped, or ``jensen_shannon``.
        **common: arguments of :class:`RetrieverModule`.
    """

    def __init__(
        self,
        encoder,
        *,
        temperature: float = STUDENT_TEMPERATURE,
        learnable_temperature: bool = False,
        teacher_temperature: float = TEACHER_TEMPERATURE,
        divergence: str = "kl",
        **common,
    ) -> None:
        super().__init__(encoder, **common)
        self.imitation = DistillationLoss(temperature, learnable_temperature, teacher_temperature, divergence)

    def objective(self, batch: EncodedBatch) -> dict[str, Tensor]:
        """Compute the divergence's mean over the queries."""
        return {"loss": self.imitation(batch).mean()}


class DistillationLoss(torch.nn.Module):
    """The listwise divergence of an encoded batch, one value per query."""

    def __init__(
        self, temperature: float, learnable_temperature: bool, teacher_temperature: float, divergence: str = "kl"
    ) -> None:
        super().__init__()
        require_positive(teacher_temperature=teacher_temperature)
        self.temperature = Temperature(temperature, learnable_temperature)
        self.teacher_temperature = teacher_temperature
        self.divergence = DIVERGENCES[choose("module.divergence", divergence, DIVERGENCES)]

    def forward(self, batch: EncodedBatch) -> Tensor:
        """Compute the divergence of each query, [Q]."""
        return self.divergence(
            batch.list_scores,
            batch.teacher_scores,
            batch.list_mask,
            self.temperature(),
            self.teacher_temperature,
        )
