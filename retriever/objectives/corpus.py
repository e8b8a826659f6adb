"""Distillation and InfoNCE whose list is the whole corpus, or a weighted sample of it."""

from dataclasses import replace

from torch import Tensor

from retriever.agreement import CORPUS_TEACHER_TEMPERATURE, STUDENT_TEMPERATURE, corpus_divergence
from retriever.batch import BatchNeeds, EncodedBatch, membership_mask
from retriever.errors import InputError, choose, require_positive
from retriever.losses.corpus import corpus_infonce
from retriever.losses.query_blocks import in_query_blocks
from retriever.module import RetrieverModule
from retriever.objectives.infonce import POSITIVES
from retriever.objectives.temperature import Temperature


class CorpusObjective(RetrieverModule):
    """What both have in common: batches that hold the passages of the corpus and the teacher's scores of all of them.

    Where passages keep the base embeddings, those are the whole corpus, or the lists' candidates and a weighted draw of
    the rest (``data.corpus_scores.columns``). Where passages are trained, they are the distinct ones of this rank's
    lists, with the teacher score of every pair; ranks do not look at one another's.
    """

    @property
    def needs(self) -> BatchNeeds:
        """See :class:`RetrieverModule`."""
        return BatchNeeds(frozen_passages=not self.train_passage_encoder, whole_corpus=True, all_scores=True)


def made_with(tensor: Tensor | None) -> Tensor:
    """Give a batch's ``all_scores`` or ``log_weights``.

    Raises:
        InputError: the batch was made without.
    """
    if tensor is None:
        raise InputError(
            "This objective looks at the whole corpus, and the batch was made for another. Give the data module what "
            "the module needs: data.needs = module.needs."
        )
    return tensor


class CorpusDistillation(CorpusObjective):
    """KL( softmax(teacher / τ_t) ‖ softmax(s / τ_s) ) over the corpus.

    Over a list, only differences inside the list are held, and a query that learns against passages that do not may
    drift towards others. Here the teacher speaks of every passage.

    Args:
        encoder: what is trained.
        temperature: τ_s of the student.
        learnable_temperature: learn τ_s from there on.
        teacher_temperature: τ_t, for a teacher whose scores are in [0, 1].
        **common: arguments of :class:`RetrieverModule`.
    """

    def __init__(
        self,
        encoder,
        *,
        temperature: float = STUDENT_TEMPERATURE,
        learnable_temperature: bool = False,
        teacher_temperature: float = CORPUS_TEACHER_TEMPERATURE,
        **common,
    ) -> None:
        super().__init__(encoder, **common)
        require_positive(teacher_temperature=teacher_temperature)
        self.temperature = Temperature(temperature, learnable_temperature)
        self.teacher_temperature = teacher_temperature

    def objective(self, batch: EncodedBatch) -> dict[str, Tensor]:
        """Compute the divergence's mean over the queries."""
        for needed in (batch.all_scores, batch.log_weights):
            made_with(needed)
        return {"loss": corpus_divergence(batch, self.temperature(), self.teacher_temperature).mean()}


class CorpusInfoNCE(CorpusObjective):
    """InfoNCE whose negatives are all other passages of the corpus.

    Labelled positives of a query are never its negatives.

    Args:
        encoder: what is trained.
        temperature: τ of the softmax.
        learnable_temperature: learn τ from there on.
        positive: ``labelled``, one of ``positive_ids``, or ``teacher``, the passage that the teacher ranks first.
        **common: arguments of :class:`RetrieverModule`.
    """

    def __init__(
        self,
        encoder,
        *,
        temperature: float = 0.01,
        learnable_temperature: bool = False,
        positive: str = "labelled",
        **common,
    ) -> None:
        super().__init__(encoder, **common)
        self.temperature = Temperature(temperature, learnable_temperature)
        self.positive = choose("module.positive", positive, POSITIVES)

    @property
    def needs(self) -> BatchNeeds:
        """See :class:`CorpusObjective`."""
        labelled = self.positive == "labelled"
        return replace(super().needs, labels=labelled, all_scores=not labelled)

    def objective(self, batch: EncodedBatch) -> dict[str, Tensor]:
        """Compute the loss's mean over the queries.

        Raises:
            InputError: a query has no labelled positive.
        """
        by_teacher, log_weights = self.positive == "teacher", made_with(batch.log_weights)
        positive = self._teachers_first(batch) if by_teacher else batch.positive_index
        if (positive < 0).any():
            raise InputError(
                "module.positive is 'labelled', but a list has no labelled positive: take module.positive=teacher, or "
                "lists whose queries have positives."
            )

        def losses(queries: Tensor, positive: Tensor, labelled: Tensor) -> Tensor:
            excluded = membership_mask(batch.passage_keys, labelled)
            return corpus_infonce(queries @ batch.passages.T, positive, excluded, log_weights, self.temperature())

        rows = (batch.queries, positive, batch.labelled_keys)
        return {"loss": in_query_blocks(losses, *rows, numbers_per_query=len(batch.passages)).mean()}

    def _teachers_first(self, batch: EncodedBatch) -> Tensor:
        scores = made_with(batch.all_scores)
        if batch.hidden_keys is not None:
            scores = scores.masked_fill(membership_mask(batch.passage_keys, batch.hidden_keys), float("-inf"))
        return scores.argmax(1)
