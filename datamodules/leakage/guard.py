"""The leak guard of a training: lists whose query gives away an evaluation or a dev query are left out, or refused."""

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datamodules.corpus import Corpus
from datamodules.leakage.queries import find_leaks
from datamodules.leakage.same_passages import RelevantPassages, translated
from datamodules.query_lists import QueryLists, ragged_take
from retriever.errors import InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Guarded:
    """Queries (id → text) that train queries must not give away, and the passages that they are about."""

    name: str
    queries: Mapping[str, str]
    passages: RelevantPassages


@dataclass
class LeakGuard:
    """Guards some queries against others.

    Attributes:
        action: ``drop`` leaves out, ``fail`` refuses lists whose query gives away a guarded one.
        jaccard: word similarity from which two queries count as nearly equal.
        near_passages: similarity of three-word shingles from which two passages count as one; None: of one text alone.
        human_types: query types whose labelled positives are judgements.
        left_out: for the record, what was left out of which lists.
    """

    action: str
    jaccard: float
    near_passages: float | None
    human_types: Sequence[str]
    left_out: list[dict[str, Any]] = field(default_factory=list)

    def queries(
        self, name: str, corpus: Corpus, queries: Mapping[str, str], relevant: Mapping[str, Collection[str]]
    ) -> Guarded:
        """Queries with their relevant passages."""
        return Guarded(name, queries, RelevantPassages(corpus, relevant, self.near_passages))

    def lists(self, name: str, corpus: Corpus, lists: QueryLists) -> Guarded:
        """The queries of lists that are not trained on; the passages of those that humans judged."""
        queries = dict(zip(lists.query_ids.to_pylist(), lists.queries.to_pylist(), strict=True))
        human = lists.select(self._human(lists))
        relevant = dict(zip(human.query_ids.to_pylist(), human.positive_ids(corpus), strict=True))
        return self.queries(name, corpus, queries, relevant)

    def without_leaks(self, corpus: Corpus, lists: QueryLists, against: Guarded) -> QueryLists:
        """The lists whose queries give no guarded one away.

        Raises:
            InputError: the action is ``fail``, and one does.
        """
        judged: list[Collection[str]] = [()] * len(lists)
        human = np.flatnonzero(self._human(lists))
        positives, _ = ragged_take(lists.positive_rows, lists.positive_offsets, human)
        copies = against.passages.among(corpus, np.unique(positives))
        shared = corpus.rows(sorted(copies))
        number = np.repeat(np.arange(len(lists)), np.diff(lists.positive_offsets))
        sharing = np.bincount(number, np.isin(lists.positive_rows, shared), len(lists)) > 0
        concerned = human[sharing[human]]
        for position, ids in zip(concerned, lists.select(concerned).positive_ids(corpus), strict=True):
            judged[position] = ids
        relevant = translated(against.passages.relevant, copies)
        leaks = find_leaks(lists.queries, judged, against.queries, relevant, self.jaccard, copies)
        if not leaks:
            return lists
        first, source = leaks[0], lists.source
        if self.action == "fail":
            raise InputError(
                f"{source}:{lists.line[first.position]}: {lists.queries[first.position].as_py()!r} {first.reason} the "
                f"query {first.evaluation_query!r} of {against.name} ({len(leaks)} lists like this). Remove them, or "
                "set data.leak_guard=drop."
            )
        reasons = Counter(leak.reason for leak in leaks)
        said = ", ".join(f"{n} {why}" for why, n in reasons.items())
        counts = len(leaks), len(lists), source.name, said, against.name
        log.info("Leak guard: %d of %d lists of %s left out (%s a query of %s)", *counts)
        self.left_out.append({"lists": source.name, "against": against.name, "of": len(lists), **reasons})
        keep = np.ones(len(lists), dtype=bool)
        keep[[leak.position for leak in leaks]] = False
        return lists.select(keep)

    def _human(self, lists: QueryLists) -> np.ndarray:
        human = pa.array(self.human_types, lists.query_types.type)
        return pc.is_in(lists.query_types, value_set=human).to_numpy(zero_copy_only=False)


def say_off() -> None:
    """Warn that nothing is guarded."""
    log.warning(
        "The leak guard is OFF: train queries may give away evaluation queries. On SciFact this alone lifts "
        "nDCG@10 from 0.645 to 0.80. Do not report these figures as learning."
    )
