"""A corpus in BEIR's layout from whatever holds texts: a table, JSON Lines, or a folder of plain text files."""

import json
from collections.abc import Iterator
from pathlib import Path

from datamodules.corpus import find_dataset
from datamodules.formats.records import IDS, TEXTS, find_records, records
from datamodules.storage.files import atomic_path, is_file, is_folder, open_text, text_errors
from retriever.errors import InputError, choose, shown

_PLAIN = (".txt", ".md")
_WORDS = 150  # of a passage, at most, where a plain file holds more; an encoder reads some 200


def corpus_folder(source: str, text: str | None, into: Path, data_dir: str) -> Path:
    """Find a corpus in BEIR's layout, or write one from texts.

    A table's other columns ``title`` and ``_id`` (or ``id``) are read where they are there; without ids, the number of
    the line is one. Plain files are cut at blank lines into passages of at most 150 words; their title is the file's
    name.

    Args:
        source: a folder in BEIR's layout or the name of a data set; a file of texts; or a folder of .txt and .md files.
        text: the column of the texts, where the file does not call it ``text``.
        into: the folder to write, where one is written.
        data_dir: where downloaded data sets lie.

    Raises:
        InputError: no texts are found, or no such column.
    """
    path = Path(source)
    if is_file(path):
        return _written(into / path.name.partition(".")[0], _of_table(path, text))
    if is_folder(path) and not find_records(path, "corpus"):
        files = sorted(p for p in path.rglob("*") if p.suffix in _PLAIN and is_file(p))
        if not files:
            raise InputError(
                f"{path}: neither corpus.jsonl (or .parquet, .csv, .tsv) nor .txt or .md files in it. Name a folder "
                "in BEIR's layout, a folder of text files, or a file of texts: corpus=texts.csv text=COLUMN."
            )
        return _written(into / path.absolute().name, _of_plain(path, files))
    return find_dataset(source, data_dir)


def _of_table(path: Path, text: str | None) -> Iterator[dict[str, str]]:
    names = (text,) if text else TEXTS
    for number, record in records(path, (*IDS, "title", *names) if ".tsv" in path.suffixes else (), names):
        column = text or next((name for name in TEXTS if record.get(name) is not None), None)
        if column is None:
            raise InputError(
                f"{path}:{number}: which column holds the texts? Say text=COLUMN; there are {', '.join(record)}."
            )
        choose("text: a column", column, list(record))
        found = record[column]
        if not isinstance(found, str):
            raise InputError(f"{path}:{number}: {column} is {shown(found)}; expected a text.")
        passage_id = next((record[name] for name in IDS if record.get(name) not in (None, "")), number)
        yield {"_id": str(passage_id), "title": str(record.get("title") or ""), "text": found}


def _of_plain(folder: Path, files: list[Path]) -> Iterator[dict[str, str]]:
    for path in files:
        with text_errors(path, lambda: 1), open_text(path) as file:
            passages = _passages(file.read())
        name = path.relative_to(folder).with_suffix("")
        for number, passage in enumerate(passages, 1):
            yield {"_id": f"{path.relative_to(folder)}#{number}", "title": name.name.replace("_", " "), "text": passage}


def _passages(text: str) -> list[str]:
    """Paragraphs, put together up to so many words; a longer one is cut."""
    passages: list[list[str]] = [[]]
    for paragraph in text.split("\n\n"):
        words = paragraph.split()
        for start in range(0, len(words), _WORDS):
            part = words[start : start + _WORDS]
            if len(passages[-1]) + len(part) > _WORDS:
                passages.append([])
            passages[-1] += part
    return [" ".join(words) for words in passages if words]


def _written(folder: Path, passages: Iterator[dict[str, str]]) -> Path:
    with atomic_path(folder / "corpus.jsonl") as temporary, temporary.open("w", encoding="utf-8") as file:
        for passage in passages:
            file.write(json.dumps(passage, ensure_ascii=False) + "\n")
    return folder
