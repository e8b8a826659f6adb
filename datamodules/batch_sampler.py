"""Which lists a batch holds: seeded, by epoch and rank."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch.utils.data import Sampler

from datamodules.corpus import Corpus
from datamodules.query_lists import QueryLists, ragged_take
from retriever.batch import BatchNeeds
from retriever.errors import InputError, choose

ORDERS = ("shuffle", "rotate")
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
