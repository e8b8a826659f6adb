"""InfoNCE: the conventional objective, and the paper's with the teacher's positive and de-noised negatives."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from retriever.batch import EncodedBatch, Pool, matches
from retriever.errors import InputError, choose
from retriever.losses import infonce, likely_false_negatives
from retriever.module import RetrieverModule
from retriever.query_blocks import in_query_blocks
from retriever.temperature import Temperature

POSITIVES = ("teacher", "labelled")


class InfoNCE(RetrieverModule):
    """InfoNCE over the passages of all lists in the batch, of all ranks (arXiv 2505.19274).

    The conventional loss that knows nothing of a teacher is ``positive="labelled", false_negative_threshold=None``.
    Other labelled positives of a query are never its negatives there.

    Args:
        encoder: what is trained.
        temperature: τ of the softmax.
        learnable_temperature: learn τ from there on.
        positive: ``teacher``, the passage that the teacher ranks first, or ``labelled``, one of ``positive_ids``.
        false_negative_threshold: take passages of the own list with a teacher score above this share of the list's best
            out of the query's pool, wherever they stand in the batch (the paper: 0.6). None takes out none.
        multiset: count a passage as often as it stands in lists of the batch (the paper); False counts it once.
        **common: arguments of :class:`RetrieverModule`.
    """

    def __init__(
        self,
        encoder,
        *,
        temperature: float = 0.01,
        learnable_temperature: bool = False,
        positive: str = "teacher",
        false_negative_threshold: float | None = 0.6,
        multiset: bool = True,
        **common,
    ) -> None:
        super().__init__(encoder, **common)
        self.contrast = Contrast(temperature, learnable_temperature, positive, false_negative_threshold, multiset)

    @property
    def uses_labels(self) -> bool:
        """Whether the positive is a labelled one."""
        return self.contrast.positive == "labelled"

    def objective(self, batch: EncodedBatch) -> dict[str, Tensor]:
        """InfoNCE's mean over the queries."""
        return {"loss": self.contrast(batch).mean()}


class Contrast(torch.nn.Module):
    """The InfoNCE of an encoded batch, one value per query; arguments as in :class:`InfoNCE`."""

    def __init__(
        self,
        temperature: float,
        learnable_temperature: bool,
        positive: str,
        false_negative_threshold: float | None,
        multiset: bool,
    ) -> None:
        super().__init__()
        self.temperature = Temperature(temperature, learnable_temperature)
        self.positive = choose("module.positive", positive, POSITIVES)
        if false_negative_threshold is not None and not 0 <= false_negative_threshold <= 1:
            raise InputError(
                f"module.false_negative_threshold is {false_negative_threshold}; it is a share of the best teacher "
                "score, in [0, 1], or null for no mask."
            )
        self.false_negative_threshold = false_negative_threshold
        self.multiset = multiset

    def forward(self, batch: EncodedBatch) -> Tensor:
        """InfoNCE of each query, [Q]."""
        positive = self._positive(batch)
        pool = batch.pool(positive)
        counts = pool.counts if self.multiset else _once_each(pool)
        temperature = self.temperature()
        unique = torch.unique(pool.keys, return_inverse=True)

        def losses(queries: Tensor, positive: Tensor, excluded_keys: Tensor) -> Tensor:
            scores = queries @ pool.embeddings.T
            return infonce(scores, positive, temperature, counts, matches(pool.keys, excluded_keys, unique))

        return in_query_blocks(
            losses,
            batch.queries,
            positive + pool.offset,
            self._excluded_keys(batch, positive),
            numbers_per_query=len(pool.keys),
        )

    @torch.no_grad()
    def masked_share(self, batch: EncodedBatch) -> Tensor:
        """Share of each query's pool, its positive aside, that is masked: no negative of this query.

        Entries count as they do in the loss: by ``multiset``, over all ranks, which must all take part. Masked are the
        positive where it stands again, likely false negatives, and other labelled positives.

        Returns:
            float32 [Q], in [0, 1]; 0 where the pool holds nothing but the positive.
        """
        positive = self._positive(batch)
        # keys and counts are all that is looked at, so one column of the embeddings is enough to gather
        pool = replace(batch, passages=batch.passages[:, :1]).pool(positive)
        counts = pool.counts if self.multiset else _once_each(pool)
        unique = torch.unique(pool.keys, return_inverse=True)

        def masked(excluded_keys: Tensor) -> Tensor:
            return matches(pool.keys, excluded_keys, unique).to(counts.dtype) @ counts

        of_pool = in_query_blocks(masked, self._excluded_keys(batch, positive), numbers_per_query=len(pool.keys))
        return (of_pool - 1) / (counts.sum() - 1).clamp(min=1)

    def _positive(self, batch: EncodedBatch) -> Tensor:
        if self.positive == "labelled":
            if (batch.positive_index < 0).any():
                raise InputError(
                    "module.positive is 'labelled', but some lists have no positive_ids. Label them, or set "
                    "module.positive=teacher."
                )
            return batch.positive_index
        return batch.teachers_first

    def _excluded_keys(self, batch: EncodedBatch, positive: Tensor) -> Tensor:
        """Own positive, likely false negatives of the own list, other labelled positives: keys [Q, M], −1 for none."""
        chosen = [batch.passage_keys[positive].unsqueeze(1)]
        if self.positive == "labelled":
            chosen.append(batch.labelled_keys)
        if self.false_negative_threshold is not None:
            likely = likely_false_negatives(batch.teacher_scores, batch.list_mask, self.false_negative_threshold)
            chosen.append(batch.passage_keys[batch.list_index].masked_fill(~likely, -1))
        return torch.cat(chosen, 1)


def _once_each(pool: Pool) -> Tensor:
    """Counts by which the rows of one passage (one row per rank that holds it) sum to 1."""
    distinct, column_of, rows = torch.unique(pool.keys, return_inverse=True, return_counts=True)
    in_pool = torch.zeros(len(distinct), device=pool.counts.device).index_add(0, column_of, pool.counts) > 0
    return in_pool[column_of] / rows[column_of]
