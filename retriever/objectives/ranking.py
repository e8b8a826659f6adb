"""Objectives over the pairs and positions of each list: margins, orders, nDCG."""

from torch import Tensor

from retriever.agreement import STUDENT_TEMPERATURE, TEACHER_TEMPERATURE
from retriever.batch import EncodedBatch
from retriever.errors import choose, require_positive
from retriever.losses.query_blocks import in_query_blocks
from retriever.losses.ranking import LAMBDA_WEIGHTS, approx_ndcg, lambda_loss, margin_mse, ranknet
from retriever.module import RetrieverModule
from retriever.objectives.temperature import Temperature


class RankingObjective(RetrieverModule):
    """The mean over the queries of a loss of each list alone. A subclass defines :meth:`list_losses`.

    Args:
        encoder: what is trained.
        temperature: τ by which differences of student scores are divided.
        learnable_temperature: learn τ from there on.
        **common: arguments of :class:`RetrieverModule`.
    """

    def __init__(
        self,
        encoder,
        *,
        temperature: float = STUDENT_TEMPERATURE,
        learnable_temperature: bool = False,
        **common,
    ) -> None:
        super().__init__(encoder, **common)
        self.temperature = Temperature(temperature, learnable_temperature)

    def list_losses(self, scores: Tensor, teacher_scores: Tensor, list_mask: Tensor) -> Tensor:
        """Compute the loss of each list, [Q], from tensors [Q, K]."""
        raise NotImplementedError

    def objective(self, batch: EncodedBatch) -> dict[str, Tensor]:
        """Compute the loss's mean over the queries."""
        pairs = batch.list_mask.shape[1] ** 2
        rows = batch.list_scores, batch.teacher_scores, batch.list_mask
        return {"loss": in_query_blocks(self.list_losses, *rows, numbers_per_query=pairs).mean()}


class MarginMSE(RankingObjective):
    """Squared error between the student's and the teacher's margins of the teacher's first over each other passage.

    :func:`~retriever.losses.ranking.margin_mse` (arXiv 2010.02666).

    Args:
        encoder: what is trained.
        teacher_temperature: τ_t, by which teacher margins are divided.
        **common: arguments of :class:`RankingObjective`.
    """

    def __init__(self, encoder, *, teacher_temperature: float = TEACHER_TEMPERATURE, **common) -> None:
        super().__init__(encoder, **common)
        require_positive(teacher_temperature=teacher_temperature)
        self.teacher_temperature = teacher_temperature

    def list_losses(self, scores: Tensor, teacher_scores: Tensor, list_mask: Tensor) -> Tensor:
        """Compute the error of each list, [Q]."""
        return margin_mse(scores, teacher_scores, list_mask, self.temperature(), self.teacher_temperature)


class RankNet(RankingObjective):
    """Logistic loss of each pair that the teacher orders: :func:`~retriever.losses.ranking.ranknet` (Burges 2005).

    Args:
        encoder: what is trained.
        weighted: weigh each pair by the difference of its teacher scores.
        **common: arguments of :class:`RankingObjective`.
    """

    def __init__(self, encoder, *, weighted: bool = False, **common) -> None:
        super().__init__(encoder, **common)
        self.weighted = weighted

    def list_losses(self, scores: Tensor, teacher_scores: Tensor, list_mask: Tensor) -> Tensor:
        """Compute the loss of each list, [Q]."""
        return ranknet(scores, teacher_scores, list_mask, self.temperature(), self.weighted)


class ApproxNDCG(RankingObjective):
    """1 − nDCG with smooth positions: :func:`~retriever.losses.ranking.approx_ndcg` (Qin et al. 2010).

    Args:
        encoder: what is trained.
        temperature: τ of the positions.
        **common: arguments of :class:`RankingObjective`.
    """

    def __init__(self, encoder, *, temperature: float = 0.01, **common) -> None:
        super().__init__(encoder, temperature=temperature, **common)

    def list_losses(self, scores: Tensor, teacher_scores: Tensor, list_mask: Tensor) -> Tensor:
        """Compute the loss of each list, [Q]."""
        return approx_ndcg(scores, teacher_scores, list_mask, self.temperature())


class LambdaLoss(RankingObjective):
    """Logistic loss of pairs, weighted by nDCG: :func:`~retriever.losses.ranking.lambda_loss` (Wang et al. 2018).

    Args:
        encoder: what is trained.
        weights: ``ndcg_loss2`` or ``lambdarank``.
        **common: arguments of :class:`RankingObjective`.
    """

    def __init__(self, encoder, *, weights: str = "ndcg_loss2", **common) -> None:
        super().__init__(encoder, **common)
        self.weights = choose("module.weights", weights, LAMBDA_WEIGHTS)

    def list_losses(self, scores: Tensor, teacher_scores: Tensor, list_mask: Tensor) -> Tensor:
        """Compute the loss of each list, [Q]."""
        return lambda_loss(scores, teacher_scores, list_mask, self.temperature(), self.weights)
