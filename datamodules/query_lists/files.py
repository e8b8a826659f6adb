"""Files of query lists: Parquet, Arrow and JSON Lines, written whole and read block by block."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datamodules.formats.records import INDEX
from datamodules.query_lists.query_list import SCHEMA, QueryList, to_offsets
from datamodules.storage.compressed import ENDINGS, split_ending
from datamodules.storage.files import atomic_path, json_lines, read_json
from datamodules.storage.parquet import PARQUET, TABLES, is_list, open_table, table_blocks
from retriever.errors import InputError, choose, shown

_T = TypeVar("_T")
_METADATA_KEY = b"query_lists"
_BLOCK = 10_000  # lists that are checked, or written, together
_BLOCK_CANDIDATES = 2_000_000  # and candidates, where lists are long
_ROWS = 500  # of a Parquet file, read at a time
_READ = 100  # lists that are Python objects at a time


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
    """Read a file list by list, unchecked.

    Raises:
        InputError: with file and line.
    """
    path = Path(path)
    for table, numbers in list_tables(path):
        for start in range(0, len(table), _READ):
            for number, record in enumerate(table.slice(start, _READ).to_pylist(), start):
                scored, named = len(record["teacher_scores"]), len(record["passage_ids"])
                if scored != named:
                    raise InputError(unequal_lengths(path, numbers[number], named, scored))
                yield QueryList(**record)


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Read what a list file says of its teacher; empty where it says nothing.

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


def list_tables(path: Path) -> Iterator[tuple[pa.Table, list[int]]]:
    """Read blocks of lists in the schema, with their line (or row) numbers."""
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


def unequal_lengths(path: Path, line: int, passages: int, scores: int) -> str:
    """Say that a list has more candidates than scores, or fewer."""
    return f"{path}:{line}: {passages} passage_ids but {scores} teacher_scores. Each candidate needs one score."


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
            raise InputError(f"{path}:{done + row + 1}: {name!r} is null. Correct or remove this row.")
        if table.schema.field(name).type == pa.string():
            blank = pc.equal(pc.utf8_trim_whitespace(column), "").to_pylist()
            if any(blank):
                raise InputError(
                    f"{path}:{done + blank.index(True) + 1}: {name!r} is empty. Correct or remove this row."
                )
            continue
        values, lengths = to_ragged(column)
        if values.null_count and name == "teacher_scores":
            known = pa.ListArray.from_arrays(pa.array(to_offsets(lengths), pa.int32()), values.fill_null(float("nan")))
            table = table.set_column(table.schema.get_field_index(name), SCHEMA.field(name), known)
        elif values.null_count:
            place = values.is_null().to_pylist().index(True)
            row = int(np.searchsorted(to_offsets(lengths), place, side="right"))
            raise InputError(f"{path}:{done + row}: {name!r} has a null in it. Correct or remove this row.")
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


def to_ragged(column: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray]:
    """Flatten a column of lists: all values, and the length of each list, int64 [N]."""
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
