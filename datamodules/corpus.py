"""Corpora, queries and qrels in BEIR's folder layout: shipped, on disk, or downloaded by ``beir``."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datamodules.formats.records import IDS, QUERY_IDS, QUERY_TEXTS, TEXTS, Columns, find_records, records
from datamodules.storage.archives import BEIR, download_beir
from datamodules.storage.columns import ColumnWriter, cached_columns, mapped_strings, update_digest
from datamodules.storage.compressed import ENDINGS, split_ending
from datamodules.storage.files import is_file, is_folder, lines
from datamodules.storage.input_hashes import input_sha256
from datamodules.storage.string_index import StringIndex, string_hashes
from retriever.errors import InputError, choose, shown

log = logging.getLogger(__name__)
_BLOCK = 10_000
_WHOLE = re.compile(r"[+-]?[0-9]{1,9}")
_BEIR, _TREC = (0, 1, 2), (0, 2, 3)  # the columns of query, passage and grade
SHIPPED = Path(__file__).parent / "data"
BEIR_NAMES = list(BEIR)


@dataclass(frozen=True)
class Corpus:
    """N passages.

    Attributes:
        name: what lists and results call it.
        ids: string array [N].
        titles: string array [N], empty strings where there is none.
        texts: string array [N], the passage without its title.
        mapped_passages: string array [N] of :attr:`passages` where they are memory-mapped, else None.
    """

    name: str
    ids: pa.Array
    titles: pa.Array
    texts: pa.Array
    mapped_passages: pa.Array | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def passages(self) -> pa.Array:
        """What an encoder or BM25 reads: title, a space, text [N]."""
        return _joined(self.titles, self.texts) if self.mapped_passages is None else self.mapped_passages

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


@dataclass(frozen=True)
class EvaluationSet:
    """Queries with judgements over a corpus.

    Attributes:
        name: as in metric names, ``val/<name>/ndcg@10``.
        corpus: the whole corpus.
        queries: id → text, those with at least one judgement.
        qrels: query id → passage id → grade (0 is judged and not relevant).
    """

    name: str
    corpus: Corpus
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]] = field(repr=False)

    def is_query_itself(self, passage_id: str) -> bool:
        """Whether a passage that has a query's id is taken for that query: it is not judged relevant to it.

        ArguAna and Quora hold their queries among the passages. Elsewhere ids are equal by chance, as in a list of
        questions and answers that are both numbered from 0.
        """
        return passage_id in self.qrels and self.qrels[passage_id].get(passage_id, 0) <= 0

    def relevant(self) -> dict[str, set[str]]:
        """Query id → ids of the passages judged relevant (grade above 0)."""
        return {q: {p for p, grade in judged.items() if grade > 0} for q, judged in self.qrels.items()}


def find_dataset(name: str | Path, data_dir: str | Path = "data") -> Path:
    """Find a data set's folder: a path, one that is shipped, one in ``data_dir``, or a BEIR name to download.

    Raises:
        InputError: none of these, or the download failed.
    """
    for folder in (Path(name), SHIPPED / name, Path(data_dir) / name):
        if is_folder(folder):
            return folder
    if str(name) not in BEIR_NAMES:
        raise InputError(
            f"There is no data set {shown(str(name))}: it is no folder, none in {data_dir}, not shipped, and no BEIR "
            f"name. BEIR names are {', '.join(BEIR_NAMES)}."
        )
    return download_beir(str(name), data_dir)


def find_file(path: str | Path) -> Path:
    """Find a file by its path or, where there is none, among the shipped data.

    Raises:
        InputError: neither is there.
    """
    for candidate in (Path(path), SHIPPED / path):
        if is_file(candidate):
            return candidate
    if is_folder(path):
        raise InputError(f"{path}: a folder, where a file is expected.")
    shipped = sorted(str(p.relative_to(SHIPPED)) for p in SHIPPED.glob("*/lists/*.parquet"))
    raise InputError(f"{path}: no such file, and none of the shipped ones ({', '.join(shipped) or 'none'}).")


def load_corpus(
    folder: str | Path,
    name: str | None = None,
    empty_passages: str = "error",
    cache_dir: str | Path | None = None,
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

    Raises:
        InputError: with file and line, for a line that is not JSON, has no id, repeats an id, or holds no text.
    """
    choose("empty_passages", empty_passages, ("error", "keep"))
    folder = Path(folder)
    paths = corpus_files(folder)
    empty = _Empty(paths[0], empty_passages)
    if cache_dir is None:
        blocks = list(_passage_blocks(paths, empty, {}))
        arrays = (pa.array([value for block in blocks for value in block[i]], pa.string()) for i in range(3))
        corpus = Corpus(name or folder.name, *arrays)
    else:
        # what is read depends on the format, too
        copy = Path(cache_dir) / "corpora" / f"{corpus_sha256(folder)[:32]}{''.join(split_ending(paths[0]))}"
        columns, facts = cached_columns(copy, lambda writer: _write_corpus(paths, empty, writer))
        empty.count, empty.first = facts["empty"], facts["first_empty"]
        corpus = Corpus(
            name or folder.name, *(mapped_strings(columns, n) for n in ("ids", "titles", "texts", "passages"))
        )
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


_warned: set[Path] = set()


def corpus_files(folder: Path) -> list[Path]:
    """The file of a folder's corpus, or its parts.

    Raises:
        InputError: there is none.
    """
    return _found(folder, "corpus")


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
            passage_id = _id(path, number, record, columns, {} if seen is None else seen)
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


def load_queries(folder: str | Path) -> dict[str, str]:
    """Read ``queries.jsonl`` (or another format, see :mod:`datamodules.formats.records`): id → text.

    Any other field (gold evidence) is not read.
    """
    seen: dict[str, int] = {}
    return {query: text for path in _found(Path(folder), "queries") for query, text, _ in read_queries(path, seen)}


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
        query_id = _id(path, number, record, columns, seen)
        text = columns.text_of(record)
        if not isinstance(text, str) or not text.strip():
            other = columns.other_text(record)
            remedy = (
                f"It has {other!r}: call that 'text' if it is the query's." if other else "Correct or remove this line."
            )
            raise InputError(f"{path}:{number}: query {shown(query_id)} has no text. {remedy}")
        yield query_id, text, (f"{path}:{number}", record)


def load_qrels(folder: str | Path, split: str) -> tuple[Path, dict[str, dict[str, tuple[int, int]]]]:
    """Read ``qrels/<split>.tsv``: the path, and query id → passage id → (grade, line number).

    A line is BEIR's ``query-id <tab> corpus-id <tab> score`` or TREC's ``qid 0 docid grade``, with tabs or spaces.
    A first line that names ``score`` third, or ``corpus-id`` and ``score`` anywhere, says where they stand; without
    one, columns behind BEIR's three are left out where none is a number.

    Raises:
        InputError: no such split, a line of neither form, or not of the first line's, or a pair judged twice.
    """
    path = qrels_file(Path(folder), split)
    if path is None:
        splits = ", ".join(qrels_splits(Path(folder))) or "none"
        raise InputError(f"{Path(folder) / 'qrels' / split}.tsv: no such file. The splits of {folder} are {splits}.")
    qrels: dict[str, dict[str, tuple[int, int]]] = {}
    for number, query_id, passage_id, grade in _judgements(path):
        judged = qrels.setdefault(query_id, {})
        if passage_id in judged:
            raise InputError(
                f"{path}:{number}: query {shown(query_id)} and passage {shown(passage_id)} were judged already in line "
                f"{judged[passage_id][1]}. Keep one of the two lines."
            )
        judged[passage_id] = (grade, number)
    return path, qrels


def _judgements(path: Path) -> Iterator[tuple[int, str, str, int]]:
    """Number, query id, passage id and grade of every line."""
    named, first = None, None
    for number, line in lines(path):
        columns = line.split("\t")
        if len(columns) == 1 and len(line.split()) == 4:  # as TREC's are written
            columns = line.split()
        while len(columns) > 3 and not columns[-1].strip():  # a tab at the end
            columns.pop()
        if number == 1 and _is_header(columns):
            names = [column.strip() for column in columns]
            if "corpus-id" in names or names.index("score") == 2:
                named = 0, names.index("corpus-id") if "corpus-id" in names else 1, names.index("score")
            continue
        places = named or (_BEIR if len(columns) == 3 else _places(columns))
        first = first or places
        if places is None or len(columns) <= max(places) or "\0" in line:
            grade, whole = None, False
        else:
            grade, whole = whole_grade(columns[places[2]]), all(map(str.strip, columns[: places[2]]))
        if places is None or grade is None or places != first or not whole:
            raise InputError(
                f"{path}:{number}: {shown(line)} is not 'query-id <tab> corpus-id <tab> whole number', up to "
                f"1,000,000 (nor TREC's 'qid 0 docid whole number'), or not as those before; it has {len(columns)} "
                "columns. Where further ones hold numbers, begin with a line 'query-id <tab> corpus-id <tab> score'."
            )
        yield number, columns[places[0]], columns[places[1]], grade


def _is_header(columns: list[str]) -> bool:
    named = "score" in {column.strip() for column in (*columns[2:3], columns[-1])}
    return named and all(whole_grade(column) is None for column in columns)


def _places(columns: list[str]) -> tuple[int, int, int] | None:
    """Where query, passage and grade stand in more than three columns; None where that cannot be known."""
    grades = [whole_grade(column) is not None for column in columns]
    iteration = len(columns) > 1 and columns[1].strip() in ("0", "Q0")
    if len(columns) == 4 and grades[3] and (iteration or (grades[1] and not grades[2])):
        return _TREC
    return _BEIR if grades[2:] == [True] + [False] * len(columns[3:]) and not iteration else None


def whole_grade(text: str) -> int | None:
    """A grade of relevance, a whole number up to a million; None where the text is none.

    trec_eval makes an array as long as the highest grade, and crashes at 2³¹.
    """
    text = text.strip()
    return int(text) if _WHOLE.fullmatch(text) and abs(int(text)) <= 1_000_000 else None


def load_evaluation_set(
    path: str,
    split: str = "test",
    *,
    name: str | None = None,
    data_dir: str | Path = "data",
    unknown_qrels: str = "error",
    empty_passages: str = "error",
    corpus: Corpus | None = None,
    cache_dir: str | Path | None = None,
) -> EvaluationSet:
    """Load corpus, queries and one split's qrels, and check that they belong together.

    Args:
        path: as for :func:`find_dataset`.
        split: file name under ``qrels``, without ``.tsv``.
        name: for metric names; None takes the folder's name.
        data_dir: where downloaded sets lie.
        unknown_qrels: ``error`` where a judgement names an unknown query or passage; ``keep`` keeps judgements of
            passages that the corpus lacks (they count in the ideal ranking, as in trec_eval) and leaves out unknown
            queries.
        empty_passages: as for :func:`load_corpus`.
        corpus: the corpus, if it is loaded already.
        cache_dir: as for :func:`load_corpus`.

    Raises:
        InputError: with file and line.
    """
    choose("unknown_qrels", unknown_qrels, ("error", "keep"))
    folder = find_dataset(path, data_dir)
    corpus = corpus or load_corpus(folder, empty_passages=empty_passages, cache_dir=cache_dir)
    queries = load_queries(folder)
    qrels_path, judged = load_qrels(folder, split)
    if unknown_qrels == "error":
        judgements = [(q, p, line) for q, passages in judged.items() for p, (_, line) in passages.items()]
        rows = corpus.rows([p for _, p, _ in judgements])
        for (query_id, passage_id, line), row in zip(judgements, rows, strict=True):
            missing = [f"query {shown(query_id)}"] if query_id not in queries else []
            missing += [f"passage {shown(passage_id)}"] if row < 0 else []
            if missing:
                raise InputError(
                    f"{qrels_path}:{line}: {missing[0]} is not in this data set. Are these the qrels of another "
                    "corpus? To go on all the same: unknown_qrels=keep."
                )
    qrels = {q: {p: g for p, (g, _) in passages.items()} for q, passages in judged.items() if q in queries}
    if not qrels:
        raise InputError(f"{qrels_path}: no judgement of any query of {folder}.")
    return EvaluationSet(name or folder.name, corpus, {q: queries[q] for q in qrels}, qrels)


def judgement_files(folder: Path, split: str) -> list[Path]:
    """The files that a split's queries and qrels come from, sorted."""
    found = qrels_file(folder, split)
    return sorted([*find_records(folder, "queries"), *([found] if found else [])])


def qrels_file(folder: Path, split: str) -> Path | None:
    """The judgements of a split, ``qrels/<split>.tsv``, compressed or not; None where there are none."""
    paths = (folder / "qrels" / f"{split}.tsv{packed}" for packed in ("", *ENDINGS))
    return next(filter(is_file, paths), None)


def qrels_splits(folder: Path) -> list[str]:
    """The splits that a folder has judgements of, sorted."""
    names = {path.name.partition(".tsv")[0] for path in (folder / "qrels").glob("*.tsv*")}
    return sorted(name for name in names if qrels_file(folder, name))


def _found(folder: Path, stem: str) -> list[Path]:
    paths = find_records(folder, stem)
    if not paths:
        inside = ", ".join(sorted(path.name for path in folder.iterdir())[:6]) if is_folder(folder) else ""
        raise InputError(
            f"{folder}: neither {stem}.jsonl nor {stem}.parquet, .arrow, .tsv or .csv in it (JSON Lines, TSV and CSV "
            f"also with {', '.join(ENDINGS)}), so this is no folder in BEIR's layout. In it: {inside or 'nothing'}."
        )
    return paths


def _id(path: Path, number: int, record: dict, columns: Columns, seen: dict[str, int]) -> str:
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
