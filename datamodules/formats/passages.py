"""Passages that a file names by id or by text: found in a corpus, or gathered into a new one."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO

import pyarrow.compute as pc

from datamodules.corpus import Corpus, load_corpus
from datamodules.formats.raw_lists import RawPassage
from datamodules.formats.records import find_records
from datamodules.storage.files import atomic_path
from datamodules.storage.string_index import StringIndex
from retriever.errors import InputError, shown


class CorpusPassages:
    """Finds stated passages in a corpus: by id; where a layout has no ids, by the exact text.

    A text is looked up as title + space + text, then as the text alone, spaces at its ends aside. Where several
    passages have one text, the first of the corpus is taken.

    Args:
        corpus: the corpus that the lists were made from.
        check_texts: where a file gives id and text, compare them: the text has to be the passage's, or its beginning
            (spaces aside). Ids like ``"17"`` stand in every corpus, so this is what notices a wrong one.
    """

    def __init__(self, corpus: Corpus, check_texts: bool = True):
        self.corpus = corpus
        self.name = corpus.name
        self.check_texts = check_texts

    def resolve(self, passage: RawPassage) -> str:
        """The id of a passage.

        Raises:
            InputError: the corpus has no such id or text, or another text under this id.
        """
        if passage.id is None:
            return self._by_text(passage)
        row = self._row(passage.id, passage.where)
        if self.check_texts and passage.text is not None and not self._agrees(row, passage):
            raise InputError(
                f"{passage.where}: the text of passage {shown(passage.id)} begins {shown(passage.text[:60])}, but in "
                f"the corpus {shown(self.name)} it begins {shown(self.corpus.passages[row].as_py()[:60])}. Name the "
                "corpus that these lists were made from, or take the ids alone: check_texts=False (--ignore-texts)."
            )
        return passage.id

    def text(self, passage_id: str, where: str) -> str:
        """Title, a space, and text of a passage.

        Raises:
            InputError: no such id.
        """
        return self.corpus.passages[self._row(passage_id, where)].as_py()

    def title_and_text(self, passage_id: str, where: str) -> tuple[str, str]:
        """Title and text of a passage.

        Raises:
            InputError: no such id.
        """
        row = self._row(passage_id, where)
        return self.corpus.titles[row].as_py(), self.corpus.texts[row].as_py()

    @cached_property
    def _ids(self) -> StringIndex:
        return StringIndex(self.corpus.ids)

    @cached_property
    def _texts(self) -> list[StringIndex]:
        return [StringIndex(self.corpus.passages), StringIndex(pc.utf8_trim_whitespace(self.corpus.texts))]

    def _row(self, passage_id: str, where: str) -> int:
        row = self._ids.find(passage_id)
        if row < 0:
            raise InputError(
                f"{where}: the passage {shown(passage_id)} is not in the corpus {shown(self.name)}. Name the corpus "
                "that these lists were made from."
            )
        return row

    def _by_text(self, passage: RawPassage) -> str:
        whole = f"{passage.title} {passage.text}".strip()
        for index in self._texts:
            for text in (whole, passage.text):
                row = index.find(text)
                if row >= 0:
                    return self.corpus.ids[row].as_py()
        raise InputError(
            f"{passage.where}: no passage of the corpus {shown(self.name)} has the text {shown(whole)} (looked up "
            "as title + space + text, and as the text alone). Name the corpus that these lists were made from, or "
            "none; then a new one is written from the texts."
        )

    def _agrees(self, row: int, passage: RawPassage) -> bool:
        own = (self.corpus.passages[row].as_py(), self.corpus.texts[row].as_py())
        if passage.text in own:  # the quick way for most
            return True
        given = _collapsed(f"{passage.title} {passage.text}")
        return any(_collapsed(text).startswith(given) for text in own)


class NewCorpus:
    """Gathers stated passages into ``corpus.jsonl``; made by :func:`new_corpus`.

    A passage without an id gets one from its text: 32 hexadecimal digits of the SHA-256.
    """

    def __init__(self, name: str, file: IO[str]):
        self.name = name
        self._file = file
        self._digests: dict[str, bytes] = {}

    def resolve(self, passage: RawPassage) -> str:
        """The id of a passage, written to the corpus the first time it is seen.

        Raises:
            InputError: an id that comes without a text, or with two.
        """
        if passage.text is None:
            if passage.id in self._digests:
                return passage.id
            raise InputError(
                f"{passage.where}: the passage {shown(passage.id)} comes without its text (here and before), so no "
                "corpus can be written from this file. Name the corpus that has it."
            )
        digest = hashlib.sha256(f"{passage.title}\0{passage.text}".encode()).digest()
        passage_id = passage.id or hashlib.sha256(f"{passage.title} {passage.text}".strip().encode()).hexdigest()[:32]
        known = self._digests.get(passage_id)
        if known is None:
            self.write(passage_id, passage.title, passage.text)
        elif passage.id is not None and known != digest[:8]:
            raise InputError(
                f"{passage.where}: the passage {shown(passage_id)} has the text {shown(passage.text)} here and another "
                "one before. Correct the file, or name the corpus that its ids belong to."
            )
        return passage_id

    def write(self, passage_id: str, title: str, text: str) -> None:
        """Add a passage."""
        # eight bytes tell two texts of one id apart well enough, and a corpus has millions of them
        self._digests[passage_id] = hashlib.sha256(f"{title}\0{text}".encode()).digest()[:8]
        record = {"_id": passage_id, "title": title, "text": text}
        self._file.write(json.dumps(record, ensure_ascii=False) + "\n")


@contextmanager
def new_corpus(folder: str | Path) -> Iterator[NewCorpus]:
    """Write a corpus in BEIR's layout from the texts of the lists that are imported meanwhile.

    Args:
        folder: ``corpus.jsonl`` appears in it when the block ends without an error; passages that stand there already
            stay, so that several files can share one corpus. Its name is the corpus's.

    Raises:
        InputError: the folder holds a corpus in another format, which a ``corpus.jsonl`` would hide.
    """
    path = Path(folder) / "corpus.jsonl"
    other = next((found for found in find_records(path.parent, "corpus") if found != path), None)
    if other is not None:
        raise InputError(f"{other}: there is a corpus already. Name another folder for the new one.")
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        corpus = NewCorpus(path.parent.resolve().name, file)
        if path.is_file():
            there = load_corpus(path.parent, empty_passages="keep")
            for row in zip(there.ids, there.titles, there.texts, strict=True):
                corpus.write(*(value.as_py() for value in row))
        yield corpus


def _collapsed(text: str) -> str:
    return " ".join(text.split())
