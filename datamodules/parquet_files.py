"""Reading Parquet files: whole, valid, and what is wrong with them in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from datamodules.files import require_file
from retriever.errors import InputError, shown

# How files are written: with a checksum of each page, so that what a disk or a network did to them is seen.
PARQUET = {"compression": "zstd", "write_page_checksum": True}


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a Parquet file, memory-mapped; its pages are checked where the file has checksums.

    Raises:
        InputError: no such file, a torn one, or two columns of one name.
    """
    require_file(path)
    with _in_words(path, "not a whole Parquet file"):
        file = pq.ParquetFile(path, memory_map=True, page_checksum_verification=True)
        names = file.schema_arrow.names
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{path}: two columns are called {shown(twice)}. Write it again without one of them.")
    return file


def read_parquet(path: Path) -> pa.Table:
    """Read a Parquet file whole; its pages are checked where the file has checksums.

    Raises:
        InputError: no such file, or a damaged one.
    """
    require_file(path)
    with _in_words(path, "not a whole Parquet file"):
        return pq.read_table(path, page_checksum_verification=True)


def parquet_blocks(
    path: Path, size: int, columns: Sequence[str] | None = None, schema: pa.Schema | None = None
) -> Iterator[tuple[int, pa.Table]]:
    """The rows before a block, and the block, of at most ``size`` rows.

    Args:
        path: the file.
        size: rows of a block.
        columns: their names; None reads all.
        schema: cast to this one.

    Raises:
        InputError: with file and row, for a block that cannot be read or cast, or a text that is not UTF-8.
    """
    file = open_parquet(path)
    done = 0
    with _in_words(path, "this file is torn or of other types", lambda: done + 1):
        for batch in file.iter_batches(size, columns=columns):
            batch.validate(full=True)
            table = pa.Table.from_batches([batch])
            yield done, table.select(schema.names).cast(schema, safe=False) if schema else table
            done += len(batch)
    if done != file.metadata.num_rows:
        raise InputError(
            f"{path}:{done + 1}: this file is torn ({file.metadata.num_rows} rows announced, {done} there). Write or "
            "fetch it again."
        )


@contextmanager
def _in_words(path: Path, what: str, row: Callable[[], int] | None = None) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        place = f":{row()}" if row else ""
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{path}{place}: {what} ({reason}). Write or fetch it again.") from error
