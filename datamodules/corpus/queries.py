"""Queries of a data set: id and text."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datamodules.formats.records import QUERY_IDS, QUERY_TEXTS, Columns, record_files, record_id, records
from retriever.errors import InputError, shown


def load_queries(folder: str | Path) -> dict[str, str]:
    """Read ``queries.jsonl`` (or another format, see :mod:`datamodules.formats.records`): id → text.

    Any other field (gold evidence) is not read.
    """
    seen: dict[str, int] = {}
    return {
        query: text for path in record_files(Path(folder), "queries") for query, text, _ in read_queries(path, seen)
    }


def read_queries(path: Path, seen: dict[str, int]) -> Iterator[tuple[str, str, tuple[str, dict[str, Any]]]]:
    """Id, text, and place and record of each query of a file; a TSV file may be ``id <tab> text``.

    Args:
        path: the file.
        seen: id → line of queries before; these are added.

    Raises:
        InputError: with file and line, for a query without id or text, or an id twice.
    """
    columns = Columns(QUERY_IDS, QUERY_TEXTS)
    for number, record in records(path, QUERY_IDS, QUERY_TEXTS):
        query_id = record_id(path, number, record, columns, seen)
        text = columns.text_of(record)
        if not isinstance(text, str) or not text.strip():
            other = columns.other_text(record)
            remedy = (
                f"It has {other!r}: call that 'text' if it is the query's." if other else "Correct or remove this line."
            )
            raise InputError(f"{path}:{number}: query {shown(query_id)} has no text. {remedy}")
        yield query_id, text, (f"{path}:{number}", record)
