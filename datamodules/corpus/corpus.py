"""A corpus: N passages, read once into memory-mapped columns."""

import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datamodules.formats.records import IDS, TEXTS, Columns, record_files, record_id, records
from datamodules.storage.columns import ColumnWriter, cached_columns, mapped_strings, update_digest
from datamodules.storage.compressed import split_ending
from datamodules.storage.input_hashes import input_sha256
from datamodules.storage.string_index import StringIndex, string_hashes
from retriever.errors import InputError, choose, shown

log = logging.getLogger(__name__)
_BLOCK = 10_000
_warned: set[Path] = set()


@dataclass(frozen=True)
class Corpus:
    """N passages.

    Attributes:
        name: what lists and results call it.
        ids: string array [N].
        titles: string array [N], empty strings where there is none.
        texts: string array [N], the passage without its title.
        mapped_passages: string array [N] of :attr:`passages` where they are memory-mapped, else None.
        sha256: of the files that it was read from, see :func:`corpus_sha256`; empty where it was not.
    """

    name: str
    ids: pa.Array
    titles: pa.Array
    texts: pa.Array
    mapped_passages: pa.Array | None = field(default=None, repr=False)
    sha256: str = field(default="", kw_only=True)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def passages(self) -> pa.Array:
        """Title, a space and text [N], as BM25, teachers and, where nothing else is asked for, encoders read them."""
        return _joined(self.titles, self.texts) if self.mapped_passages is None else self.mapped_passages

    def read_by(self, encoder: Any) -> pa.Array:
        """What an encoder reads [N]: :attr:`passages`, or texts alone where its specification leaves titles out."""
        return self.passages if getattr(encoder.spec, "passage_titles", True) else self.texts

    @cached_property
    def ids_sha256(self) -> str:
        """Hash of the ids in their order: what rows of this corpus mean."""
        digest = hashlib.sha256()
        update_digest(digest, self.ids)
        return digest.hexdigest()

    @cached_property
    def _index(self) -> StringIndex:
        return StringIndex(self.ids)

    def rows(self, passage_ids: pa.Array | list[str]) -> np.ndarray:
        """Rows of passages, int64; −1 for an unknown id. The first call makes an index of 16 bytes a passage."""
        return self._index.find_all(passage_ids)


def load_corpus(
    folder: str | Path,
    name: str | None = None,
    empty_passages: str = "error",
    cache_dir: str | Path | None = None,
    warn: bool = True,
) -> Corpus:
    """Read ``corpus.jsonl``: ``_id``, ``title`` (may be missing) and ``text``.

    Other formats and names of columns: see :mod:`datamodules.formats.records`.

    Args:
        folder: BEIR-layout folder.
        name: the corpus's name; None takes the folder's.
        empty_passages: ``error``, or ``keep`` to let passages without title and text stand, with a warning that
            counts them. Their ids stay, so that judgements of them count as everywhere else.
        cache_dir: where a memory-mapped copy is kept, by the file's content: it is made once, and takes no memory
            afterwards. None reads the corpus into memory.
        warn: whether kept passages without title and text are warned of; not where a run was warned before.

    Raises:
        InputError: with file and line, for a line that is not JSON, has no id, repeats an id, or holds no text.
    """
    choose("empty_passages", empty_passages, ("error", "keep"))
    folder = Path(folder)
    paths = corpus_files(folder)
    empty, sha256 = _Empty(paths[0], empty_passages), corpus_sha256(folder)
    if cache_dir is None:
        blocks = list(_passage_blocks(paths, empty, {}))
        arrays = (pa.array([value for block in blocks for value in block[i]], pa.string()) for i in range(3))
        corpus = Corpus(name or folder.name, *arrays, sha256=sha256)
    else:
        # what is read depends on the format, too
        copy = Path(cache_dir) / "corpora" / f"{sha256[:32]}{''.join(split_ending(paths[0]))}"
        columns, facts = cached_columns(copy, lambda writer: _write_corpus(paths, empty, writer))
        empty.count, empty.first = facts["empty"], facts["first_empty"]
        mapped = (mapped_strings(columns, n) for n in ("ids", "titles", "texts", "passages"))
        corpus = Corpus(name or folder.name, *mapped, sha256=sha256)
    if warn:
        empty.report(len(corpus))
    return corpus


class _Empty:
    """Passages without title and text: refused, or counted and told of once.

    Attributes:
        count: how many there are.
        first: where the first is, ``corpus.jsonl:3``, and its id.
    """

    def __init__(self, path: Path, action: str) -> None:
        self.path, self.action = path, action
        self.count, self.first = 0, ""

    def add(self, path: Path, number: int, passage_id: str) -> None:
        self.count += 1
        self.first = self.first or f"{path.name}:{number}: passage {shown(passage_id)}"
        self._refuse()

    def report(self, passages: int) -> None:
        self._refuse()
        if self.count and self.path not in _warned:
            _warned.add(self.path)
            log.warning(
                "%s: %d of %d passages have neither title nor text. They stay, with their ids, for judgements may name "
                "them; empty_passages=error refuses them",
                os.path.join(self.path.parent, self.first),
                self.count,
                passages,
            )

    def _refuse(self) -> None:
        if self.count and self.action == "error":
            raise InputError(
                f"{os.path.join(self.path.parent, self.first)} has neither title nor text. Remove it, or keep it "
                "with empty_passages=keep."
            )


def corpus_files(folder: Path) -> list[Path]:
    """The file of a folder's corpus, or its parts.

    Raises:
        InputError: there is none.
    """
    return record_files(folder, "corpus")


def corpus_sha256(folder: Path) -> str:
    """Hash of a folder's corpus: of its file or, where it is in parts, of their hashes."""
    digests = [input_sha256(path) for path in corpus_files(folder)]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _write_corpus(paths: list[Path], empty: _Empty, writer: ColumnWriter) -> dict[str, int | str]:
    hashes = []
    for ids, titles, texts in _passage_blocks(paths, empty, None):
        for name, column in {"ids": ids, "titles": titles, "texts": texts}.items():
            writer.append_strings(name, column)
        writer.append_strings("passages", _joined(*(pa.array(c, pa.string()) for c in (titles, texts))))
        hashes.append(string_hashes(ids))
    hashes = np.concatenate(hashes)
    if len(np.unique(hashes)) < len(hashes):
        for _ in _passage_blocks(paths, _Empty(paths[0], "keep"), {}):  # says which id stands where
            pass
    return {"passages": len(hashes), "empty": empty.count, "first_empty": empty.first}


def _passage_blocks(
    paths: list[Path], empty: _Empty, seen: dict[str, int] | None
) -> Iterator[tuple[list[str], list[str], list[str]]]:
    """Ids, titles and texts, checked. ``seen`` (a line for every id) takes memory; None lets ids repeat."""
    block: tuple[list[str], list[str], list[str]] = ([], [], [])
    read = False
    for path in paths:
        columns = Columns(IDS, TEXTS)
        for number, record in records(path, IDS, TEXTS):
            read = True
            passage_id = record_id(path, number, record, columns, {} if seen is None else seen)
            title, text = record.get("title"), columns.text_of(record)
            title = "" if title is None else title
            if not isinstance(title, str) or not isinstance(text, str):
                raise InputError(f"{path}:{number}: title and text of passage {shown(passage_id)} must be strings.")
            other = None if text else columns.other_text(record)
            if other is not None:
                raise InputError(
                    f"{path}:{number}: passage {shown(passage_id)} has no 'text', but {other!r}: "
                    f"{shown(record[other])}. Call that 'text' if it is the passage's."
                )
            if not (title.strip() or text.strip()):
                empty.add(path, number, passage_id)
            for column, value in zip(block, (passage_id, title, text), strict=True):
                column.append(value)
            if len(block[0]) == _BLOCK:
                yield block
                block = ([], [], [])
    if not read:
        raise InputError(f"{paths[0]}: no passage in it.")
    if block[0]:
        yield block


def _joined(titles: pa.Array, texts: pa.Array) -> pa.Array:
    return pc.utf8_trim_whitespace(pc.binary_join_element_wise(titles, texts, pa.scalar(" ", titles.type)))
