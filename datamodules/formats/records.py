"""Records of a file, whatever its format: JSON Lines, CSV, TSV, Parquet or Arrow; and which columns hold what."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.storage.compressed import ENDINGS, split_ending
from datamodules.storage.files import is_file, is_folder, json_lines, lines, open_text, text_errors
from datamodules.storage.parquet import TABLES, table_blocks
from retriever.errors import InputError, shown

# Formats in the order in which they are looked for: what is written here comes first.
FORMATS = (".jsonl", *TABLES, ".tsv", ".csv")
# What other tools call the columns, the first that is there is taken; the index that pandas saves without a name, last.
INDEX = "__index_level_0__"
IDS = ("_id", "id", "docid", "doc_id", "docno", "pid", "corpus-id", INDEX)
TEXTS = ("text", "contents", "segment", "passage", "body")
QUERY_IDS = ("_id", "id", "qid", "query_id", "query-id", INDEX)
QUERY_TEXTS = ("text", "query", "contents", "question")
_NO_TEXTS = {"title", "url", "metadata"}
_ROWS = 1_000
csv.field_size_limit(2**31 - 1)


def records(path: Path, ids: Sequence[str] = (), texts: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number (line, or row of a table, from 1) and content of every record.

    ``.parquet`` and ``.arrow`` are tables; ``.csv`` and ``.tsv`` need a first line with the columns' names, but for
    TSV of two columns, id and text; any other ending is JSON Lines. All but tables may be compressed.

    Args:
        path: the file.
        ids: names that a column of ids may have, to know a first line with names; so ``texts``.
        texts: names that a column of texts may have.

    Raises:
        InputError: with file and line, for what cannot be read.
    """
    ending, packed = split_ending(path)
    if ending in TABLES and not packed:
        for done, table in table_blocks(path, _ROWS):
            yield from enumerate(table.to_pylist(), done + 1)
    elif ending == ".tsv":
        yield from _tsv(path, ids, texts)
    elif ending == ".csv":
        yield from _csv(path, ids)
    else:
        yield from json_lines(path)


def _tsv(path: Path, ids: Sequence[str], texts: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    names: list[str] | None = None
    for number, line in lines(path):
        cells = line.split("\t")
        if names is None:
            header = [INDEX if not at and not cell else cell.strip() for at, cell in enumerate(cells)]
            if header[0] in ids or (set(header) & set(ids) and set(header) & set(texts)):
                names = header
                if len(set(names)) < len(names):
                    raise InputError(f"{path}:{number}: two columns have one name: {shown(header)}.")
                continue
            if len(cells) != 2:
                raise InputError(
                    f"{path}:{number}: {len(cells)} columns, and nothing says what is in them. Begin with a line of "
                    f"names, {ids[0] if ids else '_id'} and {texts[0] if texts else 'text'} among them."
                )
            names = [ids[0] if ids else "_id", texts[0] if texts else "text"]
        if len(cells) != len(names):
            raise InputError(
                f"{path}:{number}: {len(cells)} columns, where {len(names)} are expected ({', '.join(names)}). A text "
                "must have no tab in it."
            )
        yield number, dict(zip(names, cells, strict=True))


def _csv(path: Path, ids: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    with text_errors(path, lambda: number + 1), open_text(path, newline="") as file:
        reader = csv.reader(file, strict=True)
        names: list[str] | None = None
        try:
            for cells in reader:
                begin, number = number + 1, reader.line_num
                if not any(map(str.strip, cells)):
                    continue
                if names is None:
                    names = [INDEX if not at and not cell else cell.strip() for at, cell in enumerate(cells)]
                    if len(set(names)) < len(names) or not set(names) & set(ids or names):
                        raise InputError(
                            f"{path}:{begin}: {shown(cells)} is no line of columns' names; it needs "
                            f"{ids[0] if ids else '_id'}, and each name once."
                        )
                    continue
                if len(cells) != len(names):
                    raise InputError(
                        f"{path}:{begin}: {len(cells)} columns, where {len(names)} are expected ({', '.join(names)}). "
                        "Put texts with commas in quotation marks."
                    )
                yield begin, dict(zip(names, cells, strict=True))
        except csv.Error as error:
            raise InputError(
                f"{path}:{number + 1}: not CSV ({error}). Correct this line, or write it again."
            ) from error


@dataclass
class Columns:
    """Which key of a file's records holds the id, and which the text; found in the first record.

    Args:
        ids: names that the id may have.
        texts: names that the text may have.
    """

    ids: Sequence[str]
    texts: Sequence[str]
    id: str | None = None

    def id_of(self, record: Mapping[str, Any]) -> Any:
        """The id as it stands there; None where there is none. All records have it under one name."""
        if self.id is None:
            self.id = next((name for name in self.ids if record.get(name) is not None), self.ids[0])
        return record.get(self.id)

    def text_of(self, record: Mapping[str, Any]) -> Any:
        """The text as it stands there; empty where there is none."""
        return next((record[name] for name in self.texts if record.get(name) not in (None, "")), "")

    def other_text(self, record: Mapping[str, Any]) -> str | None:
        """A key that seems to hold the text, where none of the names is there; None where there is none."""
        if any(name in record for name in self.texts):
            return None
        others = [n for n, v in record.items() if isinstance(v, str) and v.strip() and n not in _NO_TEXTS]
        longest = max((n for n in others if n not in self.ids), key=lambda name: len(record[name]), default=None)
        title = record.get("title")
        return None if longest is None or (title and len(record[longest]) <= len(title)) else longest


def find_records(folder: Path, stem: str) -> list[Path]:
    """The file ``<stem>.<format>`` of a folder, or the parts of the folder ``<stem>`` (as ``datasets`` saves them).

    Returns:
        One path, or those of the parts in the order of their names; empty where there is none.
    """
    endings = [end + packed for end in FORMATS for packed in (("",) if end in TABLES else ("", *ENDINGS))]
    whole = (folder / f"{stem}{ending}" for ending in endings)
    found = next(filter(is_file, whole), None)
    if found is not None:
        return [found]
    parts = (sorted((folder / stem).glob(f"*{ending}")) for ending in endings) if is_folder(folder / stem) else ()
    return next(filter(None, parts), [])


def record_files(folder: Path, stem: str) -> list[Path]:
    """Find the file ``stem`` of a folder, or its parts.

    Raises:
        InputError: there is none.
    """
    paths = find_records(folder, stem)
    if not paths:
        inside = ", ".join(sorted(path.name for path in folder.iterdir())[:6]) if is_folder(folder) else ""
        raise InputError(
            f"{folder}: neither {stem}.jsonl nor {stem}.parquet, .arrow, .tsv or .csv in it (JSON Lines, TSV and CSV "
            f"also with {', '.join(ENDINGS)}), so this is no folder in BEIR's layout. In it: {inside or 'nothing'}."
        )
    return paths


def record_id(path: Path, number: int, record: dict, columns: Columns, seen: dict[str, int]) -> str:
    """Read the id of a record, and remember its line in ``seen``.

    Raises:
        InputError: no id, one that is no text or whole number, or one that was there before.
    """
    value = columns.id_of(record)
    if value is None or value == "":
        raise InputError(
            f"{path}:{number}: no {columns.id}. Every line needs one; this one has "
            f"{', '.join(map(repr, list(record)[:8])) or 'no key'}."
        )
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise InputError(f"{path}:{number}: the {columns.id} is {shown(value)}; expected a string or a whole number.")
    value = str(value)
    if not value.strip() or "\0" in value:  # trec_eval ends an id at NUL
        raise InputError(
            f"{path}:{number}: the {columns.id} is {shown(value)}; expected characters, and no NUL among them."
        )
    if value in seen:
        raise InputError(
            f"{path}:{number}: the {columns.id} {shown(value)} is already in line {seen[value]}"
            f"{'' if path.stem.startswith(('corpus', 'queries')) else ' of this part or one before'}. Ids must differ."
        )
    seen[value] = number
    return value
