"""Texts on disk that are read by number or in sorted order; memory does not grow with them."""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

_MEMORY = 64  # MiB, of pages and of what is sorted at a time
_FETCHED = 500  # texts that one query names


class SortedTexts:
    """Numbered texts in an SQLite file, which sorts by merging what it writes beside it.

    Args:
        folder: where the file and what is sorted go: about twice the texts' size while they are read in order.
    """

    def __init__(self, folder: Path) -> None:
        self._base = sqlite3.connect(folder / "texts.sqlite", isolation_level=None)
        pragmas = {"journal_mode": "OFF", "synchronous": "OFF", "cache_size": -1024 * _MEMORY, "temp_store": "FILE"}
        for name, value in pragmas.items():
            self._base.execute(f"PRAGMA {name} = {value}")
        directory = str(folder).replace("'", "''")
        self._base.execute(f"PRAGMA temp_store_directory = '{directory}'")  # not /tmp, which may be memory
        self._base.execute("CREATE TABLE texts (number INTEGER PRIMARY KEY, text TEXT NOT NULL)")
        self._base.create_function("backwards", 1, lambda text: text[::-1], deterministic=True)

    def __enter__(self) -> "SortedTexts":
        return self

    def __exit__(self, *_: object) -> None:
        self._base.execute("PRAGMA temp_store_directory = ''")  # it is the whole process'
        self._base.close()

    def append(self, numbered: Iterable[tuple[int, str]]) -> None:
        """Add texts, each under a number of its own."""
        self._base.execute("BEGIN")
        self._base.executemany("INSERT INTO texts VALUES (?, ?)", numbered)
        self._base.execute("COMMIT")

    def descending(self, reverse: bool = False) -> Iterator[tuple[int, str]]:
        """Read numbers and texts, the last text first; equal texts by their numbers.

        Args:
            reverse: read and sort each text from its end.
        """
        read = "backwards(text)" if reverse else "text"
        # bytes of UTF-8 have the order of the characters that they are of
        yield from self._base.execute(f"SELECT number, {read} AS found FROM texts ORDER BY found DESC, number")

    def read(self, numbers: Sequence[int]) -> list[str]:
        """Read the texts of these numbers."""
        found: dict[int, str] = {}
        for start in range(0, len(numbers), _FETCHED):
            part = list(numbers[start : start + _FETCHED])
            marks = ", ".join("?" * len(part))
            found |= dict(self._base.execute(f"SELECT number, text FROM texts WHERE number IN ({marks})", part))
        return [found[number] for number in numbers]
