"""Columns of strings and numbers on disk: written block by block, whole or not there, opened memory-mapped."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock

from datamodules.storage.files import sync, write_json

_BLOCK = 10_000
_MARK = "whole.json"


class ColumnWriter:
    """Appends blocks to the columns of an empty folder.

    A column of numbers is the file ``<name>.<dtype>``. A ragged column has ``<name>_offsets.int64`` [N + 1] beside it.
    Strings are a ragged column of UTF-8 bytes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ends: dict[str, int] = {}

    def append(self, name: str, values: np.ndarray, lengths: np.ndarray | None = None) -> None:
        """Add numbers to a column; with ``lengths`` (integers [n]) n ragged rows, one after the other."""
        with open(self.folder / f"{name}.{values.dtype}", "ab") as file:
            file.write(np.ascontiguousarray(values).data)
        if lengths is not None:
            begin = self._ends.get(name)
            ends = (begin or 0) + np.cumsum(lengths, dtype=np.int64)
            self.append(f"{name}_offsets", ends if begin is not None else np.concatenate([[0], ends]))
            self._ends[name] = int(ends[-1]) if len(ends) else begin or 0

    def append_strings(self, name: str, strings: pa.Array | pa.ChunkedArray | Sequence[str]) -> None:
        """Add strings to a column."""
        lengths, data = _lengths_and_bytes(_large(strings))
        self.append(name, data, lengths)


def cached_columns(
    folder: Path, make: Callable[[ColumnWriter], dict[str, Any]]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Columns that are made once; other processes wait meanwhile.

    Args:
        folder: theirs alone, named by what they depend on.
        make: writes them and returns facts about them (JSON values).

    Returns:
        Name → read-only memory-mapped array (``<name>_offsets`` beside a ragged one), and the facts.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / _MARK).is_file():  # written last: where it is, all is
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            try:
                facts = make(ColumnWriter(folder))
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            for path in folder.iterdir():
                sync(path)
            write_json(folder / _MARK, facts)
    facts = json.loads((folder / _MARK).read_text(encoding="utf-8"))
    return {path.stem: _map(path) for path in folder.iterdir() if path.name != _MARK}, facts


def mapped_strings(columns: dict[str, np.ndarray], name: str) -> pa.LargeStringArray:
    """A column of strings as an Arrow array over the mapped files."""
    offsets = columns[f"{name}_offsets"]
    return pa.LargeStringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(columns[name]))


def update_digest(digest: Any, strings: pa.Array | pa.ChunkedArray | Sequence[str]) -> None:
    """Add strings, in their order, to a hash of :mod:`hashlib`; whatever holds them."""
    for block in string_blocks(strings):
        lengths, data = _lengths_and_bytes(block)
        digest.update(lengths.tobytes())
        digest.update(data)


def string_blocks(
    strings: pa.Array | pa.ChunkedArray | Sequence[str], size: int = _BLOCK
) -> Iterator[pa.LargeStringArray]:
    """At most ``size`` strings at a time."""
    for start in range(0, len(strings), size):
        yield _large(strings[start : start + size])


def each_string(strings: pa.Array | pa.ChunkedArray | Sequence[str], size: int = _BLOCK) -> Iterator[str]:
    """The strings, at most ``size`` of them in memory at a time."""
    for block in string_blocks(strings, size):
        yield from block.to_pylist()


def _large(strings: pa.Array | pa.ChunkedArray | Sequence[str]) -> pa.LargeStringArray:
    if isinstance(strings, pa.ChunkedArray):
        strings = strings.cast(pa.large_string()).combine_chunks()
    return strings.cast(pa.large_string()) if isinstance(strings, pa.Array) else pa.array(strings, pa.large_string())


def _lengths_and_bytes(strings: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
    if not len(strings):
        return np.zeros(0, np.int64), np.zeros(0, np.uint8)
    _, offsets, data = strings.buffers()
    offsets = np.frombuffer(offsets, np.int64)[strings.offset : strings.offset + len(strings) + 1]
    data = np.frombuffer(data, np.uint8) if data else np.zeros(0, np.uint8)
    return np.diff(offsets), data[offsets[0] : offsets[-1]]


def _map(path: Path) -> np.ndarray:
    dtype = np.dtype(path.suffix[1:])
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)
