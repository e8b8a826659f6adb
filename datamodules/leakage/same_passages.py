"""The passages that evaluation queries are about, found again under whatever id: by their text, in any corpus."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datamodules.corpus import Corpus
from datamodules.text.near_texts import NearTexts
from datamodules.text.words import count_characters, normalize_texts

SAME_ID = "shares a relevant passage with"
SAME_TEXT = "shares the text of a relevant passage with"
NEAR_TEXT = "shares a near copy of a relevant passage with"
_BLOCK = 10_000
_HEAD, _BEGINNING = 96, 24  # characters of a text, and of that part when normalised, by which it may be a known one
_SHORTEST = 20  # characters of a text that is known again without its title


@dataclass(frozen=True)
class Match:
    """A passage that is the same as relevant ones, or nearly.

    Attributes:
        relevant: their ids; several where relevant passages have one text.
        reason: :data:`SAME_ID`, :data:`SAME_TEXT` or :data:`NEAR_TEXT`.
        similarity: of the texts, in [0, 1].
    """

    relevant: tuple[str, ...]
    reason: str
    similarity: float


class RelevantPassages:
    """Relevant passages of evaluation queries, to be recognised in query lists over the same or another corpus.

    Two passages are the same where their texts are, title and text joined, after
    :func:`~datamodules.text.words.normalize_texts`; a copy that lacks its title is recognised, too. Ids mean the same
    passage within one corpus alone, and are only needed for a passage without letters or digits.

    Args:
        corpus: of the relevant passages.
        relevant: evaluation query → ids of its relevant passages.
        near: Jaccard similarity of three-word shingles from which a near copy counts, in (0, 1]; None looks for none.
    """

    def __init__(self, corpus: Corpus, relevant: Mapping[str, Collection[str]], near: float | None = None) -> None:
        self.relevant = relevant
        self._corpus_name = corpus.name
        ids = sorted({passage for passages in relevant.values() for passage in passages})
        rows = corpus.rows(ids)
        self._text_of = dict.fromkeys(ids, "")
        self._whole: dict[str, list[str]] = {}  # normalised text → ids
        self._untitled: dict[str, list[str]] = {}
        self._ids = [passage for passage, row in zip(ids, rows, strict=True) if row >= 0]
        self._beginnings: set[str] = set()
        self._near = None if near is None else NearTexts(near)
        for number, (whole, untitled) in enumerate(_texts(corpus, rows[rows >= 0])):
            passage = self._ids[number]
            self._text_of[passage] = whole
            self._beginnings |= {whole[:_BEGINNING], (untitled or whole)[:_BEGINNING]}
            if whole:
                self._whole.setdefault(whole, []).append(passage)
            if untitled:
                self._untitled.setdefault(untitled, []).append(passage)
            if self._near is not None and whole:
                self._near.add(number, whole, self._near.hashed([whole])[0])

    def among(self, corpus: Corpus, rows: np.ndarray) -> dict[str, Match]:
        """Which passages of a corpus are the same as a relevant one: their id → the match.

        Args:
            corpus: any corpus.
            rows: integers [n], distinct rows of it.
        """
        found: dict[str, Match] = {}
        rows = rows[self._may_be_known(corpus, rows)] if self._near is None else rows
        ids = (passage for block in _blocks(rows) for passage in corpus.ids.take(pa.array(block)).to_pylist())
        unknown: list[tuple[str, str]] = []
        for passage, (whole, untitled) in zip(ids, _texts(corpus, rows), strict=True):
            known = [*self._whole.get(whole, ()), *self._untitled.get(whole, ()), *self._whole.get(untitled, ())]
            if corpus.name == self._corpus_name and self._text_of.get(passage) == whole:
                found[passage] = Match(tuple(dict.fromkeys([passage, *known])), SAME_ID, 1.0)
            elif known:
                found[passage] = Match(tuple(known), SAME_TEXT, 1.0)
            elif self._near is not None and whole:
                unknown.append((passage, whole))
        return found | self._nearly(unknown)

    def _may_be_known(self, corpus: Corpus, rows: np.ndarray) -> np.ndarray:
        """Which rows begin as a known text does, bool [n]: a quick look, so that few texts are read whole."""
        likely = []
        for block in _blocks(rows):
            columns = (column.take(pa.array(block)) for column in (corpus.passages, corpus.texts))
            heads = (pc.utf8_slice_codeunits(column, 0, _HEAD).to_pylist() for column in columns)
            begins = (
                [self._begins(head, text) for head, text in zip(h, normalize_texts(h), strict=True)] for h in heads
            )
            likely.append(np.logical_or(*map(np.array, begins)))
        return np.concatenate(likely) if likely else np.zeros(0, bool)

    def _begins(self, head: str, normalized: str) -> bool:
        cut = len(head) == _HEAD  # its last letters may be half of something
        return normalized[:_BEGINNING] in self._beginnings or (cut and len(normalized) < _BEGINNING + 8)

    def _nearly(self, passages: list[tuple[str, str]]) -> dict[str, Match]:
        found: dict[str, Match] = {}
        for start in range(0, len(passages), _BLOCK):
            assert self._near is not None  # only then is there a passage to look for
            block = passages[start : start + _BLOCK]
            for (passage, text), hashed in zip(block, self._near.hashed([text for _, text in block]), strict=True):
                near = self._near.find(text, hashed)
                if near is not None:
                    found[passage] = Match((self._ids[near[0]],), NEAR_TEXT, near[1])
        return found


def translated(relevant: Mapping[str, Collection[str]], matches: Mapping[str, Match]) -> dict[str, set[str]]:
    """Evaluation query → ids, in another corpus, of its relevant passages."""
    copies: dict[str, set[str]] = {}
    for passage, match in matches.items():
        for known in match.relevant:
            copies.setdefault(known, set()).add(passage)
    return {query: {copy for p in passages for copy in copies.get(p, ())} for query, passages in relevant.items()}


def _texts(corpus: Corpus, rows: np.ndarray) -> Iterator[tuple[str, str]]:
    """Normalised: title and text; the text alone where there is a title and the text says enough without it."""
    for block in _blocks(rows):
        taken = pa.array(block)
        whole = normalize_texts(corpus.passages.take(taken).to_pylist())
        titles, texts = (column.take(taken).to_pylist() for column in (corpus.titles, corpus.texts))
        titled = [number for number, title in enumerate(titles) if title.strip()]
        alone = dict(zip(titled, normalize_texts([texts[n] for n in titled]), strict=True))
        for number, text in enumerate(whole):
            untitled = alone.get(number, "")
            yield text, untitled if count_characters(untitled) >= _SHORTEST else ""


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), _BLOCK):
        yield rows[start : start + _BLOCK]
