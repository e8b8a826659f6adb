"""The query list, the unit of training data: its schema, its files (Parquet, JSON Lines), its checks."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datamodules.corpus import Corpus
from datamodules.formats.records import INDEX
from datamodules.storage.columns import ColumnWriter, cached_columns, mapped_strings
from datamodules.storage.compressed import ENDINGS, split_ending
from datamodules.storage.files import atomic_path, json_lines, read_json, require_file
from datamodules.storage.input_hashes import input_sha256
from datamodules.storage.parquet import PARQUET, TABLES, is_list, open_table, table_blocks
from datamodules.storage.string_index import string_hashes
from retriever.errors import InputError, choose, shown

SCHEMA = pa.schema(
    [
        ("query_id", pa.string()),
        ("query", pa.string()),
        ("query_type", pa.string()),
        ("corpus", pa.string()),
        ("positive_ids", pa.list_(pa.string())),
        ("passage_ids", pa.list_(pa.string())),
        ("teacher_scores", pa.list_(pa.float32())),
    ]
)
_T = TypeVar("_T")
_METADATA_KEY = b"query_lists"
_BLOCK = 10_000  # lists that are checked, or written, together
_BLOCK_CANDIDATES = 2_000_000  # and candidates, where lists are long
_ROWS = 500  # of a Parquet file, read at a time
_READ = 100  # lists that are Python objects at a time
_TAKEN = 100_000  # rows of a ragged array whose places are computed at a time
_STRINGS = ("query_ids", "queries", "query_types")


@dataclass(frozen=True)
class QueryList:
    """One query with scored candidate passages; the texts of the passages live in the corpus.

    Attributes:
        query_id: unlike every other in its file.
        query: the text, without any prompt.
        query_type: ``human``, or the kind of synthetic query (``title``, ``question``, …).
        corpus: name of the corpus that the ids belong to.
        positive_ids: the passage that the query was written from, or those judged relevant; may be empty.
        passage_ids: the K candidates, each once.
        teacher_scores: the teacher's K raw scores, any finite range, higher is better.
    """

    query_id: str
    query: str
    query_type: str
    corpus: str
    positive_ids: list[str]
    passage_ids: list[str]
    teacher_scores: list[float]


@dataclass(frozen=True)
class QueryLists:
    """N lists of one corpus as columns; passages as rows of the corpus, each list best first by the teacher.

    Opened lists are memory-mapped, selected ones are in memory.

    Attributes:
        source: the file, for messages.
        line: int64 [N], line (or Parquet row) of each list in it, from 1.
        query_ids: string array [N].
        queries: string array [N].
        query_types: string array [N].
        rows: int32 [T] (int64 where the corpus is too large), the candidates of all lists one after the other.
        scores: float32 [T], their raw teacher scores.
        offsets: int64 [N + 1], where each list begins.
        positive_rows: as ``rows`` [T'], the labelled positives of all lists.
        positive_offsets: int64 [N + 1].
        metadata: what the file says of the teacher.
    """

    source: Path
    line: np.ndarray
    query_ids: pa.Array
    queries: pa.Array
    query_types: pa.Array
    rows: np.ndarray
    scores: np.ndarray
    offsets: np.ndarray
    positive_rows: np.ndarray
    positive_offsets: np.ndarray
    metadata: dict[str, Any]

    def __len__(self) -> int:
        return len(self.line)

    def select(self, keep: np.ndarray) -> QueryLists:
        """The lists in ``keep`` (bool [N] or row numbers), in order."""
        keep = np.flatnonzero(keep) if keep.dtype == bool else keep
        rows, offsets = ragged_take(self.rows, self.offsets, keep)
        scores, _ = ragged_take(self.scores, self.offsets, keep)
        positive_rows, positive_offsets = ragged_take(self.positive_rows, self.positive_offsets, keep)
        query_ids, queries, query_types = (getattr(self, name).take(pa.array(keep)) for name in _STRINGS)
        return QueryLists(
            self.source,
            self.line[keep],
            query_ids,
            queries,
            query_types,
            rows,
            scores,
            offsets,
            positive_rows,
            positive_offsets,
            self.metadata,
        )

    def positive_ids(self, corpus: Corpus) -> list[list[str]]:
        """The labelled positives of each list, as ids of its corpus."""
        ids = corpus.ids.take(pa.array(self.positive_rows)).to_pylist()
        return [ids[a:b] for a, b in pairwise(self.positive_offsets)]


def write_query_lists(path: str | Path, query_lists: Iterable[QueryList], metadata: Mapping[str, Any]) -> int:
    """Write lists to ``.parquet``, or to ``.jsonl`` with ``<path>.meta.json`` beside it; return how many.

    Args:
        path: the file; it appears when it is whole.
        query_lists: the lists.
        metadata: JSON values about the teacher: name, revision, template, dtype, truncation rate, …
    """
    path = Path(path)
    count = 0
    meta = json.dumps(dict(metadata), ensure_ascii=False)
    with atomic_path(path) as temporary:
        if _format(path) == "parquet":
            schema = SCHEMA.with_metadata({_METADATA_KEY: meta.encode()})
            with pq.ParquetWriter(temporary, schema, **PARQUET) as writer:
                for block in _in_blocks(query_lists, lambda each: (1, len(each.passage_ids))):
                    writer.write_table(pa.Table.from_pylist([asdict(q) for q in block], schema=schema))
                    count += len(block)
        else:
            with open(temporary, "w", encoding="utf-8") as file:
                for query_list in query_lists:
                    file.write(json.dumps(asdict(query_list), ensure_ascii=False) + "\n")
                    count += 1
            with atomic_path(f"{path}.meta.json") as sidecar:
                sidecar.write_text(meta, encoding="utf-8")
    return count


def read_query_lists(path: str | Path) -> Iterator[QueryList]:
    """Read a file list by list, as it stands.

    Raises:
        InputError: with file and line.
    """
    path = Path(path)
    for table, numbers in _tables(path):
        for start in range(0, len(table), _READ):
            for number, record in enumerate(table.slice(start, _READ).to_pylist(), start):
                scored, named = len(record["teacher_scores"]), len(record["passage_ids"])
                if scored != named:
                    raise InputError(_unequal(path, numbers[number], named, scored))
                yield QueryList(**record)


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What a list file says of its teacher; empty where it says nothing.

    Raises:
        InputError: what it says is damaged.
    """
    path = Path(path)
    if _read_format(path) == "table":
        text = (open_table(path).schema_arrow.metadata or {}).get(_METADATA_KEY, b"{}")
        try:
            metadata = json.loads(text)
        except (ValueError, RecursionError):
            metadata = None
        if not isinstance(metadata, dict):
            raise InputError(f"{path}: its metadata {shown(text)} are no JSON object. Write or fetch it again.")
        return metadata
    sidecar = Path(f"{path}.meta.json")
    return read_json(sidecar, "Write it again, or remove it.") if sidecar.is_file() else {}


def open_query_lists(
    path: str | Path, corpus: Corpus, cache_dir: str | Path, on_bad_list: str = "error"
) -> tuple[QueryLists, dict[str, int]]:
    """Open a file of lists for training: checked and ids resolved, once; afterwards memory-mapped.

    Args:
        path: ``.parquet``, ``.arrow`` or ``.jsonl`` file; the last one may be compressed (``.gz``, ``.zst``, ``.bz2``).
        corpus: the corpus that the lists were made from.
        cache_dir: where the resolved copy is kept, by the contents of the file and of the corpus's ids.
        on_bad_list: ``error``, or ``drop`` to leave out lists that fail a check.

    Returns:
        The lists, and how many each check dropped (check → number).

    Raises:
        InputError: with file, line, what is wrong and what to do.
    """
    choose("on_bad_list", on_bad_list, ("error", "drop"))
    path = require_file(Path(path))
    key = json.dumps([input_sha256(path), corpus.name, corpus.ids_sha256, on_bad_list])
    folder = Path(cache_dir) / "query_lists" / hashlib.sha256(key.encode()).hexdigest()[:32]
    columns, facts = cached_columns(folder, lambda writer: _resolve(path, corpus, on_bad_list, writer))
    lists = QueryLists(
        source=path,
        line=columns["line"],
        **{name: mapped_strings(columns, name) for name in _STRINGS},
        rows=columns["rows"],
        scores=columns["scores"],
        offsets=columns["rows_offsets"],
        positive_rows=columns["positive_rows"],
        positive_offsets=columns["positive_rows_offsets"],
        metadata=read_metadata(path),
    )
    return lists, facts["dropped"]


def ragged_take(values: np.ndarray, offsets: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows ``keep`` (integers [n]) of a ragged array (values [T], offsets [N + 1]) as a new one."""
    starts = offsets[keep]
    new = _offsets(offsets[keep + 1] - starts)
    taken = np.empty(new[-1], values.dtype)
    for begin in range(0, len(keep), _TAKEN):  # the places of all values take more memory than the values
        part = slice(begin, begin + _TAKEN)
        ends = new[begin : begin + _TAKEN + 1]
        places = np.repeat(starts[part] - ends[:-1], np.diff(ends)) + np.arange(ends[0], ends[-1])
        taken[ends[0] : ends[-1]] = values[places]
    return taken, new


def _resolve(path: Path, corpus: Corpus, on_bad_list: str, writer: ColumnWriter) -> dict[str, Any]:
    """Check and resolve a file block by block; write the good lists, and say how many each check dropped."""
    row_type = np.int32 if len(corpus) <= np.iinfo(np.int32).max else np.int64
    hashes, failures, kept = [], _Failures(), 0
    for table, numbers in _tables(path):
        _refuse_other_corpora(path, table, corpus)
        hashes.append(string_hashes(table["query_id"]))
        lists, candidate_ids, positive_ids = _resolved(path, corpus, table, np.array(numbers, np.int64), row_type)
        bad = failures.add(lists, _check(lists, candidate_ids, positive_ids))
        lists = _best_first(lists.select(~bad) if bad.any() else lists)
        writer.append("line", lists.line)
        for name in _STRINGS:
            writer.append_strings(name, getattr(lists, name))
        writer.append("rows", lists.rows, np.diff(lists.offsets))
        writer.append("scores", lists.scores)
        writer.append("positive_rows", lists.positive_rows, np.diff(lists.positive_offsets))
        kept += len(lists)
    if not hashes:
        raise InputError(f"{path}: no list in it.")
    hashes = np.concatenate(hashes)
    if len(np.unique(hashes)) < len(hashes):
        _refuse_repeated_query_ids(path)
    if on_bad_list == "error":
        failures.refuse()
    if not kept:
        raise InputError(f"{path}: every list fails a check ({failures.dropped()}).")
    return {"dropped": failures.dropped()}


class _Failures:
    """What the blocks of a file failed: per check the first message, how many lists, and how many it drops."""

    def __init__(self) -> None:
        self._first: dict[str, str] = {}
        self._failing: dict[str, int] = {}
        self._dropped: dict[str, int] = {}

    def add(self, lists: QueryLists, checks: Mapping[str, tuple[np.ndarray, Callable[[int], str]]]) -> np.ndarray:
        """Take a block's checks; return which of its lists are bad, bool [N]."""
        bad = np.zeros(len(lists), dtype=bool)
        for name, (failing, say) in checks.items():
            if len(failing) and not self._failing.get(name):
                at = int(failing[0])
                self._first[name] = (
                    f"{lists.source}:{lists.line[at]}: list of query {shown(lists.query_ids[at].as_py())}: {say(at)}. "
                )
            self._failing[name] = self._failing.get(name, 0) + len(failing)
            # a list that fails two checks is dropped by the first
            self._dropped[name] = self._dropped.get(name, 0) + int((~bad[failing]).sum())
            bad[failing] = True
        return bad

    def dropped(self) -> dict[str, int]:
        """Check → how many lists it drops."""
        return {name: count for name, count in self._dropped.items() if count}

    def refuse(self) -> None:
        """Raise an error for the first check that a list fails."""
        for name, count in self._failing.items():
            if count:
                raise InputError(
                    f"{self._first[name]}({count} list(s) like this.) Mend the file, or leave them out with "
                    "on_bad_list=drop."
                )


def _resolved(
    path: Path, corpus: Corpus, table: pa.Table, line: np.ndarray, row_type: type[np.signedinteger]
) -> tuple[QueryLists, pa.Array, pa.Array]:
    """A block of lists, not checked, and the ids of their candidates and positives."""
    candidate_ids, lengths = _ragged(table["passage_ids"])
    scores, score_lengths = _ragged(table["teacher_scores"])
    positive_ids, positive_lengths = _ragged(table["positive_ids"])
    unequal = np.flatnonzero(lengths != score_lengths)
    if len(unequal):
        at = unequal[0]
        raise InputError(_unequal(path, line[at], lengths[at], score_lengths[at]))
    lists = QueryLists(
        source=path,
        line=line,
        query_ids=table["query_id"],
        queries=table["query"],
        query_types=table["query_type"],
        rows=corpus.rows(candidate_ids).astype(row_type),
        scores=scores.to_numpy(zero_copy_only=False).astype(np.float32),
        offsets=_offsets(lengths),
        positive_rows=corpus.rows(positive_ids).astype(row_type),
        positive_offsets=_offsets(positive_lengths),
        metadata={},
    )
    return lists, candidate_ids, positive_ids


def _unequal(path: Path, line: int, passages: int, scores: int) -> str:
    return f"{path}:{line}: {passages} passage_ids but {scores} teacher_scores. Each candidate needs one score."


def _refuse_other_corpora(path: Path, table: pa.Table, corpus: Corpus) -> None:
    foreign = set(table["corpus"].unique().to_pylist()) - {corpus.name}
    if foreign:
        raise InputError(
            f"{path}: lists of the corpus {shown(min(map(str, foreign)))}, but it is read with the corpus "
            f"{corpus.name!r}. Name the right corpus beside this file in data.train."
        )


def _check(
    lists: QueryLists, candidate_ids: pa.Array, positive_ids: pa.Array
) -> dict[str, tuple[np.ndarray, Callable[[int], str]]]:
    """Check → the lists that fail it, and what to say of one of them."""
    number = np.repeat(np.arange(len(lists)), np.diff(lists.offsets))
    positive_number = np.repeat(np.arange(len(lists)), np.diff(lists.positive_offsets))
    finite = np.isfinite(lists.scores)
    order = np.lexsort((lists.rows, number))
    same = (np.diff(number[order]) == 0) & (np.diff(lists.rows[order]) == 0) & (lists.rows[order][1:] >= 0)
    lowest, highest = np.full(len(lists), np.inf), np.full(len(lists), -np.inf)
    np.minimum.at(lowest, number[finite], lists.scores[finite])
    np.maximum.at(highest, number[finite], lists.scores[finite])

    def unknown(ids: pa.Array, rows: np.ndarray, numbers: np.ndarray, at: int) -> str:
        return shown(ids[int(np.flatnonzero((numbers == at) & (rows < 0))[0])].as_py())

    return {
        "fewer than two candidates": (
            np.flatnonzero(np.diff(lists.offsets) < 2),
            lambda at: f"{np.diff(lists.offsets)[at]} candidate(s); a list needs at least 2",
        ),
        "unknown passage": (
            np.unique(number[lists.rows < 0]),
            lambda at: f"the passage {unknown(candidate_ids, lists.rows, number, at)} is not in the corpus",
        ),
        "unknown positive": (
            np.unique(positive_number[lists.positive_rows < 0]),
            lambda at: (
                f"the positive {unknown(positive_ids, lists.positive_rows, positive_number, at)} is not in the corpus"
            ),
        ),
        "score not finite": (
            np.unique(number[~finite]),
            lambda at: (
                f"a teacher score is {lists.scores[(number == at) & ~finite][0]}; scores must be finite in 32 bits"
            ),
        ),
        "passage twice": (
            np.unique(number[order][1:][same]),
            lambda at: "a passage stands twice in passage_ids",
        ),
        "constant scores": (
            np.flatnonzero(lowest == highest),
            lambda at: f"all teacher scores are {lowest[at]}, so the teacher says nothing here",
        ),
    }


def _refuse_repeated_query_ids(path: Path) -> None:
    seen: dict[str, int] = {}
    for table, numbers in _tables(path):
        for value, line in zip(table["query_id"].to_pylist(), numbers, strict=True):
            if value in seen:
                raise InputError(
                    f"{path}:{line}: the query_id {shown(value)} stands already in line {seen[value]}. Ids must differ."
                )
            seen[value] = line


def _best_first(lists: QueryLists) -> QueryLists:
    number = np.repeat(np.arange(len(lists)), np.diff(lists.offsets))
    order = np.lexsort((-lists.scores, number))  # stable: tied candidates stay in the file's order
    return replace(lists, rows=lists.rows[order], scores=lists.scores[order])


def _tables(path: Path) -> Iterator[tuple[pa.Table, list[int]]]:
    """Blocks of lists in the schema, with their line (or row) numbers."""
    if _read_format(path) == "table":
        _check_columns(path)
        # a few rows at a time, for lists may be long; the footer's own counts crash Arrow where they are damaged
        parts = ((done, _no_nulls(path, part, done)) for done, part in table_blocks(path, _ROWS, SCHEMA.names, SCHEMA))
        for block in _in_blocks(
            parts, lambda p: (len(p[1]), pc.sum(pc.list_value_length(p[1]["passage_ids"])).as_py())
        ):
            table = pa.concat_tables(part for _, part in block)
            yield table, list(range(block[0][0] + 1, block[0][0] + len(table) + 1))
        return
    records = ((number, _checked_record(path, number, record)) for number, record in json_lines(path))
    for block in _in_blocks(records, lambda r: (1, len(r[1]["passage_ids"]))):
        yield pa.Table.from_pylist([record for _, record in block], schema=SCHEMA), [number for number, _ in block]


def _check_columns(path: Path) -> None:
    """Refuse columns that are missing, or that a cast would make something else of (1.0 is no id)."""
    found = open_table(path).schema_arrow
    for name in SCHEMA.names:
        if name not in found.names:
            index = f"{INDEX!r} is the index that pandas saved without a name: give it one. " * (INDEX in found.names)
            raise InputError(f"{path}: no column {name!r}. {index}A query list has {', '.join(SCHEMA.names)}.")
        kind, wanted = found.field(name).type, SCHEMA.field(name).type
        element = kind.value_type if is_list(kind) else kind
        element = element.value_type if pa.types.is_dictionary(element) else element
        if name == "teacher_scores":
            good = pa.types.is_floating(element) or pa.types.is_integer(element) or pa.types.is_null(element)
        else:
            good = _is_text(element) or pa.types.is_integer(element) or pa.types.is_null(element)
        if not good or is_list(kind) != is_list(wanted):
            raise InputError(f"{path}: the column {name!r} is of type {kind}; expected {wanted}. Write it again so.")


def _is_text(kind: pa.DataType) -> bool:
    kinds = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")  # bytes become texts
    return any(getattr(pa.types, f"is_{name}")(kind) for name in kinds)


def _checked_record(path: Path, number: int, record: dict[str, Any]) -> dict[str, Any]:
    for name in SCHEMA.names:
        if name not in record:
            raise InputError(f"{path}:{number}: no {name!r}; a query list has {', '.join(SCHEMA.names)}.")
        value = record[name]
        if name == "teacher_scores":
            good = isinstance(value, list) and all(
                isinstance(v, int | float) and not isinstance(v, bool) for v in value
            )
            expected = "a list of numbers"
            record[name] = [_as_float(v) for v in value] if good else value
        elif name.endswith("_ids"):
            good, expected = isinstance(value, list) and all(isinstance(v, str) for v in value), "a list of strings"
        else:
            good, expected = isinstance(value, str) and bool(value.strip()), "a string that is not empty"
        if not good:
            raise InputError(f"{path}:{number}: {name!r} is {shown(value)}; expected {expected}.")
    return {name: record[name] for name in SCHEMA.names}


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer beyond all floats
        return math.inf if value > 0 else -math.inf


def _no_nulls(path: Path, table: pa.Table, done: int) -> pa.Table:
    """Refuse nulls and empty strings; a null score is one that is not finite."""
    for name in SCHEMA.names:
        column = table[name]
        if column.null_count:
            row = column.is_null().to_pylist().index(True)
            raise InputError(f"{path}:{done + row + 1}: {name!r} is null. Mend or remove this row.")
        if table.schema.field(name).type == pa.string():
            blank = pc.equal(pc.utf8_trim_whitespace(column), "").to_pylist()
            if any(blank):
                raise InputError(f"{path}:{done + blank.index(True) + 1}: {name!r} is empty. Mend or remove this row.")
            continue
        values, lengths = _ragged(column)
        if values.null_count and name == "teacher_scores":
            known = pa.ListArray.from_arrays(pa.array(_offsets(lengths), pa.int32()), values.fill_null(float("nan")))
            table = table.set_column(table.schema.get_field_index(name), SCHEMA.field(name), known)
        elif values.null_count:
            place = values.is_null().to_pylist().index(True)
            row = int(np.searchsorted(_offsets(lengths), place, side="right"))
            raise InputError(f"{path}:{done + row}: {name!r} has a null in it. Mend or remove this row.")
    return table


def _format(path: Path) -> str:
    return choose(f"{path}: the ending", path.suffix.lstrip("."), ("parquet", "jsonl"))


def _read_format(path: Path) -> str:
    """``table`` or ``jsonl``."""
    ending, packed = split_ending(path)
    if ending == ".jsonl":
        return "jsonl"
    if ending not in TABLES or packed:
        valid = (*TABLES, *(f".jsonl{each}" for each in ("", *ENDINGS)))
        choose(f"{path}: the ending", (ending + packed)[1:], [each[1:] for each in valid])
    return "table"


def _ragged(column: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray]:
    merged = column.combine_chunks()
    merged = merged if isinstance(merged, pa.Array) else pa.concat_arrays(merged.chunks)
    return merged.flatten(), merged.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)


def _in_blocks(items: Iterable[_T], size: Callable[[_T], tuple[int, int]]) -> Iterator[list[_T]]:
    """Blocks of about ``_BLOCK`` lists, fewer where they are long; ``size``: lists and candidates of an item."""
    block: list[_T] = []
    lists, candidates = 0, 0
    for item in items:
        block.append(item)
        more_lists, more_candidates = size(item)
        lists, candidates = lists + more_lists, candidates + more_candidates
        if lists >= _BLOCK or candidates >= _BLOCK_CANDIDATES:
            yield block
            block, lists, candidates = [], 0, 0
    if block:
        yield block


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
