"""Hashes of input files, which several parts of a run ask for: each file is read once."""

import os
import time
from pathlib import Path

from retriever.hashing import file_sha256

_COARSEST_NS = 2_000_000_000  # between two times that a file system tells apart: FAT's two seconds
_known: dict[str, tuple[tuple[int, ...], str]] = {}  # path → state, SHA-256


def input_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal; of one that this process has hashed and that has not changed since, from memory.

    A file that changed less than two seconds before it was read is read again: a later change could bear the same time.

    Raises:
        InputError: it cannot be read.
    """
    key, before, now = os.path.abspath(path), _state(path), time.time_ns()
    if key in _known and _known[key][0] == before:
        return _known[key][1]
    digest = file_sha256(path)
    if before and before == _state(path) and max(before[:2]) < now - _COARSEST_NS:
        _known[key] = before, digest
    return digest


def _state(path: Path) -> tuple[int, ...]:
    """What a change of the content changes, times first; empty where there is no file, which reading it will tell."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_dev
