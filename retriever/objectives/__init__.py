"""The objectives: one LightningModule each, over the pure functions of ``retriever.losses``."""

from retriever.objectives.combined import CombinedObjective
from retriever.objectives.distillation import ListwiseDistillation
from retriever.objectives.infonce import InfoNCE

__all__ = ["CombinedObjective", "InfoNCE", "ListwiseDistillation"]
