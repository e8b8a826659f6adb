"""Read query lists out of another tool's file, and write them into one."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from datamodules.formats.cadet import Cadet
from datamodules.formats.flag_embedding import FlagEmbedding
from datamodules.formats.layout import Layout
from datamodules.formats.lightning_ir import LightningIr
from datamodules.formats.passages import CorpusPassages, NewCorpus
from datamodules.formats.pylate import Pylate
from datamodules.formats.raw_lists import RawQueryList
from datamodules.formats.sentence_transformers import SentenceTransformers
from datamodules.formats.tevatron import Tevatron
from datamodules.formats.trec import Trec
from datamodules.query_lists import QueryList
from retriever.errors import InputError, choose, shown

log = logging.getLogger(__name__)
Item = TypeVar("Item")
Result = TypeVar("Result")
_LARGEST = float(np.finfo(np.float32).max)
LAYOUTS: dict[str, type[Any]] = {
    "cadet": Cadet,
    "sentence_transformers": SentenceTransformers,
    "flag_embedding": FlagEmbedding,
    "tevatron": Tevatron,
    "pylate": Pylate,
    "trec": Trec,
    "lightning_ir": LightningIr,
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
    path, reader = Path(path), _layout(layout, options)

    def checked(where: str, record: tuple[int, dict[str, Any]]) -> tuple[str, QueryList]:
        number, content = record
        stated = reader.parse(where, content)
        query_list = _checked(stated, passages, query_type, f"{path.name.split('.')[0]}-{number}")
        return query_list.query_id, query_list

    numbered = ((f"{path}:{number}", (number, record)) for number, record in reader.records(path))
    return _passing(numbered, checked, on_bad_list, f"{path}: no list in it")


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

    def encoded(where: str, query_list: QueryList) -> tuple[str, dict[str, Any]]:
        if query_list.corpus != passages.name:
            raise InputError(
                f"{where}: a list of the corpus {shown(query_list.corpus)}, but the corpus given is "
                f"{shown(passages.name)}."
            )
        if not query_list.passage_ids:
            raise InputError(f"{where}: no candidate is in it.")
        if not all(map(math.isfinite, query_list.teacher_scores)):
            raise InputError(f"{where}: a teacher score of it is not finite, so no tool can learn from it.")
        return query_list.query_id, writer.encode(where, query_list, passages)

    numbered = ((f"list {n} (query {shown(q.query_id)})", q) for n, q in enumerate(query_lists, 1))
    return writer.write(_passing(numbered, encoded, on_bad_list, "There is no list to write"), Path(path))


def _layout(name: str, options: dict[str, Any]) -> Layout:
    kind = LAYOUTS[choose("the layout", name, LAYOUTS)]
    valid = [field.name for field in fields(kind)]
    for option in options:
        choose(f"An option of the layout {name!r}", option, valid)
    return kind(**options)


def _passing(
    items: Iterable[tuple[str, Item]], convert: Callable[[str, Item], tuple[str, Result]], on_bad_list: str, none: str
) -> Iterator[Result]:
    """Convert lists, and leave out or refuse those that fail a check or have the query id of one before.

    Args:
        items: where each list is, and the list.
        convert: gives its query id, and what it becomes.
        on_bad_list: ``error`` or ``drop``.
        none: what to say where no list passes.
    """
    choose("on_bad_list", on_bad_list, ("error", "drop"))
    seen: dict[str, str] = {}
    dropped: list[str] = []
    for where, item in items:
        try:
            query_id, result = convert(where, item)
            if query_id in seen:
                raise InputError(f"{where}: the query id {shown(query_id)} is already at {seen[query_id]}.")
        except InputError as error:
            if on_bad_list == "error":
                raise InputError(f"{error} (Lists like this are left out with on_bad_list=drop.)") from error
            dropped.append(str(error))
            continue
        seen[query_id] = where
        yield result
    if not seen:
        failed = f", but {len(dropped)} that fail a check; the first: {dropped[0]}" if dropped else "."
        raise InputError(f"{none}{failed}")
    if dropped:
        log.warning("%d list(s) left out, %d kept. The first: %s", len(dropped), len(seen), dropped[0])


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
