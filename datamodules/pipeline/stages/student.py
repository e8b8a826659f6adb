"""A student that lists are made for: those of one retriever's hits."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from datamodules.corpus import Corpus
from datamodules.pipeline.stages.stage import Output
from datamodules.query_lists.files import to_ragged
from datamodules.query_lists.query_list import to_offsets
from datamodules.storage.parquet import ParquetRows


@dataclass(frozen=True)
class Student:
    """Whose hits lists are made of.

    Attributes:
        retriever: its name in stage mine.
        mined: output of stage mine.
        corpus: where the passages are.
    """

    retriever: str
    mined: Output
    corpus: Corpus

    @property
    def file(self) -> str:
        """The retriever's hits."""
        return f"run.{self.retriever}.parquet"

    def candidates(self, table: pa.Table, start: int) -> pa.Table:
        """Take the candidates that are none of its hits out of some lists of ``scored.parquet``.

        Args:
            table: those from ``start`` on, or some of their columns, ``passage_ids`` among them.
            start: the number of the first.
        """
        hits, found = to_ragged(self._hits.rows(start, start + len(table))["rows"])
        ids, lengths = to_ragged(table["passage_ids"])
        rows, width = self.corpus.rows(ids), len(self.corpus)
        of_list, of_query = (np.repeat(np.arange(len(table)), counts) for counts in (lengths, found))
        keep = np.isin(of_list * width + rows, of_query * width + hits.to_numpy(zero_copy_only=False))
        left = pa.array(to_offsets(np.bincount(of_list[keep], minlength=len(table))), pa.int32())
        for name in of_candidates(table):
            values = to_ragged(table[name])[0].filter(pa.array(keep))
            column = pa.ListArray.from_arrays(left, values).cast(table[name].type)
            table = table.set_column(table.schema.get_field_index(name), name, column)
        return table

    @cached_property
    def _hits(self) -> ParquetRows:
        return ParquetRows(self.mined.file(self.file), ["rows"])


def of_candidates(table: pa.Table) -> list[str]:
    """The columns that hold a value for each candidate."""
    return [n for n in table.column_names if n in ("passage_ids", "teacher_scores") or n.startswith("scores.")]
