"""What a line of another tool's file states of a query list, before anything of it is checked or looked up."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from datamodules.query_lists import QueryList
from retriever.errors import InputError, choose, shown

_SCORES = ("stated", "labels")


@dataclass(frozen=True)
class RawPassage:
    """A passage as a file names it: by id, by text, or by both.

    Attributes:
        where: ``file:line``.
        id: None where the layout has none.
        text: None where the layout has none.
        title: given apart from the text; empty where it is not.
    """

    where: str
    id: str | None
    text: str | None
    title: str = ""


@dataclass(frozen=True)
class RawQueryList:
    """A query list as a file states it.

    Attributes:
        where: ``file:line``.
        query: the text.
        passages: K candidates.
        scores: as long as the passages, if the file is right; anything may stand in it.
        positives: passages labelled relevant.
        query_id: None where the file has none; so too the next two.
        query_type: human, title, …
        corpus: the name of the corpus that the ids belong to.
    """

    where: str
    query: str
    passages: list[RawPassage]
    scores: list[Any]
    positives: list[RawPassage] = field(default_factory=list)
    query_id: str | None = None
    query_type: str | None = None
    corpus: str | None = None


def raw_query_list(
    where: str,
    record: dict[str, Any],
    query: str,
    passages: list[RawPassage],
    scores: list[Any],
    positives: list[RawPassage],
) -> RawQueryList:
    """The list of a line whose ``query_id``, ``query_type`` and ``corpus`` stand under these names, if at all."""
    return RawQueryList(
        where=where,
        query=query,
        passages=passages,
        scores=scores,
        positives=positives,
        query_id=text_of(where, record, "query_id", numbers=True),
        query_type=text_of(where, record, "query_type"),
        corpus=text_of(where, record, "corpus"),
    )


def text_of(where: str, record: dict[str, Any], *names: str, numbers: bool = False) -> str | None:
    """The string under the first of ``names`` that is there and not null; None where none is.

    Args:
        where: ``file:line``, for messages.
        record: a line.
        names: keys, in order of preference.
        numbers: take a whole number as its decimal string (ids are often written so).

    Raises:
        InputError: something other than a string that is not blank.
    """
    for name in names:
        value = record.get(name)
        if value is None:
            continue
        if numbers and isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{where}: {name!r} is {shown(value)}; expected a string that is not empty.")
        return value
    return None


def required_text(where: str, record: dict[str, Any], *names: str) -> str:
    """As :func:`text_of`, but one of ``names`` has to be there."""
    value = text_of(where, record, *names)
    if value is None:
        raise InputError(f"{where}: no {' or '.join(map(repr, names))}; this line has {keys(record)}.")
    return value


def passage_text(where: str, entry: dict[str, Any], passage_id: str | None, *names: str) -> str | None:
    """The text of a passage, which may be empty where it has an id; None where there is none."""
    if passage_id is not None and next((entry[n] for n in names if entry.get(n) is not None), None) == "":
        return ""
    return text_of(where, entry, *names)


def title_of(where: str, entry: dict[str, Any]) -> str:
    """The title of a passage; empty where there is none.

    Raises:
        InputError: it is not a string.
    """
    title = entry.get("title")
    if title is not None and not isinstance(title, str):
        raise InputError(f"{where}: 'title' is {shown(title)}; expected a string.")
    return title or ""


def list_of(where: str, record: dict[str, Any], name: str) -> list[Any]:
    """The list under ``name``.

    Raises:
        InputError: there is none, or it is not a list.
    """
    if record.get(name) is None:
        raise InputError(f"{where}: no {name!r}; this line has {keys(record)}.")
    if not isinstance(record[name], list):
        raise InputError(f"{where}: {name!r} is {shown(record[name])}; expected a list.")
    return record[name]


def ids_of(where: str, record: dict[str, Any], name: str) -> list[str] | None:
    """The list of ids under ``name``, whole numbers as strings; None where there is none."""
    if record.get(name) is None:
        return None
    return [id_of(where, name, value) for value in list_of(where, record, name)]


def id_of(where: str, name: str, value: Any) -> str:
    """One id; a whole number becomes a string."""
    found = text_of(where, {name: value}, name, numbers=True)
    if found is None:
        raise InputError(f"{where}: {name!r} has a null where an id is expected.")
    return found


def keys(record: dict[str, Any]) -> str:
    """The keys of a line, for messages."""
    return ", ".join(map(repr, list(record)[:12])) or "no key"


def label_scores(scores: str) -> bool:
    """Whether the option ``scores`` says to take labels for scores (``labels``) or what a file states (``stated``)."""
    return choose("scores", scores, _SCORES) == "labels"


def no_score(where: str, what: str) -> InputError:
    """What to say where passages have labels and no scores."""
    return InputError(
        f"{where}: {what}. A query list needs the teacher's score of every passage: score the pairs first; or, for an "
        "objective that reads labels alone (module=infonce_conventional), take 1 for positives and 0 for negatives: "
        "scores=labels."
    )


def sides(where: str, query_list: QueryList, tool: str) -> tuple[list[str], list[str]]:
    """The labelled positives that are in the list or, where none is, the teacher's first; and the other candidates.

    Raises:
        InputError: every candidate is a labelled positive; ``tool`` needs a negative.
    """
    scores = dict(zip(query_list.passage_ids, query_list.teacher_scores, strict=True))
    labelled = set(query_list.positive_ids)
    positive = [p for p in query_list.passage_ids if p in labelled] or [max(scores, key=scores.__getitem__)]
    negative = [p for p in query_list.passage_ids if p not in positive]
    if not negative:
        raise InputError(f"{where}: every candidate is a labelled positive; {tool} needs a negative.")
    return positive, negative


def in_order(
    where: str, record: dict[str, Any], passages: list[RawPassage], scores: list[Any]
) -> tuple[list[RawPassage], list[Any]]:
    """Passages and scores in the order of ``passage_ids``, where a line has it (export writes it).

    Raises:
        InputError: these are other ids.
    """
    order = ids_of(where, record, "passage_ids")
    if order is None:
        return passages, scores
    place = {passage.id: at for at, passage in enumerate(passages)}
    stated = [passage.id for passage in passages if passage.id is not None]
    if len(stated) < len(passages) or sorted(order) != sorted(stated):
        raise InputError(f"{where}: 'passage_ids' are not those of the positives and negatives. Correct or remove it.")
    return [passages[place[passage_id]] for passage_id in order], [scores[place[passage_id]] for passage_id in order]


def raw_positives(where: str, record: dict[str, Any], positives: list[RawPassage]) -> list[RawPassage]:
    """Those that ``positive_ids`` names, where a line has it (export writes it), else ``positives``."""
    labelled = ids_of(where, record, "positive_ids")
    return positives if labelled is None else [RawPassage(where, passage_id, None) for passage_id in labelled]


def own_keys(query_list: QueryList) -> dict[str, Any]:
    """What a layout of positives and negatives has no place for, under keys that its tool does not read."""
    return {
        "query_type": query_list.query_type,
        "corpus": query_list.corpus,
        "positive_ids": query_list.positive_ids,
        "passage_ids": query_list.passage_ids,
    }
