"""Stage filter: queries and lists that are worth learning from."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import KW_ONLY, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datamodules.pipeline.stages.stage import BLOCK_ROWS, Blocks, Output, Stage, table_writer
from datamodules.pipeline.stages.student import Student, of_candidates
from datamodules.query_lists.files import to_ragged
from datamodules.query_lists.query_list import to_offsets
from datamodules.storage.parquet import ROW_GROUP, ParquetRows, open_table, regrouped, table_blocks
from datamodules.streamed_quantiles import streamed_quantiles
from retriever.errors import InputError, choose, require_positive

SCALE = [1, 99]  # percentiles
_SCORED = "scored.parquet"
_KIND = ("group", "query_type")


@dataclass(eq=False)
class Filter(Stage):
    """The paper's filters, each switchable; what each takes is counted by group and query type.

    Rules in order: *no positive's rank* (consistency: the source among a retriever's first hits), *not first* (the
    teacher ranks a positive first), *short list*, *low score* (the best score is not below a given one, nor below a
    quantile of all scores of its group and type). Lists that stay are cut to the teacher's best.

    Output: ``filtered.parquet``, the rows that stay, as in ``scored.parquet``.

    Args:
        scored: output of stage score.
        consistency_rank: the source must be in the first so many hits (the paper: 20); None switches the rule off.
        consistency_retrievers: of these retrievers; None takes all.
        consistency_require: of ``any`` of them, or of ``all``.
        teacher_first: keep a query only where the teacher ranks a positive first.
        min_length: candidates that a list must have (the paper: 20).
        min_top_quantile: in [0, 1] (the paper: 0.25); None switches the rule off.
        min_top_score: of the teacher's raw best score, as grade 2 of teacher ``judge``; None switches the rule off.
        keep: the teacher's best that stay in a list (the paper: 20); None keeps all.
        exempt: groups that pass with every rule but the cut switched off.
        student: make lists of the hits of one retriever alone, for a student of its kind; None keeps all candidates.
            Consistency is then that retriever's.
    """

    name = "filter"
    unit = "lists"

    scored: Output
    _: KW_ONLY
    consistency_rank: int | None = 20
    consistency_retrievers: Collection[str] | None = None
    consistency_require: str = "any"
    teacher_first: bool = True
    min_length: int = 20
    min_top_quantile: float | None = 0.25
    min_top_score: float | None = None
    keep: int | None = 20
    exempt: Collection[str] = ()
    student: Student | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        choose("filter.consistency_require", self.consistency_require, ("any", "all"))
        require_positive(min_length=self.min_length, keep=self.keep or 1, consistency_rank=self.consistency_rank or 1)
        if self.min_top_quantile is not None and not 0 <= self.min_top_quantile <= 1:
            raise InputError(f"filter.min_top_quantile is {self.min_top_quantile}; it must be in [0, 1], or null.")
        if self.keep is not None and self.keep < 2:
            raise InputError(f"filter.keep is {self.keep}; a list needs at least 2 candidates.")
        self.exempt = sorted(self.exempt)
        if self.student is not None:
            self.consistency_retrievers = [self.student.retriever]

    def settings(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        own = self.fields(*(field.name for field in fields(self) if field.name not in ("scored", "student")))
        return own | {"scale": SCALE} | ({"student": self.student.retriever} if self.student else {})

    def inputs(self) -> dict[str, str]:
        """See :class:`Stage`."""
        found = {"scored": self.scored.sha256("scored.parquet")}
        return found | ({"run": self.student.mined.sha256(self.student.file)} if self.student else {})

    def block_sizes(self) -> list[int]:
        """One block: quantiles are of all lists."""
        return [len(ParquetRows(self.scored.file(_SCORED)))]

    def run_block(self, number: int, advance: Callable[[int], None]) -> pa.Table:
        """The rule that takes each list, or null."""
        verdict = np.full(self.block_sizes()[0], None, dtype=object)
        no_list = np.zeros(len(verdict), dtype=bool)
        for start, table in self._parts():
            part, exempt = verdict[start : start + len(table)], self._is_exempt(table)
            no_list[start : start + len(table)] = _lengths(table) < 2  # two candidates are what a list is
            for rule, fails in self._rules(table):
                part[fails & ~exempt & _alive(part)] = rule
        if self.min_top_quantile is not None:
            self._judge_by_quantile(verdict, self.min_top_quantile)
        verdict[no_list & _alive(verdict)] = "short list"
        advance(len(verdict))
        return pa.table({"rule": pa.array(list(verdict), pa.string())})

    def finish(self, blocks: Blocks, folder: Path) -> dict[str, Any]:
        """See :class:`Stage`."""
        rule = pa.concat_tables(blocks)["rule"]
        kept = (
            _cut(table.filter(pc.is_null(rule[start : start + len(table)])), self.keep)
            for start, table in self._parts()
        )
        with table_writer(folder / "filtered.parquet", open_table(self.scored.file(_SCORED)).schema_arrow) as append:
            for table in regrouped(kept, ROW_GROUP):
                append(table)
        counts: dict[str, dict[str, dict[str, int]]] = {}
        for start, table in self._parts(*_KIND):
            names = (table[name].to_pylist() for name in _KIND)
            for group, kind, found in zip(*names, rule[start : start + len(table)].to_pylist(), strict=True):
                line = counts.setdefault(group, {}).setdefault(kind, {})
                line[found or "kept"] = line.get(found or "kept", 0) + 1
        return {"lists": len(rule), "kept": rule.null_count, "by_type": counts, "scale": self._scale(rule)}

    def _parts(self, *columns: str) -> Iterator[tuple[int, pa.Table]]:
        """Some lists at a time, with the number of the first; of these columns, or all."""
        student = None if columns == _KIND else self.student
        wanted = [*columns, "passage_ids"] if columns and student else [*columns] or None
        for start, table in table_blocks(self.scored.file(_SCORED), BLOCK_ROWS, wanted):
            yield start, table if student is None else student.candidates(table, start)

    def _is_exempt(self, table: pa.Table) -> np.ndarray:
        return pc.is_in(table["group"], value_set=pa.array(self.exempt, pa.string())).to_numpy()

    def _judge_by_quantile(self, verdict: np.ndarray, quantile: float) -> None:
        """Take the lists whose best score is below a quantile of all scores of their group and type."""

        def read() -> Iterator[tuple[tuple[str, str], np.ndarray]]:
            for start, table in self._parts(*_KIND, "teacher_scores"):
                yield from _scores_by_kind(table, _alive(verdict[start : start + len(table)]))

        floors = {kind: floor for kind, [floor] in streamed_quantiles(read, [quantile]).items()}
        for start, table in self._parts(*_KIND, "teacher_scores"):
            part, scores = verdict[start : start + len(table)], pc.list_slice(table["teacher_scores"], 0, 1)
            scores, lengths = to_ragged(scores)  # the best one of each list that has any
            best = np.full(len(table), np.inf)
            best[lengths > 0] = scores.to_numpy(zero_copy_only=False)
            floor = np.array([floors.get(kind, -np.inf) for kind in _kinds(table)])
            part[(best < floor) & _alive(part) & ~self._is_exempt(table)] = "low score"

    def _scale(self, rule: pa.ChunkedArray) -> dict[str, dict[str, list[float]]]:
        """Group → query type → first and 99th percentile of the scores of the lists that none but the last rule takes.

        All candidates of each count: with these, scores are normalised in the same way whatever is cut from the lists
        later.
        """
        counted = pc.or_(pc.is_null(rule), pc.fill_null(pc.equal(rule, "low score"), False)).to_numpy()

        def read() -> Iterator[tuple[tuple[str, str], np.ndarray]]:
            for start, table in self._parts(*_KIND, "teacher_scores"):
                yield from _scores_by_kind(table, counted[start : start + len(table)])

        scale: dict[str, dict[str, list[float]]] = {}
        for (group, kind), found in sorted(streamed_quantiles(read, [percent / 100 for percent in SCALE]).items()):
            scale.setdefault(group, {})[kind] = found
        return scale

    def _rules(self, table: pa.Table) -> Iterator[tuple[str, np.ndarray]]:
        if self.consistency_rank is not None:
            names = [n.removeprefix("rank.") for n in table.column_names if n.startswith("rank.")]
            for name in self.consistency_retrievers or ():
                choose("filter.consistency_retrievers: the retriever", name, names)
            chosen = self.consistency_retrievers or names
            inside = [
                pc.fill_null(pc.less_equal(table[f"rank.{n}"], self.consistency_rank), False).to_numpy() for n in chosen
            ]
            whole = np.any if self.consistency_require == "any" else np.all
            yield "inconsistent", ~whole(inside, axis=0)
        if self.teacher_first:
            ids, lengths = to_ragged(table["passage_ids"])
            full, starts = lengths > 0, to_offsets(lengths)[:-1]
            firsts = np.full(len(table), None, dtype=object)
            firsts[full] = ids.take(pa.array(starts[full])).to_pylist()
            positives = table["positive_ids"].to_pylist()
            yield "not first", np.array([f not in p for f, p in zip(firsts, positives, strict=True)], dtype=bool)
        yield "short list", _lengths(table) < self.min_length
        if self.min_top_score is not None:
            best = pc.list_element(table.filter(pa.array(_lengths(table) > 0))["teacher_scores"], 0).to_numpy()
            low = np.zeros(len(table), dtype=bool)
            low[_lengths(table) > 0] = best < self.min_top_score
            yield "low score", low


def _kinds(table: pa.Table) -> list[tuple[str, str]]:
    """Group and query type of each list."""
    return list(zip(*(table[name].to_pylist() for name in _KIND), strict=True))


def _scores_by_kind(table: pa.Table, lists: np.ndarray) -> Iterator[tuple[tuple[str, str], np.ndarray]]:
    """Group and query type, and the scores of those of the lists (bool [N]) that are of it."""
    numbers: dict[tuple[str, str], list[int]] = {}
    for number, kind in enumerate(_kinds(table)):
        if lists[number]:
            numbers.setdefault(kind, []).append(number)
    for kind, rows in numbers.items():
        yield kind, to_ragged(table["teacher_scores"].take(pa.array(rows)))[0].to_numpy(zero_copy_only=False)


def _alive(verdict: np.ndarray) -> np.ndarray:
    """The lists that no rule has taken."""
    return np.array([rule is None for rule in verdict], dtype=bool)


def _lengths(table: pa.Table) -> np.ndarray:
    return pc.list_value_length(table["passage_ids"]).to_numpy()


def _cut(table: pa.Table, keep: int | None) -> pa.Table:
    if keep is None:
        return table
    for name in of_candidates(table):
        cut = pc.list_slice(table[name], 0, keep, return_fixed_size_list=False).cast(table[name].type)
        table = table.set_column(table.schema.get_field_index(name), name, cut)
    return table
