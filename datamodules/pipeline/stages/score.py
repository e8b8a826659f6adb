"""Stage score: one or several teachers score each candidate of each query, once."""

from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from datamodules.corpus import Corpus
from datamodules.hits import Hits, min_max
from datamodules.pipeline.stages.mine import NOWHERE, first_ranks, positive_rows, table_to_hits
from datamodules.pipeline.stages.queries import QUERIES
from datamodules.pipeline.stages.stage import Output, Stage, table_writer
from datamodules.query_lists.files import to_ragged
from retriever.errors import require_positive
from retriever.teachers import Ensemble, PairScores, RetrievedPassages, Teacher


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
        pairs = (self._candidates.rows >= 0).sum(1)
        starts = range(0, len(pairs), self.block_size)
        return [int(pairs[s : s + self.block_size].sum()) * len(self.ensemble.members) for s in starts]

    def run_block(self, number: int, advance: Callable[[int], None]) -> pa.Table:
        """Score the candidates of some queries by every member, in the candidates' order."""
        block = slice(number * self.block_size, (number + 1) * self.block_size)
        lengths = (self._candidates.rows[block] >= 0).sum(1)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        columns: dict[str, pa.Array] = {}
        for name, teacher in self.ensemble.members.items():
            found = self._scored(teacher, block, advance)
            columns[f"scores.{name}"] = pa.ListArray.from_arrays(offsets, pa.array(found.scores, pa.float32()))
            columns[f"truncated.{name}"] = pa.ListArray.from_arrays(offsets, pa.array(found.truncated))
        return pa.table(columns)

    def finish(self, blocks: Iterator[pa.Table], folder: Path) -> dict[str, Any]:
        """See :class:`Stage`."""
        tables = list(blocks)
        raw = {
            name: np.concatenate([_flat(t[f"scores.{name}"]) for t in tables]).astype(np.float32)
            for name in self.ensemble.members
        }
        final = self.ensemble.combine(raw)
        lengths = (self._candidates.rows >= 0).sum(1)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        order = np.lexsort((-final, np.repeat(np.arange(len(lengths)), lengths)))  # stable: ties in the fused order
        ids = self.corpus.ids.take(pa.array(self._candidates.rows[self._candidates.rows >= 0][order]))
        ranks = {f"rank.{n}": first_ranks(h, self._positives) for n, h in self._runs.items()}
        table = self._queries
        for name, values in {
            "passage_ids": ids,
            "teacher_scores": pa.array(final[order], pa.float32()),
            **{f"scores.{n}": pa.array(s[order], pa.float32()) for n, s in raw.items() if len(raw) > 1},
        }.items():
            table = table.append_column(name, pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values))
        for name, values in ranks.items():
            table = table.append_column(name, pa.array(values, pa.int64(), mask=values == NOWHERE))
        with table_writer(folder / "scored.parquet", table.schema) as append:
            for start in range(0, len(table), 10_000):
                append(table.slice(start, 10_000))
        truncated = {n: sum(int(_flat(t[f"truncated.{n}"]).sum()) for t in tables) for n in self.ensemble.members}
        return {
            "queries": len(table),
            "pairs": len(final),
            "truncated": {n: round(count / max(1, len(final)), 6) for n, count in truncated.items()},
            "positive first": sum(
                ids[int(offsets[query])].as_py() in wanted
                for query, wanted in enumerate(self._queries["positive_ids"].to_pylist())
                if lengths[query]
            ),
        }

    @cached_property
    def _queries(self) -> pa.Table:
        return self.collected.table("queries.parquet").select(QUERIES.names)

    @cached_property
    def _positives(self) -> list[np.ndarray]:
        return positive_rows(self._queries, self.corpus)

    @cached_property
    def _candidates(self) -> Hits:
        hits = table_to_hits(self.mined.table("candidates.parquet"))
        return Hits(hits.scores[:, : self.candidates], hits.rows[:, : self.candidates])

    @cached_property
    def _runs(self) -> dict[str, Hits]:
        names = [n for n in self.mined.manifest["outputs"] if n.startswith("run.")]
        in_order = self.mined.manifest["settings"]["retrievers"]
        names.sort(key=lambda n: list(in_order).index(n.removeprefix("run.").removesuffix(".parquet")))
        return {n.removeprefix("run.").removesuffix(".parquet"): table_to_hits(self.mined.table(n)) for n in names}

    def _scored(self, teacher: Teacher, block: slice, advance: Callable[[int], None]) -> PairScores:
        """Score the block's pairs; a repeated pair is read once."""
        # but retrievers' scores of equal queries may differ by rounding
        retrieved = teacher.retrievers is not None
        texts = zip(self._queries["query"][block].to_pylist(), self._candidates.rows[block].tolist(), strict=True)
        both = ((query, row) for query, candidates in texts for row in candidates if row >= 0)
        pairs = [(query, row, n if retrieved else 0) for n, (query, row) in enumerate(both)]
        number = {pair: n for n, pair in enumerate(dict.fromkeys(pairs))}
        queries, rows = [query for query, _, _ in number], [row for _, row, _ in number]
        passages = self.corpus.passages.take(pa.array(rows, pa.int64())).to_pylist()
        if retrieved:
            passages = RetrievedPassages(passages, self._retrieval(block))
        found = teacher.score_pairs(queries, passages, advance)
        advance(len(pairs) - len(number))
        at = [number[pair] for pair in pairs]
        return PairScores(found.scores[at], found.truncated[at])

    def _retrieval(self, block: slice) -> dict[str, np.ndarray]:
        """Look up each retriever's min-max scaled scores of the block's pairs, float64 [n]; 0 where it lacks one."""
        found = {}
        for name, hits in self._runs.items():
            scaled = min_max(hits.scores[block].astype(np.float64)).tolist()
            score_of = [dict(zip(*hit, strict=True)) for hit in zip(hits.rows[block].tolist(), scaled, strict=True)]
            lists = zip(score_of, self._candidates.rows[block].tolist(), strict=True)
            found[name] = np.array([of.get(row, 0.0) for of, rows in lists for row in rows if row >= 0])
        return found


def _flat(column: pa.ChunkedArray) -> np.ndarray:
    return to_ragged(column)[0].to_numpy(zero_copy_only=False)
