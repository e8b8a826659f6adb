"""The objectives: one LightningModule each, made of the pure functions of ``retriever.losses``."""

from retriever.objectives.combined import CombinedObjective
from retriever.objectives.distillation import ListwiseDistillation
from retriever.objectives.in_batch_distillation import InBatchDistillation
from retriever.objectives.infonce import InfoNCE
from retriever.objectives.ranking import ApproxNDCG, LambdaLoss, MarginMSE, RankNet
