"""Which of a group's queries are taken: good ones, and at most so many of them; texts wait on the disk meanwhile."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from datamodules.pipeline.query_quality import SEVERAL, boilerplate, passage_hashes, reason_against
from datamodules.pipeline.stages.stage import BLOCK_ROWS, table_writer
from datamodules.splits import text_hashes
from datamodules.storage.columns import ColumnWriter
from datamodules.storage.parquet import table_blocks
from datamodules.text.words import normalize_texts

_SORTED = 2**22  # queries whose turns are found together


class QueryChoice:
    """The queries of a group that are taken.

    Args:
        tables: all queries (query_id, query, positive_ids, …); those of a passage are not cut apart where ``quality``.
        folder: an empty one, for the texts and a few numbers of each query.
        quality: leave out those that say nothing of their passage, see :mod:`datamodules.pipeline.query_quality`.
        limit: at most so many, see :func:`drawn_evenly`; None takes all.

    Attributes:
        left_out: reason → how many ``quality`` left out.
    """

    def __init__(self, tables: Iterable[pa.Table], folder: Path, quality: bool, limit: int | None) -> None:
        self.left_out = Counter[str]()
        self._folder, self._path = folder, folder / "queries.parquet"
        columns, tables = ColumnWriter(folder), iter(tables)
        first = next(tables, None)
        self._taken = np.zeros(0, dtype=bool)
        if first is None:
            return
        with table_writer(self._path, first.schema) as append:
            self._add(first, columns, append, quality)
            for table in tables:
                self._add(table, columns, append, quality)
        self._taken = self._of_few_passages() if quality else np.ones(len(self._column("order")), dtype=bool)
        if limit is not None:
            rows = np.flatnonzero(self._taken)
            drawn = drawn_evenly(self._column("passage")[rows], self._column("order")[rows], limit)
            self._taken[rows[~drawn]] = False

    def __len__(self) -> int:
        return int(self._taken.sum())

    def tables(self) -> Iterator[pa.Table]:
        """Read the queries that are taken, in their order."""
        if len(self):
            for start, table in table_blocks(self._path, BLOCK_ROWS):
                yield table.filter(pa.array(self._taken[start : start + len(table)]))

    def _add(self, table: pa.Table, columns: ColumnWriter, append: Callable[[pa.Table], None], quality: bool) -> None:
        if quality:
            texts = table["query"].to_pylist()
            normalized = normalize_texts(texts)
            columns.append("words_of_passages", passage_hashes(normalized, table["positive_ids"].to_pylist()))
            reasons = [reason_against(text) for text in texts]
            self.left_out.update(reason for reason in reasons if reason)
            good = np.array([reason is None for reason in reasons])
            columns.append("words", text_hashes(normalized)[good])
            table = table.filter(pa.array(good))
        append(table)
        columns.append("order", text_hashes(table["query_id"].to_pylist()))
        passages = (min(ids, default="") for ids in table["positive_ids"].to_pylist())
        columns.append("passage", text_hashes(passages))

    def _of_few_passages(self) -> np.ndarray:
        """Which queries have words that are not in several passages, bool [N]."""
        known = boilerplate(self._column("words_of_passages", "r+"))
        several = known_among(self._column("words"), known)
        if several.any():
            self.left_out[SEVERAL] = int(several.sum())
        return ~several

    def _column(self, name: str, mode: Literal["r", "r+"] = "r") -> np.ndarray:
        path = self._folder / f"{name}.uint64"
        return np.memmap(path, np.uint64, mode) if path.stat().st_size else np.zeros(0, np.uint64)


def drawn_evenly(passages: np.ndarray, order: np.ndarray, limit: int) -> np.ndarray:
    """Draw at most ``limit`` queries, of each passage about as many, by a hash and so the same everywhere.

    Args:
        passages: uint64 [N], a hash of each query's passage.
        order: uint64 [N], a hash of each query's id.
        limit: how many.

    Returns:
        bool [N].
    """
    chances, turns = order / 2.0**64, np.zeros(len(order), np.int32)
    parts = -(-len(order) // _SORTED)
    for part in range(parts):
        rows = np.flatnonzero(passages % np.uint64(parts) == part)
        rows = rows[np.lexsort((chances[rows], passages[rows]))]
        places, begins = np.arange(len(rows)), np.diff(passages[rows], prepend=~passages[rows[:1]]) != 0
        turns[rows] = places - np.maximum.accumulate(np.where(begins, places, 0))
    whole = np.cumsum(np.bincount(turns, minlength=1))
    first_not_whole = int(np.searchsorted(whole, limit, side="right"))
    drawn = turns < first_not_whole
    rest = np.flatnonzero(turns == first_not_whole)
    drawn[rest[np.argsort(chances[rest], kind="stable")[: limit - int(drawn.sum())]]] = True
    return drawn


def known_among(hashes: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Which hashes are among the known, sorted ones, bool [N]."""
    if not len(known):
        return np.zeros(len(hashes), dtype=bool)
    at = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return known[at] == hashes
