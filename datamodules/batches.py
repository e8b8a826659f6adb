"""Which lists a batch holds (seeded, by epoch and rank), and the batch made of them: each distinct passage once."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from datamodules.corpus import Corpus
from datamodules.corpus_scores import CorpusScores
from datamodules.query_lists import QueryLists, ragged_take
from retriever.batch import BatchNeeds, RetrievalBatch
from retriever.encoder.tokens import TokenizedTexts
from retriever.errors import InputError, choose

ORDERS = ("shuffle", "rotate")
CANDIDATES = ("top", "sample", "stratified")
# Whatever the train batch: dev losses of runs with other batch sizes compare, and shared passages are encoded once.
DEV_BATCH_SIZE = 4096
_DEV_NUMBERS = 2**27  # teacher scores of a dev batch, where every pair of query and passage has one
# of :func:`gathered`, for each cut: bits of a number's place in the table, and how often numbers spread
_MOST_BITS = 24
_SPREADINGS = 8


@dataclass(frozen=True)
class WeightedLists:
    """The lists of one file that are used, and how often.

    Attributes:
        corpus: their corpus.
        lists: the lists; ``scores`` are normalised.
        weights: float [number of lists], passes over each list per epoch.
    """

    corpus: Corpus
    lists: QueryLists
    weights: np.ndarray


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


def fitting_batch_size(lists: int) -> int:
    """Choose the batch size for a number of train lists: the power of two nearest to its square root, 16 to 4,096.

    An epoch then has about as many steps as a step has lists: 32 for 1,000 lists, 64 for 5,000, 1,024 for a million.
    """
    return min(4096, max(16, 2 ** round(math.log2(max(1, lists)) / 2)))


def dev_batch_size(needs: BatchNeeds, list_length: int) -> int:
    """Choose the lists of a dev batch: fewer where every pair of query and passage has a teacher score."""
    return min(DEV_BATCH_SIZE, math.isqrt(_DEV_NUMBERS // (2 * list_length))) if needs.all_scores else DEV_BATCH_SIZE


@dataclass(frozen=True)
class Draw:
    """One batch to be made: lists as (source, list) pairs, int64 [Q, 2], and the seed of its random choices."""

    places: np.ndarray
    seed: tuple[int, ...]


@dataclass(eq=False)
class BatchSampler(Sampler[Draw]):
    """Batches of lists of one corpus each; another seeded order every epoch; no list left over.

    A corpus' lists are cut into batches of nearly equal size, at most ``batch_size``. Every rank gets its own share of
    each batch, so all ranks make the same number of steps, on the same corpus at a time.

    Args:
        sources: where lists come from; those of one corpus are mixed.
        batch_size: lists of a step, over all ranks.
        seed: of the order.
        order: ``shuffle`` mixes the batches of all corpora; ``rotate`` takes one of each corpus in turn, until each
            has none left; None keeps the files' order and every list once (for dev).
        rank: this process's number.
        world_size: number of processes.
        group_overlapping_lists: put lists that share passages into one batch, so that fewer distinct passages are
            encoded; see :func:`gathered`. Every list stands as often in an epoch as without, and neighbours change with
            the epoch. A batch is no uniform draw of lists then: in-batch negatives come from the neighbourhood, so they
            are harder and more often positives that nobody labelled, and a step's gradient leans to one region of the
            corpus.
    """

    sources: Sequence[WeightedLists]
    batch_size: int
    seed: int
    order: str | None = "shuffle"
    rank: int = 0
    world_size: int = 1
    group_overlapping_lists: bool = False
    epoch: int = field(default=0, init=False)
    done: tuple[int, int] | None = field(default=None, init=False)  # (epoch, batches) that a resumed run has behind it

    def __post_init__(self) -> None:
        """Check the values."""
        if self.order is not None:
            choose("data.order", self.order, ORDERS)
        if self.batch_size < self.world_size:
            raise InputError(
                f"Lists of a step: {self.batch_size} (data.batch_size, or all train lists that there are), less than "
                f"one for each of {self.world_size} ranks."
            )

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration is; Lightning does."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(-(-self._epoch_size(numbers) // self.batch_size) for numbers in self._by_corpus().values())

    def __iter__(self) -> Iterator[Draw]:
        behind = self.done[1] if self.done and self.done[0] == self.epoch else 0
        for number, places in enumerate(self._batches()):
            if number < behind:
                continue
            if len(places) < self.world_size:
                raise InputError(f"A batch has {len(places)} lists, fewer than the {self.world_size} ranks.")
            yield Draw(places[self.rank :: self.world_size], (self.seed, self.epoch, number, self.rank))

    def distinct_passages(self, list_length: int, batches: int | None = None) -> np.ndarray:
        """Count the distinct passages of each batch's lists, the first ``list_length`` of each list; int64 [batches].

        Args:
            list_length: candidates of a list, at most.
            batches: so many batches, the first ones of this epoch; None counts in all.
        """
        counts = []
        for places in self._batches()[:batches]:
            rows = []
            for number in np.unique(places[:, 0]):
                lists, at = self.sources[number].lists, places[places[:, 0] == number, 1]
                taken, offsets = ragged_take(lists.rows, lists.offsets, at)
                lengths = np.diff(offsets)
                rows.append(taken[np.arange(len(taken)) - np.repeat(offsets[:-1], lengths) < list_length])
            counts.append(len(np.unique(np.concatenate(rows))))
        return np.array(counts, np.int64)

    def _batches(self) -> list[np.ndarray]:
        random = np.random.default_rng((self.seed, self.epoch))
        queues = []
        for numbers in self._by_corpus().values():
            places = np.concatenate([self._places(n, random) for n in numbers])
            if self.order is not None:
                places = random.permutation(places)
            count = -(-len(places) // self.batch_size)
            if self.order is not None and self.group_overlapping_lists:
                places = places[self._gathered(numbers, places, count, random)]
            batches = np.array_split(places, count) if count else []
            if self.order == "rotate" and self.group_overlapping_lists:
                batches = [batches[i] for i in random.permutation(count)]
            queues.append(batches)
        if self.order == "rotate":
            longest = max(map(len, queues))
            return [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]
        batches = [batch for queue in queues for batch in queue]
        return batches if self.order is None else [batches[i] for i in random.permutation(len(batches))]

    def _gathered(self, numbers: list[int], places: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
        """An order of a corpus' places in which lists that share passages, as they are stored, stand together."""
        begins = np.cumsum([0, *(len(self.sources[n].lists) for n in numbers)])
        rows = np.concatenate([self.sources[n].lists.rows for n in numbers])
        lengths = np.concatenate([np.diff(self.sources[n].lists.offsets) for n in numbers])
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        chosen = places[:, 1] + begins[np.searchsorted(numbers, places[:, 0])]
        # the first of all lists, then their second passes, and so on: a batch holds a list twice only where two meet
        by_list = np.argsort(chosen, kind="stable")
        counts = np.unique(chosen, return_counts=True)[1]
        passes = np.empty(len(chosen), np.int64)
        passes[by_list] = np.arange(len(chosen)) - np.repeat(np.cumsum(counts) - counts, counts)
        order = []
        for number in range(counts.max(initial=0)):
            members = np.flatnonzero(passes == number)
            parts = -(-count * len(members) // len(chosen))
            order.append(members[gathered(*ragged_take(rows, offsets, chosen[members]), parts, random)])
        return np.concatenate(order) if order else np.arange(0)

    def _places(self, number: int, random: np.random.Generator) -> np.ndarray:
        """Lists of a source in this epoch: ⌊w⌋ times each, and a random share w − ⌊w⌋ of them once more."""
        weights = self.sources[number].weights
        if self.order is None:
            chosen = np.arange(len(weights))
        else:
            chosen = np.repeat(np.arange(len(weights)), weights.astype(int))
            for fraction in np.unique(weights % 1):
                members = np.flatnonzero(weights % 1 == fraction)
                chosen = np.concatenate([chosen, random.permutation(members)[: round(fraction * len(members))]])
        return np.stack([np.full(len(chosen), number), chosen], axis=1)

    def _epoch_size(self, numbers: list[int]) -> int:
        random = np.random.default_rng(0)
        return sum(len(self._places(n, random)) for n in numbers)

    def _by_corpus(self) -> Mapping[str, list[int]]:
        groups: dict[str, list[int]] = {}
        for number, source in enumerate(self.sources):
            groups.setdefault(source.corpus.name, []).append(number)
        return groups


def gathered(rows: np.ndarray, offsets: np.ndarray, parts: int, random: np.random.Generator) -> np.ndarray:
    """An order of N lists whose consecutive parts hold few distinct passages; another for every state of ``random``.

    Lists are cut into four, each part into four, and so on, down to ``parts``. For a cut every passage begins with a
    random number; then, some times over, a list takes the mean of its passages, and a passage the mean of its lists'
    ranks. So numbers spread to where passages are shared, and lists are cut at the quartiles of theirs.

    Args:
        rows: integers [T], the passages of all lists one after the other.
        offsets: int64 [N + 1]; no list is empty.
        parts: number of batches to be cut.
        random: where the passages' first numbers come from.

    Returns:
        int64 [N], a permutation.
    """
    n, lengths = len(offsets) - 1, np.diff(offsets)
    bits = min(_MOST_BITS, len(rows).bit_length() + 1)
    order, part_of, have = np.arange(n), np.zeros(n, np.uint64), 1
    while have < parts:
        # a passage has a number in each part; two of them share one by chance, rarely
        slots = np.repeat(part_of, lengths) * np.uint64(0x9E3779B97F4A7C15) + rows.astype(np.uint64)
        slots = (slots * np.uint64(0xBF58476D1CE4E5B9) >> np.uint64(64 - bits)).astype(np.int32)
        value = random.random(1 << bits, np.float32)
        times = np.maximum(np.bincount(slots, minlength=len(value)), 1)
        rank = np.empty(n, np.float32)
        for _ in range(_SPREADINGS):
            mean = np.add.reduceat(value[slots], offsets[:-1]) / lengths
            order = np.lexsort((mean, part_of))
            rank[order] = np.arange(n) / n
            value = (np.bincount(slots, np.repeat(rank, lengths), len(value)) / times).astype(np.float32)
        have = min(4 * have, parts)
        part_of[order] = np.arange(n) * have // n
    return order


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
