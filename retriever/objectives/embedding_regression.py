"""Embedding regression: draw the student's embeddings to a stronger encoder's, text by text."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from retriever.batch import BatchNeeds, EncodedBatch
from retriever.errors import InputError, choose
from retriever.losses.embedding import cosine_distance, squared_distance
from retriever.module import RetrieverModule

DISTANCES = {"squared": squared_distance, "cosine": cosine_distance}


class EmbeddingRegression(RetrieverModule):
    """Distance of the student's embedding of each query to the teacher's, and of each passage where these are trained.

    The teacher is ``passage_encoder`` or, without one, ``data.guide``; it encodes each text once. Neither its scores
    nor labels are looked at, so any texts will do (LEAF, arXiv 2509.12539). A passage counts once for each list that it
    is in.

    Args:
        encoder: what is trained; of the teacher's width, perhaps by a projection.
        distance: ``squared``, ‖x − t‖², or ``cosine``, 1 − cos(x, t). Between embeddings of length 1 the first is twice
            the second.
        passage_weight: of the mean over a list's passages, beside 1 of its query; 0 leaves passages out. It does
            nothing where passages are not trained.
        **common: arguments of :class:`RetrieverModule`.
    """

    imitates_guide = True

    def __init__(self, encoder, *, distance: str = "squared", passage_weight: float = 1.0, **common) -> None:
        super().__init__(encoder, **common)
        if not 0 <= passage_weight < float("inf"):
            raise InputError(
                f"module.passage_weight is {passage_weight}; it must be a finite number that is not negative."
            )
        self.distance = DISTANCES[choose("module.distance", distance, DISTANCES)]
        self.passage_weight = passage_weight

    @property
    def needs(self) -> BatchNeeds:
        """See :class:`RetrieverModule`; the teacher's embeddings."""
        return replace(super().needs, guide=True, texts_alone=True)

    def objective(self, batch: EncodedBatch) -> dict[str, Tensor]:
        """Compute the distances' mean over the queries, and both parts for the log where there are two.

        Raises:
            InputError: the batch holds no embeddings of a teacher, or of another width.
        """
        if batch.guide_queries is None or batch.guide_passages is None:
            raise InputError(
                "The objective draws embeddings to a teacher's, but batches hold none. Give the data module what the "
                "module needs: data.needs = module.needs."
            )
        queries = self._distances(batch.queries, batch.guide_queries).mean()
        if not self.train_passage_encoder or not self.passage_weight:
            return {"loss": queries}
        of_lists = self._distances(batch.passages, batch.guide_passages)[batch.list_index]
        counts = batch.list_mask.sum(1)
        passages = (torch.where(batch.list_mask, of_lists, 0.0).sum(1) / counts).mean()
        return {"loss": queries + self.passage_weight * passages, "queries": queries, "passages": passages}

    def _distances(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare with the teacher's first dimensions where the student's are a prefix (``matryoshka_dimensions``)."""
        width = student.shape[1]
        if self.matryoshka is not None and width in self.matryoshka.dimensions and width < teacher.shape[1]:
            teacher = normalize(teacher[:, :width], dim=1) if self.matryoshka.normalize else teacher[:, :width]
        if width != teacher.shape[1]:
            raise InputError(
                f"The student's embeddings have {width} dimensions and the teacher's {teacher.shape[1]}: project the "
                f"student's, retriever.encoder.projection.project(encoder, {teacher.shape[1]})."
            )
        return self.distance(student, teacher)
