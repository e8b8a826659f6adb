"""CrossEncoderModule: a cross-encoder trained on labelled positives against mined negatives of each list."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchmetrics.retrieval import RetrievalMRR, RetrievalNormalizedDCG

from retriever.agreement import TEACHER_TEMPERATURE
from retriever.batch import BatchNeeds, RetrievalBatch
from retriever.cross_encoder.cross_encoder import CrossEncoder
from retriever.cross_encoder.spec import PairSpec
from retriever.encoder.encoding import encode
from retriever.errors import InputError, require_positive
from retriever.losses.listwise import listwise_cross_entropy, listwise_distillation
from retriever.query_list_module import QueryListModule
from retriever.work import Encoded, Work


@dataclass(frozen=True)
class Candidates:
    """C passages of each of Q queries: the labelled positives, then negatives.

    Attributes:
        index: int64 [Q, C] into the batch's passages; 0 where masked.
        mask: bool [Q, C], True for real entries.
        positive: bool [Q, C], True for labelled positives.
        teacher_scores: float32 [Q, C], 0 where not ``in_list``.
        in_list: bool [Q, C], where the list's teacher scored the passage.
    """

    index: Tensor
    mask: Tensor
    positive: Tensor
    teacher_scores: Tensor
    in_list: Tensor


class CrossEncoderModule(QueryListModule):
    """Trains a cross-encoder by listwise softmax cross-entropy on labels, with distillation where asked for.

    A query's candidates are all its labelled positives and ``negatives`` unlabelled passages of its query list, drawn
    anew at every step (seeded by ``StepSeeds``, so a resumed run draws the same). This is the localized
    contrastive estimation of Gao, Dai, Callan 2021 (arXiv 2101.08751), with several positives as in
    :func:`~retriever.losses.listwise.listwise_cross_entropy`.

    Args:
        encoder: what is trained.
        negatives: unlabelled passages for each query; fewer where the list has fewer.
        negative_ranks: first and last rank in the query list, from 1, to draw negatives from. The list is ordered by
            its teacher, so ranks that start later avoid passages that only lack a label.
        dev_negatives: on dev lists, this number of unlabelled passages from the list's start, the same at every
            validation.
        distillation_weight: weight of KL( softmax(teacher / τ_t) ‖ softmax(logit / τ_s) ) over the candidates with a
            teacher score.
        temperature: τ_s of the distillation.
        teacher_temperature: τ_t of the distillation.
        **common: arguments of :class:`QueryListModule`.
    """

    needs = BatchNeeds(labels=True, all_labels=True)

    def __init__(
        self,
        encoder: CrossEncoder,
        *,
        negatives: int = 7,
        negative_ranks: Sequence[int] = (1, 50),
        dev_negatives: int = 20,
        distillation_weight: float = 0.0,
        temperature: float = 1.0,
        teacher_temperature: float = TEACHER_TEMPERATURE,
        **common,
    ) -> None:
        super().__init__(encoder, **common)
        if not isinstance(getattr(encoder, "spec", None), PairSpec):
            raise InputError("module=reranker trains a cross-encoder; choose one, for example encoder=cross_minilm.")
        require_positive(
            negatives=negatives,
            dev_negatives=dev_negatives,
            temperature=temperature,
            teacher_temperature=teacher_temperature,
        )
        if len(negative_ranks) != 2 or not 1 <= negative_ranks[0] <= negative_ranks[1]:
            raise InputError(
                f"module.negative_ranks is {list(negative_ranks)}; it is the first and the last rank, from 1."
            )
        if distillation_weight < 0:
            raise InputError(f"module.distillation_weight is {distillation_weight}; it must not be negative.")
        self.negatives, self.dev_negatives = negatives, dev_negatives
        self.negative_ranks = negative_ranks[0], negative_ranks[1]
        self.distillation_weight = distillation_weight
        self.temperature, self.teacher_temperature = temperature, teacher_temperature
        self.dev_ndcg = RetrievalNormalizedDCG(top_k=10, empty_target_action="skip")
        self.dev_mrr = RetrievalMRR(empty_target_action="skip")

    def dev_metrics(self) -> list[str]:
        """See :class:`QueryListModule`."""
        return ["loss", *(("ranking", "distillation") if self.distillation_weight else ()), "ndcg@10", "mrr"]

    def work(self, lists: float, passages: float, labels: float, dev: bool = False) -> Work:
        """See :class:`QueryListModule`."""
        return Work(pairs=lists * (labels + (self.dev_negatives if dev else self.negatives)))

    def encode_some(
        self, kind: str, queries: Sequence[str], passages: Sequence[str]
    ) -> tuple[np.ndarray, Callable[[np.ndarray], Tensor]]:
        """See :class:`QueryListModule`."""
        texts = self.encoder.tokenize(queries, "query"), self.encoder.tokenize(passages, "passage")
        lengths = self.encoder.pairs(*texts, *[np.arange(len(queries))] * 2).lengths
        return lengths, lambda rows: encode(self.encoder, self.encoder.pairs(*texts, rows, rows), self.token_budget)

    def losses(self, batch: RetrievalBatch) -> dict[str, Tensor]:
        """Draw negatives, and compute the losses on them."""
        candidates = choose_candidates(batch, self.negatives, self.negative_ranks, sample=True)
        if not (candidates.mask & ~candidates.positive).any():
            raise InputError(
                f"No list of this batch has an unlabelled passage at the ranks {self.negative_ranks[0]} to "
                f"{self.negative_ranks[1]}: check module.negative_ranks and data.list_length."
            )
        return self._losses(self.score(batch, candidates), candidates)

    def score(self, batch: RetrievalBatch, candidates: Candidates) -> Tensor:
        """Score the candidates: logits, float32 [Q, C]; 0 where masked."""
        mask = candidates.mask
        queries, passages = mask.nonzero()[:, 0], candidates.index[mask]
        pairs = self.encoder.pairs(batch.queries, batch.passages, queries.cpu().numpy(), passages.cpu().numpy())
        self._encoded = Encoded(len(pairs), len(pairs), int(pairs.lengths.sum()))
        scores = encode(self.encoder, pairs, self.token_budget, uncheckpointed_tokens=self.uncheckpointed_tokens)
        return torch.zeros(mask.shape, device=scores.device).masked_scatter(mask.to(scores.device), scores)

    def validation_step(self, batch: RetrievalBatch, batch_idx: int) -> None:
        """Log the losses and how the labelled positives are ranked, on dev lists."""
        candidates = choose_candidates(batch, self.dev_negatives, (1, batch.list_mask.shape[1]), sample=False)
        scores, mask = self.score(batch, candidates), candidates.mask
        values = {f"dev/{name}": value for name, value in self._losses(scores, candidates).items()}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=len(batch), sync_dist=True)
        number = self.dev_numbers(batch).unsqueeze(1).expand_as(mask)[mask]
        for name, metric in {"ndcg@10": self.dev_ndcg, "mrr": self.dev_mrr}.items():
            metric.update(scores[mask], candidates.positive[mask], indexes=number)
            self.log(f"dev/{name}", metric, on_step=False, on_epoch=True, batch_size=len(batch))

    def _losses(self, scores: Tensor, candidates: Candidates) -> dict[str, Tensor]:
        # under mixed precision the encoder runs in half precision, but losses never do
        with torch.autocast(scores.device.type, enabled=False):
            ranking = listwise_cross_entropy(scores, candidates.positive, candidates.mask).mean()
            if not self.distillation_weight:
                return {"loss": ranking}
            scored = candidates.in_list.any(1)  # a list may have no candidate but a positive without teacher score
            divergence = listwise_distillation(
                scores[scored],
                candidates.teacher_scores[scored],
                candidates.in_list[scored],
                self.temperature,
                self.teacher_temperature,
            ).sum() / len(scores)
            loss = ranking + self.distillation_weight * divergence
            return {"loss": loss, "ranking": ranking, "distillation": divergence}


def choose_candidates(batch: RetrievalBatch, negatives: int, ranks: tuple[int, int], sample: bool) -> Candidates:
    """Choose all labelled positives of each query, and some unlabelled passages of its list.

    Args:
        batch: with all labelled positives among its passages.
        negatives: the most unlabelled passages per query.
        ranks: first and last rank of the list, from 1, that may be a negative.
        sample: draw negatives uniformly, by torch's CPU generator; False takes the first.

    Raises:
        InputError: a query has no labelled positive.
    """
    labelled, keys = batch.labelled_keys, batch.passage_keys
    known = labelled >= 0
    if not known.any(1).all():
        without = batch.query_ids[int((~known.any(1)).nonzero()[0])]
        raise InputError(
            f"The query {without!r} of {batch.corpus} has no positive_ids; a cross-encoder is trained on labelled "
            "positives. Label it, or take it out of the lists."
        )
    place = torch.searchsorted(keys, labelled).clamp(max=len(keys) - 1)  # keys ascend
    if not torch.equal(keys[place][known], labelled[known]):
        raise InputError(
            "A batch lacks labelled positives. Give the data module what the module needs: data.needs = module.needs."
        )
    same = (keys[batch.list_index].unsqueeze(2) == labelled.unsqueeze(1)) & batch.list_mask.unsqueeze(2)
    rank = torch.arange(1, batch.list_mask.shape[1] + 1, device=keys.device)
    eligible = batch.list_mask & ~same.any(2) & (rank >= ranks[0]) & (rank <= ranks[1])
    order = torch.rand(eligible.shape).to(keys.device) if sample else rank / (len(rank) + 1)
    chosen = torch.where(eligible, order, 2.0).argsort(dim=1, stable=True)[:, :negatives]
    real = eligible.gather(1, chosen)
    index = torch.cat([place, batch.list_index.gather(1, chosen)], 1)
    mask = torch.cat([known, real], 1)
    of_positives = (same * batch.teacher_scores.unsqueeze(2)).sum(1)
    return Candidates(
        index=index.masked_fill(~mask, 0),
        mask=mask,
        positive=torch.cat([known, torch.zeros_like(real)], 1),
        teacher_scores=torch.cat([of_positives, batch.teacher_scores.gather(1, chosen).masked_fill(~real, 0.0)], 1),
        in_list=torch.cat([same.any(1), real], 1),
    )
