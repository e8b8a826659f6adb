"""What a line of another tool's file states of a query list, before anything of it is checked or looked up."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from retriever.errors import InputError, shown


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
    ids: tuple[str, ...] = ("query_id",),
    types: tuple[str, ...] = ("query_type",),
) -> RawQueryList:
    """The list of a line whose query id, query type and ``corpus`` stand under these names, if at all."""
    return RawQueryList(
        where=where,
        query=query,
        passages=passages,
        scores=scores,
        positives=positives,
        query_id=text_of(where, record, *ids, numbers=True),
        query_type=text_of(where, record, *types),
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


def number_of(where: str, what: str, value: Any) -> float:
    """A finite number, which may be written as text.

    Raises:
        InputError: anything else.
    """
    try:
        number = float("nan" if isinstance(value, bool) else value)
    except (TypeError, ValueError, OverflowError):  # a whole number of hundreds of digits
        number = float("nan")
    if not isfinite(number):
        raise InputError(f"{where}: the {what} is {shown(value)}; expected a finite number.")
    return number


def keys(record: Mapping[str, Any]) -> str:
    """The keys of a line, for messages."""
    return ", ".join(map(repr, list(record)[:12])) or "no key"
