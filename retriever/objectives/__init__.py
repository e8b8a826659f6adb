"""The objectives: one LightningModule each, made of the pure functions of ``retriever.losses``."""

from typing import TYPE_CHECKING

from retriever.on_demand import import_when_used

if TYPE_CHECKING:
    from retriever.objectives.combined import CombinedObjective
    from retriever.objectives.corpus import CorpusDistillation, CorpusInfoNCE
    from retriever.objectives.distillation import ListwiseDistillation
    from retriever.objectives.embedding_regression import EmbeddingRegression
    from retriever.objectives.in_batch_distillation import InBatchDistillation
    from retriever.objectives.infonce import InfoNCE
    from retriever.objectives.ranking import ApproxNDCG, LambdaLoss, MarginMSE, RankNet
else:
    __getattr__ = import_when_used(__name__)
