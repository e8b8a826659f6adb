"""What stands in a file of query lists: counts, lengths, scores, and how often the teacher agrees with the labels."""

import math
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
    of_type: dict[str, tuple[list[tuple[float, ...]], list[np.ndarray]]] = {}
    corpora: Counter[str] = Counter()
    drawn: list[tuple[int, QueryList]] = []
    draw = random.Random(0)
    texts: set[int] = set()
    for number, query_list in enumerate(query_lists):
        facts, scores = of_type.setdefault(query_list.query_type, ([], []))
        finite = np.array([score for score in query_list.teacher_scores if math.isfinite(score)], np.float32)
        facts.append((*_facts(query_list, finite), hash(query_list.query) in texts))
        scores.append(finite)
        texts.add(hash(query_list.query))
        corpora[query_list.corpus] += 1
        if number < examples:
            drawn.append((number, query_list))
        elif (place := draw.randrange(number + 1)) < examples:  # every list has the same chance in the end
            drawn[place] = (number, query_list)
    if not of_type:
        raise InputError("There is no list in it.")
    types = [_summary(query_type, *columns) for query_type, columns in of_type.items()]
    return ListSummary(types, corpora, [query_list for _, query_list in sorted(drawn, key=lambda pair: pair[0])])


def merge(types: Sequence[TypeSummary], name: str = "all") -> TypeSummary:
    """Several summaries as one."""
    arrays = (np.concatenate([getattr(t, n) for t in types]) for n in ("lengths", "words", "scores", "best"))
    counts = ("labelled", "positive_first", "positive_listed", "repeated")
    return TypeSummary(name, *arrays, *(sum(getattr(t, n) for t in types) for n in counts))


def _facts(query_list: QueryList, finite: np.ndarray) -> tuple[float, ...]:
    """Length, words, best score (nan without any); whether a positive is labelled, comes first, and is a candidate."""
    positives = set(query_list.positive_ids)
    ranked = sorted(zip(query_list.teacher_scores, query_list.passage_ids, strict=False), key=lambda pair: -pair[0])
    return (
        len(query_list.passage_ids),
        count_words(query_list.query),
        finite.max() if len(finite) else math.nan,
        bool(positives),
        bool(ranked) and ranked[0][1] in positives,
        not positives.isdisjoint(query_list.passage_ids),
    )


def _summary(query_type: str, facts: list[tuple[float, ...]], scores: list[np.ndarray]) -> TypeSummary:
    lengths, words, best, *counts = np.array(facts, np.float64).T
    return TypeSummary(
        query_type,
        lengths.astype(np.int64),
        words.astype(np.int64),
        np.concatenate(scores),
        best[~np.isnan(best)].astype(np.float32),
        *(int(count.sum()) for count in counts),
    )
