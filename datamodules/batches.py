"""The batch made of a draw of lists: each distinct passage once."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from datamodules.batch_sampler import Draw, WeightedLists
from datamodules.corpus_scores import CorpusScores
from datamodules.query_lists import QueryLists, ragged_take
from retriever.batch import BatchNeeds, RetrievalBatch
from retriever.encoder.tokens import TokenizedTexts
from retriever.errors import InputError, choose

CANDIDATES = ("top", "sample", "stratified")


@dataclass(frozen=True)
class ListSource(WeightedLists):
    """The lists of one file, ready for batches.

    Attributes:
        query_tokens: token ids of the queries.
        passage_tokens: token ids of the whole corpus.
        passage_embeddings: float32 [N, D] of the whole corpus where the passage encoder is frozen, else None.
        corpus_scores: the teacher's scores of all passages, where an objective needs them.
        guide: a guide's embeddings of the queries [number of lists, G] and of the whole corpus [N, G], likewise.
        hidden: bool [number of lists], whose labelled positives no query is compared with; None hides nothing.
    """

    query_tokens: TokenizedTexts
    passage_tokens: TokenizedTexts
    passage_embeddings: np.ndarray | None
    corpus_scores: CorpusScores | None = None
    guide: tuple[np.ndarray, np.ndarray] | None = None
    hidden: np.ndarray | None = None


@dataclass(eq=False)
class ListBatches(Dataset):
    """Makes the batch of a draw.

    Args:
        sources: as for the sampler.
        list_length: candidates per list, at most.
        candidates: ``top``, the teacher's best; ``sample``, its first and a random rest of the stored list, drawn anew
            every epoch; ``stratified``, its first and, of the others in ``list_length`` − 1 groups of equal size by
            teacher score, a random one of each, drawn anew likewise.
        needs: what else batches hold.
        columns: passages of a batch where an objective looks at the whole corpus
            (:class:`~datamodules.specs.CorpusScoring`).
        drawn_anew: whether passages that stand for the rest of a corpus are others in each epoch.
    """

    sources: list[ListSource]
    list_length: int
    candidates: str
    needs: BatchNeeds
    columns: int = 20_000
    drawn_anew: bool = True

    def __post_init__(self) -> None:
        """Check the values."""
        if self.list_length < 2:
            raise InputError(f"data.list_length is {self.list_length}; a list needs at least 2 candidates.")
        choose("data.candidates", self.candidates, CANDIDATES)

    def __getitem__(self, draw: Draw) -> RetrievalBatch:
        """The batch of a draw; the same draw gives the same batch."""
        random = np.random.default_rng(draw.seed)
        parts = [
            (self.sources[number], draw.places[draw.places[:, 0] == number, 1])
            for number in np.unique(draw.places[:, 0])
        ]
        chosen = [self._candidates(source.lists, at, random) for source, at in parts]
        rows = _stack([c[0] for c in chosen], -1)
        scores = _stack([c[1] for c in chosen], 0.0)
        labelled = _stack([_labels(source.lists, at, random) for source, at in parts], -1)
        mask = rows >= 0
        first = labelled[:, 0] if self.needs.labels else np.full(len(rows), -1)
        others = labelled[labelled >= 0] if self.needs.all_labels else rows[:0, 0]
        distinct = np.unique(np.concatenate([rows[mask], first[first >= 0], others]))
        source = parts[0][0]
        frozen = source.passage_embeddings is not None
        of_all: dict[str, torch.Tensor] = {}
        if self.needs.whole_corpus:
            if frozen:
                best = [s.corpus_scores.best(at, self.list_length) for s, at in parts if s.corpus_scores is not None]
                distinct = np.unique(np.concatenate([distinct, *best]))
            distinct, log_weights = self._columns(len(source.corpus), distinct, frozen, draw)
            of_all["log_weights"] = torch.from_numpy(log_weights)
        hidden = np.concatenate([np.zeros(len(at), bool) if s.hidden is None else s.hidden[at] for s, at in parts])
        if hidden.any():
            of_all["hidden_keys"] = torch.from_numpy(np.where(hidden[:, None], labelled, -1))
        if self.needs.all_scores:
            found = [s.corpus_scores(at, distinct) for s, at in parts if s.corpus_scores is not None]
            of_all["all_scores"] = torch.from_numpy(np.concatenate(found))
        if self.needs.guide:
            queries = np.concatenate([s.guide[0][at] for s, at in parts if s.guide is not None])
            of_all["guide_queries"] = torch.from_numpy(queries)
            if source.guide is not None:
                of_all["guide_passages"] = torch.from_numpy(source.guide[1][distinct])
        list_index = np.zeros_like(rows)
        list_index[mask] = np.searchsorted(distinct, rows[mask])
        positive_index = np.full(len(rows), -1)
        positive_index[first >= 0] = np.searchsorted(distinct, first[first >= 0])
        return RetrievalBatch(
            corpus=source.corpus.name,
            query_ids=[q for s, at in parts for q in s.lists.query_ids.take(at).to_pylist()],
            queries=TokenizedTexts.concatenate([s.query_tokens.select(at) for s, at in parts]),
            passages=None if frozen else source.passage_tokens.select(distinct),
            passage_embeddings=torch.from_numpy(source.passage_embeddings[distinct]) if frozen else None,
            passage_keys=torch.from_numpy(distinct),
            list_index=torch.from_numpy(list_index),
            list_mask=torch.from_numpy(mask),
            teacher_scores=torch.from_numpy(scores.astype(np.float32)),
            positive_index=torch.from_numpy(positive_index),
            labelled_keys=torch.from_numpy(labelled),
            **of_all,
        )

    def _columns(self, size: int, wanted: np.ndarray, frozen: bool, draw: Draw) -> tuple[np.ndarray, np.ndarray]:
        """Choose the passages that every query of a batch is compared with.

        Args:
            size: of the corpus.
            wanted: passages that must be among them, sorted.
            frozen: whether the corpus' embeddings are known; else there are no others.
            draw: of the batch.

        Returns:
            Rows of the corpus, sorted, int64 [P]; and the log of how many passages each counts for, float32 [P].
        """
        if not frozen:
            return wanted, np.zeros(len(wanted), np.float32)
        if size <= max(self.columns, len(wanted)):
            return np.arange(size), np.zeros(size, np.float32)
        seed = draw.seed if self.drawn_anew else (0, *draw.seed[2:])  # of every run and epoch
        others = np.setdiff1d(np.arange(size), wanted, assume_unique=True)
        count = min(len(others), max(self.columns // 4, self.columns - len(wanted)))  # a few would stand for too many
        drawn = np.random.default_rng([*seed, 1]).choice(others, count, replace=False, shuffle=False)
        rows = np.sort(np.concatenate([wanted, drawn]))
        return rows, np.where(np.isin(rows, wanted), 0.0, np.log(len(others) / count)).astype(np.float32)

    def _candidates(
        self, lists: QueryLists, at: np.ndarray, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Passage rows [Q, K], padded with −1, and scores [Q, K], padded with 0; best first."""
        rows = _padded(*ragged_take(lists.rows, lists.offsets, at), -1).astype(np.int64)
        scores = _padded(*ragged_take(lists.scores, lists.offsets, at), 0.0)
        if self.candidates == "top" or rows.shape[1] <= self.list_length:
            return rows[:, : self.list_length], scores[:, : self.list_length]
        if self.candidates == "sample":
            priority = np.where(rows >= 0, random.random(rows.shape), 2.0)
            priority[:, 0] = -1.0
            kept = np.sort(np.argsort(priority, axis=1)[:, : self.list_length], axis=1)
        else:
            others, groups = (rows >= 0).sum(axis=1, keepdims=True) - 1, self.list_length - 1
            edges = np.arange(groups + 1) * others // groups
            drawn = edges[:, :-1] + (random.random((len(rows), groups)) * np.diff(edges)).astype(int)
            kept = np.where(others > groups, 1 + drawn, np.arange(1, self.list_length))
            kept = np.concatenate([np.zeros((len(rows), 1), int), kept], axis=1)
        return np.take_along_axis(rows, kept, 1), np.take_along_axis(scores, kept, 1)


def _labels(lists: QueryLists, at: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Labelled positives [Q, M], padded with −1; a random one of each query first."""
    labelled = _padded(*ragged_take(lists.positive_rows, lists.positive_offsets, at), -1, at_least=1).astype(np.int64)
    priority = np.where(labelled >= 0, random.random(labelled.shape), 2.0)
    return np.take_along_axis(labelled, np.argsort(priority, axis=1), 1)


def _padded(values: np.ndarray, offsets: np.ndarray, fill: float, at_least: int = 0) -> np.ndarray:
    lengths = np.diff(offsets)
    columns = np.arange(max(lengths.max(initial=0), at_least))
    mask = columns[None, :] < lengths[:, None]
    padded = np.full(mask.shape, fill, dtype=values.dtype)
    padded[mask] = values
    return padded


def _stack(parts: list[np.ndarray], fill: float) -> np.ndarray:
    width = max(p.shape[1] for p in parts)
    return np.concatenate([np.pad(p, ((0, 0), (0, width - p.shape[1])), constant_values=fill) for p in parts])
