"""Batches of query lists: as a training step gets them (token ids) and as an objective gets them (embeddings)."""

from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from torch import Tensor

from retriever.distributed.ranks import gather_rows, gather_sizes, rank
from retriever.encoder.tokens import TokenizedTexts
from retriever.errors import InputError
from retriever.losses.query_blocks import in_query_blocks


@dataclass(frozen=True)
class BatchNeeds:
    """What an objective needs of a batch, beside queries, lists and teacher scores.

    Attributes:
        labels: one labelled positive of each query, drawn anew every epoch, among the passages.
        all_labels: all labelled positives of each query among the passages.
        frozen_passages: embeddings of the passages by the base model, in place of their tokens.
        whole_corpus: where passages are frozen, all of the corpus, or a weighted draw of it.
        all_scores: the teacher's score of every passage for every query.
        guide: embeddings of queries and passages by another encoder, which is not trained.
        texts_alone: neither candidates nor teacher scores nor labels: any texts will do.
    """

    labels: bool = False
    all_labels: bool = False
    frozen_passages: bool = False
    whole_corpus: bool = False
    all_scores: bool = False
    guide: bool = False
    texts_alone: bool = False


@dataclass(frozen=True, kw_only=True)
class ListTensors:
    """What Q query lists over P distinct passages of one corpus say, whether as token ids or as embeddings.

    Attributes:
        passage_keys: int64 [P], equal for equal passages, also between ranks (the passage's row in its corpus).
        list_index: int64 [Q, K] into the P passages, best first by the teacher.
        list_mask: bool [Q, K], False where a list is shorter than K.
        teacher_scores: float32 [Q, K], normalised; 0 where masked.
        positive_index: int64 [Q] into the P passages: the labelled positive to train on; −1 where there is none, or
            :class:`BatchNeeds` asks for no labels.
        labelled_keys: int64 [Q, M], the passage keys of all labelled positives, padded with −1.
        all_scores: float32 [Q, P], the teacher's of every passage; None where :class:`BatchNeeds` asks for none.
        log_weights: float32 [P], log of how many passages of the corpus each counts for; None likewise, where none is
            asked for.
        guide_queries: float32 [Q, G], by another encoder; None likewise.
        guide_passages: float32 [P, G], by it.
        hidden_keys: int64 [Q, M], the keys of passages that a query is not compared with where an objective looks
            beyond its list, padded with −1; None where there are none.
    """

    passage_keys: Tensor
    list_index: Tensor
    list_mask: Tensor
    teacher_scores: Tensor
    positive_index: Tensor
    labelled_keys: Tensor
    all_scores: Tensor | None = None
    log_weights: Tensor | None = None
    guide_queries: Tensor | None = None
    guide_passages: Tensor | None = None
    hidden_keys: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class RetrievalBatch(ListTensors):
    """Q query lists over P distinct passages of one corpus.

    Attributes:
        corpus: the corpus's name.
        query_ids: Q ids, for messages.
        queries: token ids of the Q queries.
        passages: token ids of the P distinct passages; None where their embeddings are given.
        passage_embeddings: float32 [P, D] of a frozen passage encoder; None where passages are encoded.
    """

    corpus: str
    query_ids: list[str]
    queries: TokenizedTexts
    passages: TokenizedTexts | None
    passage_embeddings: Tensor | None

    def __len__(self) -> int:
        return len(self.query_ids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "RetrievalBatch":
        """Move the tensors; token ids stay where they are until their micro-batch is encoded."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: t.to(device, non_blocking=non_blocking) for name, t in tensors.items()})

    def encoded(self, queries: Tensor, passages: Tensor) -> "EncodedBatch":
        """The same lists over embeddings, [Q, D] and [P, D]."""
        lists = {field.name: getattr(self, field.name) for field in fields(ListTensors)}
        return EncodedBatch(queries=queries, passages=passages, **lists)


@dataclass(frozen=True)
class Pool:
    """The passages of all ranks, among which in-batch negatives are found.

    Attributes:
        embeddings: [P', D], with gradient to the rank that encoded them.
        keys: int64 [P'], equal for equal passages; a passage that two ranks hold is in the pool twice.
        counts: float32 [P'], how many candidate sets of the rank that holds it a passage is in. A query's candidate set
            is its list and the labelled positive it trains on. Summed over equal keys this is the count over the whole
            batch, so that log-sum-exp over rows counts as one process with all lists would.
        offset: where this rank's passages begin.
    """

    embeddings: Tensor
    keys: Tensor
    counts: Tensor
    offset: int

    @property
    def once_each(self) -> Tensor:
        """Compute counts, float32 [P'], that add up to 1 over the rows of one passage (one per rank that holds it).

        They are 0 for a passage that is in no candidate set.
        """
        distinct, column_of, rows = torch.unique(self.keys, return_inverse=True, return_counts=True)
        present = torch.zeros(len(distinct), device=self.counts.device).index_add(0, column_of, self.counts) > 0
        return present[column_of] / rows[column_of]


@dataclass(frozen=True, kw_only=True)
class EncodedBatch(ListTensors):
    """A batch as an objective gets it: with embeddings in place of tokens.

    Attributes:
        queries: float32 [Q, D].
        passages: float32 [P, D], this rank's distinct passages.
    """

    queries: Tensor
    passages: Tensor

    @cached_property
    def list_scores(self) -> Tensor:
        """Score each query's list by the student, [Q, K]; arbitrary where masked."""

        def scores(queries: Tensor, list_index: Tensor) -> Tensor:
            return torch.einsum("qd,qkd->qk", queries, self.passages[list_index])

        numbers = self.list_index.shape[1] * self.passages.shape[1]
        return in_query_blocks(scores, self.queries, self.list_index, numbers_per_query=numbers)

    def weights_of(self, hidden_keys: Tensor | None) -> Tensor:
        """Give ``log_weights`` to queries, −inf for what is hidden from them: [P], or [n, P] where something is.

        Args:
            hidden_keys: of n queries, rows of this batch's.
        """
        assert self.log_weights is not None  # of who looks at the corpus
        if hidden_keys is None:
            return self.log_weights
        return self.log_weights.expand(len(hidden_keys), -1).masked_fill(
            membership_mask(self.passage_keys, hidden_keys), float("-inf")
        )

    @property
    def teacher_top1(self) -> Tensor:
        """Find the passage of each list that the teacher scores best (the first of tied ones), int64 [Q] into the P."""
        best = self.teacher_scores.masked_fill(~self.list_mask, float("-inf")).argmax(1, keepdim=True)
        return self.list_index.gather(1, best).squeeze(1)

    def guide(self) -> tuple[Tensor, Tensor]:
        """Give the guide's embeddings of this rank's queries and of the pool's passages, [Q, G] and [P', G].

        Every rank must call it, for it communicates.

        Raises:
            InputError: the batch has none.
        """
        if self.guide_queries is None or self.guide_passages is None:
            raise InputError(
                "The objective compares by a guide, but batches hold no embeddings of one. Give the data module what "
                "the module needs: data.needs = module.needs."
            )
        sizes = gather_sizes(len(self.passages), self.passages.device)
        return self.guide_queries, gather_rows(self.guide_passages, sizes)

    def pool(self, positive: Tensor | None = None) -> Pool:
        """Gather the passages of all ranks. Every rank must call it, for it communicates.

        Args:
            positive: int64 [Q] into the P passages: each query's positive, which joins its candidate set where the
                list does not hold it already.
        """
        counts = torch.bincount(self.list_index[self.list_mask], minlength=len(self.passages))
        if positive is not None:
            in_list = ((self.list_index == positive.unsqueeze(1)) & self.list_mask).any(1)
            counts = counts + torch.bincount(positive[~in_list], minlength=len(self.passages))
        sizes = gather_sizes(len(self.passages), counts.device)
        return Pool(
            embeddings=gather_rows(self.passages, sizes),
            keys=gather_rows(self.passage_keys, sizes),
            counts=gather_rows(counts.float(), sizes),
            offset=sum(sizes[: rank()]),
        )


def membership_mask(keys: Tensor, chosen: Tensor, unique: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Mark the columns that hold one of a query's chosen passages.

    Args:
        keys: int64 [P'], the passages of the columns, not negative; equal keys may occur.
        chosen: int64 [Q, M], passage keys; −1 chooses nothing.
        unique: ``torch.unique(keys, return_inverse=True)``, where the caller asks for several blocks of queries.

    Returns:
        bool [Q, P'].
    """
    distinct, column_of = torch.unique(keys, return_inverse=True) if unique is None else unique
    place = torch.searchsorted(distinct, chosen).clamp(max=len(distinct) - 1)
    present = distinct[place] == chosen
    found = torch.zeros(len(chosen), len(distinct), dtype=torch.int32, device=keys.device)
    found.scatter_add_(1, place, present.int())
    return found.bool()[:, column_of]
