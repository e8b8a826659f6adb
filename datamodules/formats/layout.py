"""What layouts of other tools' files have in common: how they are read and written, and positives beside negatives."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from datamodules.formats.passages import CorpusPassages
from datamodules.formats.raw_lists import RawPassage, RawQueryList, ids_of, raw_query_list, required_text
from datamodules.formats.records import records
from datamodules.query_lists import QueryList
from datamodules.storage.files import write_json_lines
from retriever.errors import InputError, choose


class Layout(ABC):
    """One query a line (or a row of a table). A subclass is a dataclass; its fields are the layout's options."""

    def records(self, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        """Number and content of every line or row."""
        return records(path)

    @abstractmethod
    def parse(self, where: str, record: dict[str, Any]) -> RawQueryList:
        """What a line states."""

    @abstractmethod
    def encode(self, where: str, query_list: QueryList, passages: CorpusPassages) -> dict[str, Any]:
        """A line.

        Raises:
            InputError: the layout cannot hold this list.
        """

    def write(self, lines: Iterable[dict[str, Any]], path: Path) -> int:
        """Write the lines; return how many."""
        return write_json_lines(path, lines)


class SidedLayout(Layout):
    """Positives beside negatives, with the teacher's scores of both, or with labels alone.

    Its tool has no place for types, corpus, all positives and the order of candidates: they are written under keys that
    it does not read (``query_type``, ``corpus``, ``positive_ids``, ``passage_ids``), and are taken up again on reading.
    """

    tool: ClassVar[str]
    sides: ClassVar[tuple[str, str]]  # keys of positives and negatives
    queries: ClassVar[tuple[str, ...]]  # keys of the query, in order of preference
    scores: str

    @abstractmethod
    def read_side(
        self, where: str, record: dict[str, Any], side: str, score: float | None
    ) -> tuple[list[RawPassage], list[Any]]:
        """Passages and scores of one side; ``score`` for all of them, None for those that are stated."""

    def parse(self, where: str, record: dict[str, Any]) -> RawQueryList:
        """See :class:`Layout`."""
        by_label = choose("scores", self.scores, ("stated", "labels")) == "labels"
        both = zip(self.sides, (1.0, 0.0), strict=True)
        read = [self.read_side(where, record, side, score if by_label else None) for side, score in both]
        (positives, positive_scores), (negatives, negative_scores) = read
        passages, scores = positives + negatives, positive_scores + negative_scores
        order = ids_of(where, record, "passage_ids")
        if order is not None:
            place = {passage.id: at for at, passage in enumerate(passages)}
            stated = [passage.id for passage in passages if passage.id is not None]
            if len(stated) < len(passages) or sorted(order) != sorted(stated):
                raise InputError(
                    f"{where}: 'passage_ids' are not those of the positives and negatives. Correct or remove it."
                )
            passages, scores = ([values[place[i]] for i in order] for values in (passages, scores))
        labelled = ids_of(where, record, "positive_ids")
        positives = positives if labelled is None else [RawPassage(where, each, None) for each in labelled]
        return raw_query_list(where, record, required_text(where, record, *self.queries), passages, scores, positives)

    def divided(self, where: str, query_list: QueryList) -> tuple[list[str], list[str]]:
        """The labelled positives that are in a list or, where none is, the teacher's first; and the other candidates.

        Raises:
            InputError: every candidate is a labelled positive; the tool needs a negative.
        """
        scores = dict(zip(query_list.passage_ids, query_list.teacher_scores, strict=True))
        labelled = set(query_list.positive_ids)
        positive = [p for p in query_list.passage_ids if p in labelled] or [max(scores, key=scores.__getitem__)]
        negative = [p for p in query_list.passage_ids if p not in positive]
        if not negative:
            raise InputError(f"{where}: every candidate is a labelled positive; {self.tool} needs a negative.")
        return positive, negative

    def own_keys(self, query_list: QueryList) -> dict[str, Any]:
        """What the layout has no place for."""
        return {name: getattr(query_list, name) for name in ("query_type", "corpus", "positive_ids", "passage_ids")}


def no_score(where: str, what: str) -> InputError:
    """What to say where passages have labels and no scores."""
    return InputError(
        f"{where}: {what}. A query list needs the teacher's score of every passage: score the pairs first; or, for an "
        "objective that reads labels alone (module=infonce_conventional), take 1 for positives and 0 for negatives: "
        "scores=labels."
    )
