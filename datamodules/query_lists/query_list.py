"""The query list, the unit of training data: its schema, and many of them as columns."""

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from datamodules.corpus import Corpus

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
STRINGS = ("query_ids", "queries", "query_types")
_TAKEN = 100_000  # rows of a ragged array whose places are computed at a time


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

    def select(self, keep: np.ndarray) -> "QueryLists":
        """Return the lists in ``keep`` (bool [N] or row numbers), in order."""
        keep = np.flatnonzero(keep) if keep.dtype == bool else keep
        rows, offsets = ragged_take(self.rows, self.offsets, keep)
        scores, _ = ragged_take(self.scores, self.offsets, keep)
        positive_rows, positive_offsets = ragged_take(self.positive_rows, self.positive_offsets, keep)
        return replace(
            self,
            line=self.line[keep],
            **{name: getattr(self, name).take(pa.array(keep)) for name in STRINGS},
            rows=rows,
            scores=scores,
            offsets=offsets,
            positive_rows=positive_rows,
            positive_offsets=positive_offsets,
        )

    def positive_ids(self, corpus: Corpus) -> list[list[str]]:
        """Return the labelled positives of each list, as ids of its corpus."""
        ids = corpus.ids.take(pa.array(self.positive_rows)).to_pylist()
        return [ids[a:b] for a, b in pairwise(self.positive_offsets)]


def ragged_take(values: np.ndarray, offsets: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows ``keep`` (integers [n]) of a ragged array (values [T], offsets [N + 1]) as a new one."""
    starts = offsets[keep]
    new = to_offsets(offsets[keep + 1] - starts)
    taken = np.empty(new[-1], values.dtype)
    for begin in range(0, len(keep), _TAKEN):  # the places of all values take more memory than the values
        part = slice(begin, begin + _TAKEN)
        ends = new[begin : begin + _TAKEN + 1]
        places = np.repeat(starts[part] - ends[:-1], np.diff(ends)) + np.arange(ends[0], ends[-1])
        taken[ends[0] : ends[-1]] = values[places]
    return taken, new


def to_offsets(lengths: np.ndarray) -> np.ndarray:
    """Return where each list begins, int64 [N + 1], from the lengths [N]."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
