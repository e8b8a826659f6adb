"""A corpus in BEIR's layout from whatever holds texts: a table, JSON Lines, or a folder of plain text files."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from datamodules.corpus import corpus_files, find_dataset
from datamodules.formats.records import IDS, TEXTS, find_records, records
from datamodules.storage.files import atomic_path, is_file, is_folder, open_text, text_errors
from datamodules.text.words import count_words
from retriever.errors import InputError, choose, shown
from retriever.hashing import file_sha256

BEGUN = "adapt.json"  # in a folder: what its adaptation was begun with
_PLAIN = (".txt", ".md")
_WORDS = 150  # of a passage, at most, where a plain file holds more; an encoder reads some 200
_LONG = re.compile(r".{1,59}[。！？]|.{1,60}")  # what has no blank for long, as Chinese text, is cut behind full stops


def corpus_folder(source: str, text: str | None, into: Path, data_dir: str) -> Path:
    """Find a corpus in BEIR's layout, or write one from texts.

    A table's other columns ``title`` and ``_id`` (or ``id``) are read where they are there; a line without an id is
    called by its number, #7. Plain files are cut at blank lines into passages of at most 150 words; their title is the
    file's name.

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
        files = _plain_files(path)
        if not files:
            raise InputError(
                f"{path}: neither corpus.jsonl (or .parquet, .csv, .tsv) nor .txt or .md files in it. Name a folder "
                "in BEIR's layout, a folder of text files, or a file of texts: corpus=texts.csv text=COLUMN."
            )
        return _written(into / path.absolute().name, _of_plain(path, files))
    return find_dataset(source, data_dir)


def content_hash(source: str, data_dir: str) -> str:
    """Hash all that an adaptation to ``source`` depends on: its texts, queries and judgements.

    Args:
        source: as for :func:`corpus_folder`.
        data_dir: likewise.
    """
    path = Path(source)
    if is_file(path):
        files = [path]
    elif is_folder(path) and not find_records(path, "corpus"):
        files = _plain_files(path)
    else:
        folder = find_dataset(source, data_dir)
        files = [*corpus_files(folder), *find_records(folder, "queries"), *sorted((folder / "qrels").glob("*.tsv*"))]
    digests = (f"{file.name} {file_sha256(file)}\n" for file in files)
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _plain_files(folder: Path) -> list[Path]:
    """Text files, but for those that an adaptation wrote in the same folder."""
    written = {path.parent for path in folder.rglob(BEGUN)}
    plain = (path for path in folder.rglob("*") if path.suffix in _PLAIN and is_file(path))
    return sorted(path for path in plain if not written & set(path.parents))


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
        passage_id = next((record[name] for name in IDS if record.get(name) not in (None, "")), f"#{number}")
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
    size = 0.0

    def begin_where_too_long(words: float) -> None:
        nonlocal size
        if passages[-1] and size + words > _WORDS:
            passages.append([])
            size = 0

    for paragraph in text.split("\n\n"):
        pieces = [(piece, count_words(piece)) for word in paragraph.split() for piece in _LONG.findall(word)]
        begin_where_too_long(sum(words for _, words in pieces))
        for piece, words in pieces:
            begin_where_too_long(words)
            passages[-1].append(piece)
            size += words
    return [" ".join(pieces) for pieces in passages if pieces]


def _written(folder: Path, passages: Iterator[dict[str, str]]) -> Path:
    with atomic_path(folder / "corpus.jsonl") as temporary, temporary.open("w", encoding="utf-8") as file:
        for passage in passages:
            file.write(json.dumps(passage, ensure_ascii=False) + "\n")
    return folder
