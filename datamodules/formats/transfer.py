"""Read query lists out of another tool's file, and write them into one."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.formats.cadet import Cadet
from datamodules.formats.flag_embedding import FlagEmbedding
from datamodules.formats.passages import CorpusPassages, NewCorpus
from datamodules.formats.raw_lists import RawQueryList
from datamodules.formats.sentence_transformers import SentenceTransformers
from datamodules.formats.tevatron import Tevatron
from datamodules.formats.trec import Trec
from datamodules.query_lists import QueryList
from retriever.errors import InputError, choose, shown

log = logging.getLogger(__name__)
Layout = Cadet | SentenceTransformers | FlagEmbedding | Tevatron | Trec
_LARGEST = float(np.finfo(np.float32).max)
LAYOUTS = {
    "cadet": Cadet,
    "sentence_transformers": SentenceTransformers,
    "flag_embedding": FlagEmbedding,
    "tevatron": Tevatron,
    "trec": Trec,
    "lightning_ir": Trec,
    "pyserini": Trec,
}


def import_lists(
    path: str | Path,
    layout: str,
    passages: CorpusPassages | NewCorpus,
    *,
    query_type: str = "human",
    on_bad_list: str = "error",
    **options: Any,
) -> Iterator[QueryList]:
    """Read query lists one by one out of a file in another tool's layout.

    Args:
        path: the file.
        layout: a key of ``LAYOUTS``; the class there says what it holds.
        passages: where ids and texts are looked up, or gathered.
        query_type: of lists whose line states none. ``human`` is the careful choice: the leak guard is strictest there.
        on_bad_list: ``error``, or ``drop`` to leave out lists that fail a check; a warning counts them.
        options: fields of the layout's class.

    Yields:
        Lists in the file's order. Ids that the layout lacks are ``<file's stem>-<line>``; scores are raw.

    Raises:
        InputError: with file and line: a field missing or of another type, scores that are not finite in float32 or
            not as many as the passages, fewer than two passages, a passage twice with two scores, an unknown one, an
            id twice. Lines
            that cannot be read at all are errors also under ``drop``.
    """
    reader = _layout(layout, options)
    choose("on_bad_list", on_bad_list, ("error", "drop"))
    return _import(Path(path), reader, passages, query_type, on_bad_list)


def export_lists(
    query_lists: Iterable[QueryList],
    path: str | Path,
    layout: str,
    passages: CorpusPassages,
    *,
    on_bad_list: str = "error",
    **options: Any,
) -> int:
    """Write query lists in another tool's layout; return how many.

    Args:
        query_lists: lists of one corpus.
        path: the file; it appears when it is whole.
        layout: a key of ``LAYOUTS``; the class there says what it holds and what is lost.
        passages: the corpus, for the texts.
        on_bad_list: ``error``, or ``drop`` to leave out lists that the layout cannot hold; a warning counts them.
        options: fields of the layout's class.

    Raises:
        InputError: with the list's place in the sequence: it is of another corpus, names an unknown passage, has the
            id of an earlier one, or is one that the layout cannot hold; or there is no list.
    """
    writer = _layout(layout, options)
    choose("on_bad_list", on_bad_list, ("error", "drop"))
    return writer.write(_encoded(query_lists, writer, passages, on_bad_list), Path(path))


def _layout(name: str, options: dict[str, Any]) -> Layout:
    kind = LAYOUTS[choose("the layout", name, LAYOUTS)]
    valid = [field.name for field in fields(kind)]
    for option in options:
        if option not in valid:
            raise InputError(
                f"The layout {name!r} has no option {option!r}; it has {', '.join(map(repr, valid)) or 'none'}."
            )
    return kind(**options)


def _import(
    path: Path, layout: Layout, passages: CorpusPassages | NewCorpus, query_type: str, on_bad_list: str
) -> Iterator[QueryList]:
    seen: dict[str, str] = {}
    dropped: list[str] = []
    for number, record in layout.records(path):
        where = f"{path}:{number}"
        try:
            stated = layout.parse(where, record)
            query_list = _checked(stated, passages, query_type, f"{path.name.split('.')[0]}-{number}")
            if query_list.query_id in seen:
                raise InputError(
                    f"{where}: the query id {shown(query_list.query_id)} is already at {seen[query_list.query_id]}."
                )
        except InputError as error:
            _drop_or_raise(error, on_bad_list, dropped)
            continue
        seen[query_list.query_id] = where
        yield query_list
    _report(f"{path}: no list in it", len(seen), dropped)


def _encoded(
    query_lists: Iterable[QueryList], layout: Layout, passages: CorpusPassages, on_bad_list: str
) -> Iterator[dict[str, Any]]:
    seen: dict[str, int] = {}
    dropped: list[str] = []
    for number, query_list in enumerate(query_lists, 1):
        where = f"list {number} (query {shown(query_list.query_id)})"
        try:
            if query_list.corpus != passages.name:
                raise InputError(
                    f"{where}: a list of the corpus {shown(query_list.corpus)}, but the corpus given is "
                    f"{shown(passages.name)}."
                )
            if not query_list.passage_ids:
                raise InputError(f"{where}: no candidate is in it.")
            if not all(map(math.isfinite, query_list.teacher_scores)):
                raise InputError(f"{where}: a teacher score of it is not finite, so no tool can learn from it.")
            if query_list.query_id in seen:
                raise InputError(f"{where}: its query id is already in list {seen[query_list.query_id]}.")
            entry = layout.encode(where, query_list, passages)
        except InputError as error:
            _drop_or_raise(error, on_bad_list, dropped)
            continue
        seen[query_list.query_id] = number
        yield entry
    _report("There is no list to write", len(seen), dropped)


def _checked(stated: RawQueryList, passages: CorpusPassages | NewCorpus, query_type: str, default_id: str) -> QueryList:
    where = stated.where
    if isinstance(passages, CorpusPassages) and stated.corpus not in (None, passages.name):
        raise InputError(
            f"{where}: a list of the corpus {shown(stated.corpus)}, but the corpus given is {shown(passages.name)}. "
            "Name its own."
        )
    if len(stated.scores) != len(stated.passages):
        raise InputError(
            f"{where}: {len(stated.passages)} passages but {len(stated.scores)} scores. Each passage needs one score."
        )
    scores = [_score(score, passage.where) for score, passage in zip(stated.scores, stated.passages, strict=True)]
    kept: dict[str, float] = {}
    for passage, score in zip(stated.passages, scores, strict=True):
        passage_id = passages.resolve(passage)
        if np.float32(kept.setdefault(passage_id, score)) != np.float32(score):  # lists hold scores in float32
            # an id that was made from the text is in no file
            made = passage.id is None and isinstance(passages, NewCorpus)
            named = [shown(value) for value in (None if made else passage_id, passage.text) if value is not None]
            raise InputError(
                f"{passage.where}: the passage {' '.join(named)} is twice in this list, with the scores "
                f"{kept[passage_id]:.9g} and {score:.9g}. Keep one of the two."
            )
    if len(kept) < 2:
        raise InputError(f"{where}: {len(kept)} passage(s); a list needs at least 2.")
    return QueryList(
        query_id=stated.query_id or default_id,
        query=stated.query,
        query_type=stated.query_type or query_type,
        corpus=passages.name,
        positive_ids=list(dict.fromkeys(passages.resolve(passage) for passage in stated.positives)),
        passage_ids=list(kept),
        teacher_scores=list(kept.values()),
    )


def _score(value: Any, where: str) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not abs(value) <= _LARGEST:  # false for nan too
        raise InputError(f"{where}: the score {shown(value)}; expected a number, finite in 32 bits.")
    return float(value)


def _drop_or_raise(error: InputError, on_bad_list: str, dropped: list[str]) -> None:
    if on_bad_list == "error":
        raise InputError(f"{error} (Lists like this are left out with on_bad_list=drop.)") from error
    dropped.append(str(error))


def _report(none: str, kept: int, dropped: list[str]) -> None:
    if not kept:
        raise InputError(
            f"{none}{f', but {len(dropped)} that fail a check; the first: {dropped[0]}' if dropped else '.'}"
        )
    if dropped:
        log.warning("%d list(s) left out, %d kept. The first: %s", len(dropped), kept, dropped[0])
