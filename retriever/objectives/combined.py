"""Listwise distillation plus a little InfoNCE."""

from dataclasses import replace

from torch import Tensor

from retriever.agreement import STUDENT_TEMPERATURE, TEACHER_TEMPERATURE
from retriever.batch import BatchNeeds, EncodedBatch
from retriever.errors import InputError
from retriever.module import RetrieverModule
from retriever.objectives.distillation import DistillationLoss
from retriever.objectives.infonce import InfoNCELoss


class CombinedObjective(RetrieverModule):
    """``distillation_weight`` × listwise distillation + ``infonce_weight`` × InfoNCE (arXiv 2505.19274: 1 and 0.1).

    Args:
        encoder: what is trained.
        distillation_weight: not negative.
        infonce_weight: not negative.
        temperature: τ_s of the distillation.
        teacher_temperature: τ_t of the distillation.
        infonce_temperature: τ of InfoNCE.
        learnable_temperature: learn τ_s and τ from there on.
        positive: as for :class:`~retriever.objectives.InfoNCE`.
        false_negative_threshold: likewise.
        multiset: likewise.
        **common: arguments of :class:`RetrieverModule`.
    """

    def __init__(
        self,
        encoder,
        *,
        distillation_weight: float = 1.0,
        infonce_weight: float = 0.1,
        temperature: float = STUDENT_TEMPERATURE,
        teacher_temperature: float = TEACHER_TEMPERATURE,
        infonce_temperature: float = 0.01,
        learnable_temperature: bool = False,
        positive: str = "teacher",
        false_negative_threshold: float | None = 0.6,
        multiset: bool = True,
        **common,
    ) -> None:
        super().__init__(encoder, **common)
        total = distillation_weight + infonce_weight
        if not min(distillation_weight, infonce_weight) >= 0 or not 0 < total < float("inf"):
            raise InputError(
                f"module.distillation_weight is {distillation_weight} and module.infonce_weight {infonce_weight}; "
                "neither may be negative, one must be above 0, and both finite."
            )
        self.distillation_weight = distillation_weight
        self.infonce_weight = infonce_weight
        self.imitation = DistillationLoss(temperature, learnable_temperature, teacher_temperature)
        self.contrast = InfoNCELoss(
            infonce_temperature, learnable_temperature, positive, false_negative_threshold, multiset
        )

    @property
    def needs(self) -> BatchNeeds:
        """See :class:`RetrieverModule`; labels where InfoNCE's positive is a labelled one."""
        return replace(super().needs, labels=self.contrast.positive == "labelled")

    def objective(self, batch: EncodedBatch) -> dict[str, Tensor]:
        """Compute the weighted sum, and both parts for the log."""
        distillation, infonce = self.imitation(batch).mean(), self.contrast(batch).mean()
        return {
            "loss": self.distillation_weight * distillation + self.infonce_weight * infonce,
            "distillation": distillation,
            "infonce": infonce,
        }
