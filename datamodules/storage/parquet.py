"""Reading tables, Parquet and Arrow files: whole, valid, and what is wrong with them in words."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datamodules.storage.files import require_file
from retriever.errors import InputError, shown

# How files are written: with a checksum of each page, so that what a disk or a network did to them is seen.
PARQUET = {"compression": "zstd", "write_page_checksum": True}
_DECODED = 10_000  # rows
ROW_GROUP = 1_048_576  # rows that Arrow writes as one group where nothing else is said
ARROW = (".arrow", ".feather")
TABLES = (".parquet", *ARROW)
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


class ArrowFile:
    """An Arrow file or an Arrow stream (what ``datasets`` saves), memory-mapped; the same face as a ParquetFile.

    Args:
        path: the file. These have no checksums, so a changed byte inside a value is not seen.

    Raises:
        OSError, pa.ArrowException: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._file = pa.memory_map(str(path))
        self._is_stream = self._file.read(6) != b"ARROW1"
        self._file.seek(0)
        if self._is_stream and (
            self._file.size() < 8 or self._file.read_at(8, self._file.size() - 8) != _END_OF_STREAM
        ):
            raise pa.ArrowInvalid("its end is missing")
        self._reader = pa.ipc.open_stream(self._file) if self._is_stream else pa.ipc.open_file(self._file)
        self.schema_arrow: pa.Schema = self._reader.schema

    def iter_batches(self, size: int, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows, at most ``size`` at a time."""
        reader = self._reader
        batches = reader if self._is_stream else map(reader.get_batch, range(reader.num_record_batches))
        for batch in batches:
            batch.validate(full=True)
            for start in range(0, len(batch), size):
                part = batch.slice(start, size)
                yield part if columns is None else part.select(list(columns))
        if self._is_stream and self._file.tell() != self._file.size():
            raise pa.ArrowInvalid("there is more behind its end")


def open_table(path: Path) -> Any:
    """Open a Parquet or (``.arrow``, ``.feather``) Arrow file, memory-mapped.

    Pages of Parquet files are checked where the file has checksums.

    Raises:
        InputError: no such file, an incomplete one, or two columns of one name.
    """
    require_file(path)
    kind = "Arrow" if path.suffix in ARROW else "Parquet"
    with _in_words(path, f"not a whole {kind} file"):
        if kind == "Arrow":
            file: Any = ArrowFile(path)
        else:
            file = pq.ParquetFile(path, memory_map=True, page_checksum_verification=True)
        names = file.schema_arrow.names
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{path}: two columns are called {shown(twice)}. Write it again without one of them.")
    return file


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file, or some of its columns; its pages are checked where the file has checksums.

    Raises:
        InputError: no such file, or a damaged one.
    """
    require_file(path)
    with _in_words(path, "not a whole Parquet file"):
        return pq.read_table(path, columns=columns, page_checksum_verification=True)


class ParquetRows:
    """Any rows of a Parquet file; those that were decoded last stay in memory, some thousands, and nothing else.

    Read them in their order: going back decodes a row group anew, up to what is asked for.

    Args:
        path: the file.
        columns: their names; None reads all.

    Raises:
        InputError: as :func:`open_table`.
    """

    def __init__(self, path: Path, columns: Sequence[str] | None = None) -> None:
        self._path, self._file = path, open_table(path)
        self._columns = None if columns is None else list(columns)
        metadata = self._file.metadata
        self._groups = range(metadata.num_row_groups)
        self._ends = list(accumulate(metadata.row_group(n).num_rows for n in self._groups))
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._held, self._first = self._empty(), 0  # what was decoded last, and its first row's number

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def rows(self, start: int, stop: int) -> pa.Table:
        """Read rows from ``start`` up to ``stop``, or to the end.

        Raises:
            InputError: they cannot be read.
        """
        stop, parts = min(stop, len(self)), []
        while start < stop:
            self._decode_to(start)
            parts.append(self._held.slice(start - self._first, stop - start))
            start += len(parts[-1])
        return pa.concat_tables(parts).combine_chunks() if parts else self._empty()

    def _decode_to(self, row: int) -> None:
        """Hold a part of the file with this row in it."""
        group = bisect_right(self._ends, row)
        begin = self._ends[group - 1] if group else 0
        with _in_words(self._path, "not a whole Parquet file"):
            if row < self._first or begin > self._first + len(self._held) or not len(self._held):
                self._batches = self._file.iter_batches(_DECODED, self._groups[group:], self._columns)
                self._held, self._first = self._empty(), begin
            while row >= self._first + len(self._held):
                self._first += len(self._held)
                self._held = pa.Table.from_batches([next(self._batches)])

    def _empty(self) -> pa.Table:
        table = self._file.schema_arrow.empty_table()
        return table if self._columns is None else table.select(self._columns)


def regrouped(tables: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """Cut tables anew: the same rows in tables of ``size`` rows each, the last one of what is left."""
    held: list[pa.Table] = []
    count = 0
    for table in tables:
        held.append(table)
        count += len(table)
        while count >= size:
            whole = pa.concat_tables(held)
            yield whole.slice(0, size)
            held, count = [whole.slice(size)], count - size
    if count:
        yield pa.concat_tables(held)


def table_blocks(
    path: Path, size: int, columns: Sequence[str] | None = None, schema: pa.Schema | None = None
) -> Iterator[tuple[int, pa.Table]]:
    """The rows before a block, and the block, of at most ``size`` rows; columns of bytes are read as UTF-8 texts.

    Args:
        path: the file.
        size: rows of a block.
        columns: their names; None reads all.
        schema: cast to this one.

    Raises:
        InputError: with file and row, for a block that cannot be read or cast, or a text that is not UTF-8.
    """
    file = open_table(path)
    done = 0
    with _in_words(path, "this file is incomplete or of other types", lambda: done + 1):
        for batch in file.iter_batches(size, columns=columns):
            batch.validate(full=True)
            table = _bytes_as_texts(path, done, pa.Table.from_batches([batch]), asked=columns is not None)
            yield done, table.select(schema.names).cast(schema, safe=False) if schema else table
            done += len(batch)
    if path.suffix == ".parquet" and done != file.metadata.num_rows:
        raise InputError(
            f"{path}:{done + 1}: this file is incomplete ({file.metadata.num_rows} rows announced, {done} there). "
            "Write or fetch it again."
        )


def _bytes_as_texts(path: Path, done: int, table: pa.Table, asked: bool) -> pa.Table:
    """Other tools write texts without saying that they are some; columns that nobody asked for may hold other bytes."""
    for at, field in enumerate(table.schema):
        kind = _text_type(field.type)
        if kind == field.type:
            continue
        try:
            table = table.set_column(at, field.name, table[at].cast(kind))  # safe: it looks at the bytes
        except pa.ArrowInvalid as error:
            if not asked:
                continue
            row = next(n for n in range(len(table)) if not _is_cast(table[at].slice(n, 1), kind))
            raise InputError(
                f"{path}:{done + row + 1}: {field.name!r} holds bytes that are not UTF-8. Write it as text, or leave "
                "this column out."
            ) from error
    return table


def _text_type(kind: pa.DataType) -> pa.DataType:
    """The type, with strings in the place of bytes."""
    if pa.types.is_dictionary(kind):
        inner = _text_type(kind.value_type)
        return kind if inner == kind.value_type else inner
    if is_list(kind):
        inner = _text_type(kind.value_type)
        return kind if inner == kind.value_type else pa.large_list(inner)
    is_bytes = any(check(kind) for check in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view))
    return pa.large_string() if is_bytes else kind


def _is_cast(column: pa.ChunkedArray, kind: pa.DataType) -> bool:
    try:
        column.cast(kind)
    except pa.ArrowInvalid:
        return False
    return True


def is_list(kind: pa.DataType) -> bool:
    """Whether an Arrow type is that of lists, of whatever length."""
    return any(check(kind) for check in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


@contextmanager
def _in_words(path: Path, what: str, row: Callable[[], int] | None = None) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        place = f":{row()}" if row else ""
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{path}{place}: {what} ({reason}). Write or fetch it again.") from error
