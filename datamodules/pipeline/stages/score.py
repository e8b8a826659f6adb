"""Stage score: one or several teachers score each candidate of each query, once."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datamodules.corpus import Corpus
from datamodules.hits import Hits, min_max
from datamodules.pipeline.stages.mine import NOWHERE, first_ranks, positive_rows, table_to_hits
from datamodules.pipeline.stages.queries import QUERIES
from datamodules.pipeline.stages.stage import Blocks, Output, Stage, table_writer
from datamodules.query_lists.files import to_ragged
from datamodules.query_lists.query_list import to_offsets
from datamodules.storage.parquet import ParquetRows, regrouped, table_blocks
from datamodules.streamed_quantiles import streamed_quantiles
from retriever.errors import require_positive
from retriever.teachers import Ensemble, PairScores, RetrievedPassages, Teacher
from retriever.teachers.ensemble import SCALED_BETWEEN

_CANDIDATES = "candidates.parquet"
_WRITTEN = 10_000  # lists that are in memory, and are written, together


@dataclass(eq=False)
class Score(Stage):
    """Raw teacher scores of the candidates.

    Output: ``scored.parquet``: the collected queries with ``passage_ids`` and ``teacher_scores`` (best first),
    ``scores.<member>`` (raw, in the same order) and ``rank.<retriever>``, where the first positive stands in a run
    (null: nowhere).

    Args:
        corpus: where the texts are.
        collected: output of stage queries.
        mined: output of stage mine.
        teacher: one teacher; of an :class:`~retriever.teachers.Ensemble`, the members' raw scores are kept, too.
        candidates: of each query, the best by the fused order; None scores all.
        block_size: queries of a block; a kill loses at most one.
    """

    name = "score"
    unit = "pairs"

    corpus: Corpus
    collected: Output
    mined: Output
    teacher: Teacher
    _: KW_ONLY
    candidates: int | None = None
    block_size: int = 32

    def __post_init__(self) -> None:
        """Check the values, and take one teacher as an ensemble of one."""
        require_positive(block_size=self.block_size, candidates=self.candidates or 1)
        self.ensemble = Ensemble.of(self.teacher)

    def settings(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        return {**self.ensemble.description(), "candidates": self.candidates, "block_size": self.block_size}

    def inputs(self) -> dict[str, str]:
        """See :class:`Stage`."""
        runs = {p: self.mined.sha256(p) for p in self.mined.manifest["outputs"]}
        return {"corpus": self.corpus.sha256, "queries": self.collected.sha256("queries.parquet"), **runs}

    def block_sizes(self) -> list[int]:
        """Pairs of each block, times the teachers."""
        lengths = []
        for _, table in table_blocks(self.mined.file(_CANDIDATES), _WRITTEN, ["rows"]):
            lengths.append(pc.list_value_length(table["rows"]).to_numpy())
        pairs = np.concatenate(lengths) if lengths else np.zeros(0, np.int64)
        pairs = np.minimum(pairs, self.candidates) if self.candidates else pairs
        starts = range(0, len(pairs), self.block_size)
        return [int(pairs[s : s + self.block_size].sum()) * len(self.ensemble.members) for s in starts]

    def run_block(self, number: int, advance: Callable[[int], None]) -> pa.Table:
        """Score the candidates of some queries by every member, in the candidates' order."""
        start, stop = number * self.block_size, (number + 1) * self.block_size
        part = _Part(self._queries.rows(start, stop), self._candidates(start, stop), self._hits(start, stop))
        offsets = pa.array(to_offsets((part.candidates.rows >= 0).sum(1)), pa.int32())
        columns: dict[str, pa.Array] = {}
        for name, teacher in self.ensemble.members.items():
            found = self._scored(teacher, part, advance)
            columns[f"scores.{name}"] = pa.ListArray.from_arrays(offsets, pa.array(found.scores, pa.float32()))
            columns[f"truncated.{name}"] = pa.ListArray.from_arrays(offsets, pa.array(found.truncated))
        return pa.table(columns)

    def finish(self, blocks: Blocks, folder: Path) -> dict[str, Any]:
        """See :class:`Stage`."""
        scales = self._scales(blocks)
        done, counts, truncated = 0, Counter[str](), Counter[str]()
        with ExitStack() as files:
            append: Callable[[pa.Table], None] | None = None
            for raw in regrouped(blocks, _WRITTEN):
                table = self._lists(done, raw, scales)
                append = append or files.enter_context(table_writer(folder / "scored.parquet", table.schema))
                append(table)
                done += len(table)
                counts["pairs"] += len(_flat(table["teacher_scores"]))
                counts["positive first"] += _positive_first(table)
                truncated.update({n: int(_flat(raw[f"truncated.{n}"]).sum()) for n in self.ensemble.members})
        shares = {n: round(truncated[n] / max(1, counts["pairs"]), 6) for n in self.ensemble.members}
        return {
            "queries": done,
            "pairs": counts["pairs"],
            "truncated": shares,
            "positive first": counts["positive first"],
        }

    def _scales(self, blocks: Iterable[pa.Table]) -> dict[str, tuple[float, float]]:
        """Member → the percentiles of all its scores between which they are scaled; of one member alone none."""
        names = self.ensemble.members if len(self.ensemble.members) > 1 else {}

        def read() -> Iterator[tuple[str, np.ndarray]]:
            for table in blocks if names else ():
                yield from ((name, _flat(table[f"scores.{name}"])) for name in names)

        return {
            name: (low, high)
            for name, (low, high) in streamed_quantiles(read, [percent / 100 for percent in SCALED_BETWEEN]).items()
        }

    def _lists(self, start: int, raw: pa.Table, scales: Mapping[str, tuple[float, float]]) -> pa.Table:
        """The lists of some queries, each best first, from the scores of their candidates."""
        stop = start + len(raw)
        candidates = self._candidates(start, stop).rows
        lengths = (candidates >= 0).sum(1)
        scores = {name: _flat(raw[f"scores.{name}"]).astype(np.float32) for name in self.ensemble.members}
        final = self.ensemble.combine(scores, scales)
        order = np.lexsort((-final, np.repeat(np.arange(len(lengths)), lengths)))  # stable: ties in the fused order
        table, offsets = self._queries.rows(start, stop), pa.array(to_offsets(lengths), pa.int32())
        for name, values in {
            "passage_ids": self.corpus.ids.take(pa.array(candidates[candidates >= 0][order])),
            "teacher_scores": pa.array(final[order], pa.float32()),
            **{f"scores.{n}": pa.array(s[order], pa.float32()) for n, s in scores.items() if len(scores) > 1},
        }.items():
            table = table.append_column(name, pa.ListArray.from_arrays(offsets, values))
        positives = positive_rows(table, self.corpus)
        for name, hits in self._hits(start, stop).items():
            ranks = first_ranks(hits, positives)
            table = table.append_column(f"rank.{name}", pa.array(ranks, pa.int64(), mask=ranks == NOWHERE))
        return table

    @cached_property
    def _queries(self) -> ParquetRows:
        return ParquetRows(self.collected.file("queries.parquet"), QUERIES.names)

    @cached_property
    def _files(self) -> dict[str, ParquetRows]:
        """The candidates, and each retriever's hits in the order of the retrievers."""
        names = [f"run.{name}.parquet" for name in self.mined.manifest["settings"]["retrievers"]]
        there = [name for name in names if name in self.mined.manifest["outputs"]]
        return {name: ParquetRows(self.mined.file(name)) for name in (_CANDIDATES, *there)}

    def _candidates(self, start: int, stop: int) -> Hits:
        hits = table_to_hits(self._files[_CANDIDATES].rows(start, stop))
        return Hits(hits.scores[:, : self.candidates], hits.rows[:, : self.candidates])

    def _hits(self, start: int, stop: int) -> dict[str, Hits]:
        """Retriever → its hits of some queries."""
        runs = {name: rows for name, rows in self._files.items() if name != _CANDIDATES}
        return {
            name.removeprefix("run.").removesuffix(".parquet"): table_to_hits(rows.rows(start, stop))
            for name, rows in runs.items()
        }

    def _scored(self, teacher: Teacher, part: "_Part", advance: Callable[[int], None]) -> PairScores:
        """Score the block's pairs; a repeated pair is read once."""
        # but retrievers' scores of equal queries may differ by rounding
        retrieved = teacher.retrievers is not None
        texts = zip(part.queries["query"].to_pylist(), part.candidates.rows.tolist(), strict=True)
        both = ((query, row) for query, candidates in texts for row in candidates if row >= 0)
        pairs = [(query, row, n if retrieved else 0) for n, (query, row) in enumerate(both)]
        number = {pair: n for n, pair in enumerate(dict.fromkeys(pairs))}
        queries, rows = [query for query, _, _ in number], [row for _, row, _ in number]
        passages = self.corpus.passages.take(pa.array(rows, pa.int64())).to_pylist()
        if retrieved:
            passages = RetrievedPassages(passages, _retrieval(part))
        found = teacher.score_pairs(queries, passages, advance)
        advance(len(pairs) - len(number))
        at = [number[pair] for pair in pairs]
        return PairScores(found.scores[at], found.truncated[at])


@dataclass(frozen=True)
class _Part:
    """Some queries, their candidates, and each retriever's hits for them."""

    queries: pa.Table
    candidates: Hits
    runs: Mapping[str, Hits]


def _retrieval(part: _Part) -> dict[str, np.ndarray]:
    """Look up each retriever's min-max scaled scores of the pairs, float64 [n]; 0 where it lacks one."""
    found = {}
    for name, hits in part.runs.items():
        scaled = min_max(hits.scores.astype(np.float64)).tolist()
        score_of = [dict(zip(*hit, strict=True)) for hit in zip(hits.rows.tolist(), scaled, strict=True)]
        lists = zip(score_of, part.candidates.rows.tolist(), strict=True)
        found[name] = np.array([of.get(row, 0.0) for of, rows in lists for row in rows if row >= 0])
    return found


def _positive_first(table: pa.Table) -> int:
    """How many lists begin with one of their query's positives."""
    firsts = pc.list_slice(table["passage_ids"], 0, 1).to_pylist()
    lists = zip(firsts, table["positive_ids"].to_pylist(), strict=True)
    return sum(bool(first) and first[0] in wanted for first, wanted in lists)


def _flat(column: pa.ChunkedArray) -> np.ndarray:
    return to_ragged(column)[0].to_numpy(zero_copy_only=False)
