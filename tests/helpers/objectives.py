"""Every objective, once: what is added here is held by the tests of losses and of ranks, and broken by the mutants."""

from __future__ import annotations

import inspect
from typing import Any

from retriever.module import RetrieverModule
from retriever.objectives import (
    ApproxNDCG,
    CombinedObjective,
    CorpusDistillation,
    CorpusInfoNCE,
    EmbeddingRegression,
    InBatchDistillation,
    InfoNCE,
    LambdaLoss,
    ListwiseDistillation,
    MarginMSE,
    RankNet,
)

# what is tried → the class and its options; a line for each option that pools passages of other queries or of other
# ranks, since the ranks' gradients are compared with each
OBJECTIVES: dict[str, tuple[type[RetrieverModule], dict[str, Any]]] = {
    "infonce": (InfoNCE, {}),
    "infonce, each passage once": (InfoNCE, {"multiset": False}),
    "infonce, labelled": (InfoNCE, {"positive": "labelled", "false_negative_threshold": None}),
    "infonce, limited by the teacher": (InfoNCE, {"positive": "labelled", "positive_aware": "teacher"}),
    "infonce, limited by the student": (InfoNCE, {"positive_aware": "student", "negative_share": 1.0}),
    "infonce, limited by a guide": (InfoNCE, {"positive_aware": "guide", "negative_share": 1.0}),
    "infonce, symmetric, hard": (InfoNCE, {"symmetric": True, "hardness": 5.0, "learnable_temperature": True}),
    "infonce, symmetric, limited by a guide": (InfoNCE, {"symmetric": True, "positive_aware": "guide"}),
    "distillation": (ListwiseDistillation, {}),
    "distillation, orthogonal": (ListwiseDistillation, {"orthogonal_weight": 3.0}),
    "combined": (CombinedObjective, {"infonce_weight": 1.0, "learnable_temperature": True}),
    "combined, matryoshka": (CombinedObjective, {"matryoshka_dimensions": [16, 8]}),
    "distillation, in batch": (InBatchDistillation, {"learnable_temperature": True}),
    "distillation, in batch, masked": (InBatchDistillation, {"false_negative_share": 0.99, "unknown_margin": 0.1}),
    "distillation, corpus": (CorpusDistillation, {"learnable_temperature": True}),
    "infonce, corpus": (CorpusInfoNCE, {}),
    "embedding regression": (EmbeddingRegression, {}),
    "embedding regression, matryoshka": (EmbeddingRegression, {"matryoshka_dimensions": [16]}),
    "margin_mse": (MarginMSE, {}),
    "ranknet": (RankNet, {}),
    "approx_ndcg": (ApproxNDCG, {}),
    "lambdaloss": (LambdaLoss, {}),
}
OF_CORPUS = (CorpusDistillation, CorpusInfoNCE)  # where passages are trained, over the passages of each rank alone
CLASSES = list(dict.fromkeys(objective for objective, _ in OBJECTIVES.values()))
COMPARING = [kind for kind in CLASSES if kind is not EmbeddingRegression]  # queries with passages, by inner products
CONTRASTIVE = (InfoNCE, CombinedObjective)  # these take passages out of a pool of negatives


def learnable(objective: type[RetrieverModule]) -> dict[str, bool]:
    """The option that has an objective learn its temperature, where it has one."""
    known = {name for part in objective.__mro__ for name in inspect.signature(part.__init__).parameters}
    return dict.fromkeys(known & {"learnable_temperature"}, True)
