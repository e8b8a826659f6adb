"""What stands in a file of query lists: counts, lengths, scores, and how often the teacher agrees with the labels."""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from datamodules.query_lists import QueryList
from datamodules.text.words import count_words
from retriever.errors import InputError


@dataclass(frozen=True)
class TypeSummary:
    """N lists of one query type (or of all).

    Attributes:
        query_type: its name.
        lengths: int64 [N], candidates of each list.
        words: int64 [N], words of each query (:func:`~datamodules.text.words.count_words`).
        scores: float32 [T], the raw teacher scores of all lists; what is not finite is left out.
        best: float32 [N'], the best finite score of each list that has one.
        labelled: lists with at least one labelled positive.
        positive_first: those of them whose teacher puts a labelled positive first (the first of ties counts).
        positive_listed: those of them with a labelled positive among the candidates.
        repeated: lists whose query text stands earlier in the file, under whatever type.
    """

    query_type: str
    lengths: np.ndarray
    words: np.ndarray
    scores: np.ndarray
    best: np.ndarray
    labelled: int
    positive_first: int
    positive_listed: int
    repeated: int


@dataclass(frozen=True)
class ListSummary:
    """A file of query lists.

    Attributes:
        types: one summary per query type, in the order of their first list.
        corpora: corpus name → lists.
        examples: a few lists, drawn evenly and always the same ones, in the file's order.
    """

    types: list[TypeSummary]
    corpora: Counter[str]
    examples: list[QueryList]

    @property
    def total(self) -> TypeSummary:
        """All types together."""
        return merge(self.types)


def summarise(query_lists: Iterable[QueryList], examples: int = 5) -> ListSummary:
    """Summarise lists in one pass; besides the examples, only numbers and hashes are kept.

    Raises:
        InputError: there is no list.
    """
    tallies: dict[str, _Tally] = {}
    corpora: Counter[str] = Counter()
    drawn: list[tuple[int, QueryList]] = []
    draw = random.Random(0)
    texts: set[int] = set()
    for number, query_list in enumerate(query_lists):
        tallies.setdefault(query_list.query_type, _Tally()).add(query_list, hash(query_list.query) in texts)
        texts.add(hash(query_list.query))
        corpora[query_list.corpus] += 1
        if number < examples:
            drawn.append((number, query_list))
        elif (place := draw.randrange(number + 1)) < examples:  # every list has the same chance in the end
            drawn[place] = (number, query_list)
    if not tallies:
        raise InputError("There is no list in it.")
    types = [tally.summary(query_type) for query_type, tally in tallies.items()]
    return ListSummary(types, corpora, [query_list for _, query_list in sorted(drawn, key=lambda pair: pair[0])])


def merge(types: Sequence[TypeSummary], name: str = "all") -> TypeSummary:
    """Several summaries as one."""
    arrays = (np.concatenate([getattr(t, n) for t in types]) for n in ("lengths", "words", "scores", "best"))
    counts = ("labelled", "positive_first", "positive_listed", "repeated")
    return TypeSummary(name, *arrays, *(sum(getattr(t, n) for t in types) for n in counts))


class _Tally:
    """Counts of one type while the lists go by."""

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self.words: list[int] = []
        self.scores: list[np.ndarray] = []
        self.best: list[float] = []
        self.counts: Counter[str] = Counter()

    def add(self, query_list: QueryList, repeated: bool) -> None:
        scores = np.asarray(query_list.teacher_scores, np.float64)
        finite = scores[np.isfinite(scores)]
        self.lengths.append(len(query_list.passage_ids))
        self.words.append(count_words(query_list.query))
        self.scores.append(finite.astype(np.float32))
        if len(finite):
            self.best.append(finite.max())
        positives = set(query_list.positive_ids)
        ranked = sorted(zip(query_list.teacher_scores, query_list.passage_ids, strict=False), key=lambda pair: -pair[0])
        self.counts["labelled"] += bool(positives)
        self.counts["positive_first"] += bool(ranked) and ranked[0][1] in positives
        self.counts["positive_listed"] += not positives.isdisjoint(query_list.passage_ids)
        self.counts["repeated"] += repeated

    def summary(self, query_type: str) -> TypeSummary:
        return TypeSummary(
            query_type=query_type,
            lengths=np.array(self.lengths, np.int64),
            words=np.array(self.words, np.int64),
            scores=np.concatenate(self.scores),
            best=np.array(self.best, np.float32),
            **{name: self.counts[name] for name in ("labelled", "positive_first", "positive_listed", "repeated")},
        )
