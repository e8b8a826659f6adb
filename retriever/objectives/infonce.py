"""InfoNCE: the conventional objective, and the paper's, with the teacher's positive and fewer false negatives."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from retriever.batch import BatchNeeds, EncodedBatch, membership_mask
from retriever.distributed.ranks import gather_rows, gather_sizes, rank
from retriever.errors import InputError, choose
from retriever.losses.infonce import above_positive, infonce, likely_false_negatives
from retriever.losses.query_blocks import in_query_blocks
from retriever.module import RetrieverModule
from retriever.objectives.temperature import Temperature

POSITIVES = ("teacher", "labelled")
SCORERS = ("teacher", "student", "guide")


class InfoNCE(RetrieverModule):
    """InfoNCE over the passages of all lists in the batch, of all ranks (arXiv 2505.19274).

    ``positive="labelled", false_negative_threshold=None`` is the conventional loss, without a teacher; there, other
    labelled positives of a query are never its negatives.

    Args:
        encoder: what is trained.
        temperature: τ of the softmax.
        learnable_temperature: learn τ from there on.
        positive: ``teacher``, the passage that the teacher ranks first, or ``labelled``, one of ``positive_ids``.
        false_negative_threshold: take passages of the query's list with a teacher score above this share of the list's
            best out of its pool, whichever lists of the batch hold them too (the paper: 0.6). None takes out none.
        multiset: count a passage once for each list of the batch that holds it (the paper); False counts it once.
        positive_aware: leave out negatives that score too near the positive (arXiv 2407.15831): ``teacher`` compares
            the teacher scores of the query's list (with that of its best passage, where the list lacks the positive),
            ``student`` the student's scores of the whole pool, at that step. The student can take out passages that
            the teacher never scored, but also hides its mistakes; ``guide`` those of another encoder (``data.guide``)
            of the whole pool (GISTEmbed, arXiv 2402.16829: share 1). None takes out none.
        negative_share: leave out passages that score above this share of the positive's score. Where an encoder's
            cosines are in a narrow range, 0.95 leaves out nearly all; set it to 1 and give a margin. None: no such
            limit.
        negative_margin: lower that limit by this much.
        negative_limit: leave out passages that score above this number, whatever the positive's score. None: no such
            limit.
        symmetric: take the mean with the other direction, each query's positive against the queries of the batch, of
            all ranks. A query of which the passage is no negative is none of the passage's.
        hardness: α of :func:`~retriever.losses.infonce.infonce`: how much more hard negatives count.
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
        positive_aware: str | None = None,
        negative_share: float | None = 0.95,
        negative_margin: float = 0.0,
        negative_limit: float | None = None,
        symmetric: bool = False,
        hardness: float = 0.0,
        **common,
    ) -> None:
        super().__init__(encoder, **common)
        self.contrast = InfoNCELoss(
            temperature,
            learnable_temperature,
            positive,
            false_negative_threshold,
            multiset,
            positive_aware,
            negative_share,
            negative_margin,
            negative_limit,
            symmetric,
            hardness,
        )

    @property
    def needs(self) -> BatchNeeds:
        """See :class:`RetrieverModule`; labels where the positive is a labelled one, and a guide where one decides."""
        guided = self.contrast.positive_aware == "guide"
        return replace(super().needs, labels=self.contrast.positive == "labelled", guide=guided)

    def objective(self, batch: EncodedBatch) -> dict[str, Tensor]:
        """Compute InfoNCE's mean over the queries."""
        return {"loss": self.contrast(batch).mean()}


class InfoNCELoss(torch.nn.Module):
    """The InfoNCE of an encoded batch, one value per query; arguments as in :class:`InfoNCE`."""

    def __init__(
        self,
        temperature: float,
        learnable_temperature: bool,
        positive: str,
        false_negative_threshold: float | None,
        multiset: bool,
        positive_aware: str | None = None,
        negative_share: float | None = 0.95,
        negative_margin: float = 0.0,
        negative_limit: float | None = None,
        symmetric: bool = False,
        hardness: float = 0.0,
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
        if positive_aware is not None:
            choose("module.positive_aware", positive_aware, SCORERS)
        if not 0 <= (negative_share or 0) <= 1 or not 0 <= negative_margin < float("inf"):
            raise InputError(
                f"module.negative_share is {negative_share} and module.negative_margin {negative_margin}; the first is "
                "a share of the positive's score, in [0, 1], the second must not be negative."
            )
        self.positive_aware = positive_aware
        self.negative_share = negative_share
        self.negative_margin = negative_margin
        if positive_aware is not None and negative_share is None and negative_limit is None:
            raise InputError(
                f"module.positive_aware is {positive_aware!r}, and neither negative_share nor negative_limit says from "
                "which score on. Give one of them."
            )
        self.negative_limit = negative_limit
        self.symmetric = symmetric
        if not 0 <= hardness < float("inf"):
            raise InputError(f"module.hardness is {hardness}; it must be a finite number that is not negative.")
        self.hardness = hardness

    def forward(self, batch: EncodedBatch) -> Tensor:
        """Compute InfoNCE of each query, [Q]."""
        temperature = self.temperature()

        def losses(scores: Tensor, positive: Tensor, counts: Tensor, excluded: Tensor) -> Tensor:
            return infonce(scores, positive, temperature, counts, excluded, self.hardness)

        forward = self._over_pool(batch, losses)
        return (forward + self._of_passages(batch, temperature)) / 2 if self.symmetric else forward

    @torch.no_grad()
    def masked_share(self, batch: EncodedBatch) -> Tensor:
        """Compute the share of each query's pool, its positive aside, that is masked: no negative of this query.

        Entries count as they do in the loss: by ``multiset``, over all ranks, which must all take part. Masked are
        further copies of the positive, likely false negatives, other labelled positives, and what scores too near.

        Returns:
            float32 [Q], in [0, 1]; 0 where the pool holds nothing but the positive.
        """

        def shares(scores: Tensor, positive: Tensor, counts: Tensor, excluded: Tensor) -> Tensor:
            return (excluded.to(counts.dtype) @ counts - 1) / (counts.sum() - 1).clamp(min=1)

        return self._over_pool(batch, shares)

    def _over_pool(self, batch: EncodedBatch, function: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """Call a function on scores [Q, P'], positive [Q], counts [P'] and what is no negative [Q, P'], in blocks."""
        positive = self._positive(batch)
        pool = batch.pool(positive)
        counts = pool.counts if self.multiset else pool.once_each
        unique = torch.unique(pool.keys, return_inverse=True)
        guide_queries, guide_pool = batch.guide() if self.positive_aware == "guide" else (batch.queries, None)

        def of_block(queries: Tensor, positive: Tensor, excluded_keys: Tensor, guide_queries: Tensor) -> Tensor:
            scores = queries @ pool.embeddings.T
            excluded = membership_mask(pool.keys, excluded_keys, unique)
            excluded = self._excluded(excluded, positive, scores, guide_queries, guide_pool)
            return function(scores, positive, counts, excluded)

        return in_query_blocks(
            of_block,
            batch.queries,
            positive + pool.offset,
            self._excluded_keys(batch, positive),
            guide_queries,
            numbers_per_query=len(pool.keys),
        )

    def _of_passages(self, batch: EncodedBatch, temperature: float | Tensor) -> Tensor:
        """Compute the InfoNCE of each query's positive over the Q' queries of all ranks, [Q]."""
        positive = self._positive(batch)
        sizes = gather_sizes(len(positive), positive.device)
        own = torch.arange(len(positive), device=positive.device) + sum(sizes[: rank()])
        queries, passages = gather_rows(batch.queries, sizes), batch.passages[positive]
        with torch.no_grad():
            keys = gather_rows(batch.passage_keys[positive], sizes)
            excluded = membership_mask(keys, self._excluded_keys(batch, positive))
            guide = None
            if batch.guide_passages is not None:
                guide = gather_rows(batch.guide_passages[positive], sizes)
            scores = batch.queries @ gather_rows(passages, sizes).T
            excluded = self._excluded(excluded, own, scores, batch.guide_queries, guide)
            # row: a query, column: a positive that is none of its negatives → row: a positive of this rank
            excluded = gather_rows(excluded.byte(), sizes).T[own].bool()

        def of_block(passages: Tensor, own: Tensor, excluded: Tensor) -> Tensor:
            return infonce(passages @ queries.T, own, temperature, excluded=excluded, hardness=self.hardness)

        return in_query_blocks(of_block, passages, own, excluded, numbers_per_query=len(queries))

    def _excluded(
        self,
        excluded: Tensor,
        positive: Tensor,
        scores: Tensor,
        guide_queries: Tensor | None,
        guide_passages: Tensor | None,
    ) -> Tensor:
        """Add to what is no negative, bool [Q, P], what the student or the guide scores too near the positive."""
        if self.positive_aware == "guide":
            assert guide_queries is not None and guide_passages is not None
            scores = guide_queries @ guide_passages.T
        elif self.positive_aware != "student":
            return excluded
        return excluded | self._near(scores, scores.gather(1, positive.unsqueeze(1)))

    def _positive(self, batch: EncodedBatch) -> Tensor:
        if self.positive == "labelled":
            if (batch.positive_index < 0).any():
                raise InputError(
                    "module.positive is 'labelled', but some lists have no positive_ids. Label them, or set "
                    "module.positive=teacher."
                )
            return batch.positive_index
        return batch.teacher_top1

    def _excluded_keys(self, batch: EncodedBatch, positive: Tensor) -> Tensor:
        """Collect the keys [Q, M] of what is no negative of a query by its list, labels and sources; −1 for none."""
        list_keys = batch.passage_keys[batch.list_index]
        chosen = [batch.passage_keys[positive].unsqueeze(1)]
        if self.positive == "labelled":
            chosen.append(batch.labelled_keys)
        elif batch.hidden_keys is not None:
            chosen.append(batch.hidden_keys)  # other lists of the batch may hold them
        if self.false_negative_threshold is not None:
            likely = likely_false_negatives(batch.teacher_scores, batch.list_mask, self.false_negative_threshold)
            chosen.append(list_keys.masked_fill(~likely, -1))
        if self.positive_aware == "teacher":
            is_positive = (batch.list_index == positive.unsqueeze(1)) & batch.list_mask
            # a labelled positive that its list lacks has no teacher score; the list's best one takes its place
            known = torch.where(is_positive.any(1, keepdim=True), is_positive, batch.list_mask)
            score = batch.teacher_scores.masked_fill(~known, float("-inf")).amax(1, keepdim=True)
            near = self._near(batch.teacher_scores, score) & batch.list_mask
            chosen.append(list_keys.masked_fill(~near, -1))
        return torch.cat(chosen, 1)

    def _near(self, scores: Tensor, positive_scores: Tensor) -> Tensor:
        near = torch.zeros_like(scores, dtype=torch.bool)
        if self.negative_share is not None:
            near = above_positive(scores, positive_scores, self.negative_share, self.negative_margin)
        return near if self.negative_limit is None else near | (scores > self.negative_limit)
