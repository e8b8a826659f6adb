"""Stage filter: queries and lists that are worth learning from."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import KW_ONLY, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datamodules.normalization import confident
from datamodules.pipeline.stages.stage import Output, Stage, table_writer
from datamodules.pipeline.stages.student import Student, of_candidates
from datamodules.query_lists.files import to_ragged
from datamodules.query_lists.query_list import to_offsets
from retriever.errors import InputError, choose, require_positive

SCALE = [1, 99]  # percentiles


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
        return [len(self._table)]

    def run_block(self, number: int, advance: Callable[[int], None]) -> pa.Table:
        """The rule that takes each list, or null."""
        table = self._table
        group = np.array(table["group"].to_pylist(), dtype=object)
        kind = np.array(table["query_type"].to_pylist(), dtype=object)
        verdict = np.full(len(table), None, dtype=object)
        exempt = np.isin(group, list(self.exempt))
        for rule, fails in self._rules(table):
            verdict[fails & ~exempt & _alive(verdict)] = rule
        if self.min_top_quantile is not None:
            alive = np.flatnonzero(_alive(verdict) & (_lengths(table) > 0))
            scores, offsets = _scores(table.take(pa.array(alive)))
            types = np.unique(group[alive] + "\n" + kind[alive], return_inverse=True)[1]
            low = alive[~confident(scores, offsets, types, self.min_top_quantile)]
            verdict[low[~exempt[low]]] = "low score"
        # two candidates are what a list is
        verdict[(_lengths(table) < 2) & _alive(verdict)] = "short list"
        advance(len(table))
        return pa.table({"rule": pa.array(list(verdict), pa.string())})

    def finish(self, blocks: Iterator[pa.Table], folder: Path) -> dict[str, Any]:
        """See :class:`Stage`."""
        rule = pa.concat_tables(blocks)["rule"]
        kept = self._table.filter(pc.is_null(rule))
        with table_writer(folder / "filtered.parquet", kept.schema) as append:
            append(_cut(kept, self.keep))
        counts: dict[str, dict[str, dict[str, int]]] = {}
        columns = (self._table["group"].to_pylist(), self._table["query_type"].to_pylist(), rule.to_pylist())
        for group, kind, found in zip(*columns, strict=True):
            line = counts.setdefault(group, {}).setdefault(kind, {})
            line[found or "kept"] = line.get(found or "kept", 0) + 1
        scale = score_scale(self._table, pc.or_(pc.is_null(rule), pc.fill_null(pc.equal(rule, "low score"), False)))
        return {"lists": len(rule), "kept": len(kept), "by_type": counts, "scale": scale}

    @cached_property
    def _table(self) -> pa.Table:
        table = self.scored.table("scored.parquet")
        return table if self.student is None else self.student.candidates(table)

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


def score_scale(table: pa.Table, lists: pa.ChunkedArray) -> dict[str, dict[str, list[float]]]:
    """Group → query type → first and 99th percentile of the scores of some lists (bool [N]), all candidates of each.

    With these, scores are normalised in the same way whatever is cut from the lists later.
    """
    table = table.filter(lists)
    values, offsets = _scores(table)
    names = list(zip(table["group"].to_pylist(), table["query_type"].to_pylist(), strict=True))
    number = np.repeat(np.arange(len(table)), np.diff(offsets))
    scale: dict[str, dict[str, list[float]]] = {}
    for group, kind in sorted(set(names)):
        inside = values[np.array([name == (group, kind) for name in names], dtype=bool)[number]]
        if len(inside):
            scale.setdefault(group, {})[kind] = np.percentile(inside, SCALE).tolist()
    return scale


def _alive(verdict: np.ndarray) -> np.ndarray:
    """The lists that no rule has taken."""
    return np.array([rule is None for rule in verdict], dtype=bool)


def _scores(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """The scores of all lists, float64 [T], and where each list begins, int64 [N + 1]."""
    values, lengths = to_ragged(table["teacher_scores"])
    return values.to_numpy(zero_copy_only=False).astype(np.float64), to_offsets(lengths)


def _lengths(table: pa.Table) -> np.ndarray:
    return pc.list_value_length(table["passage_ids"]).to_numpy()


def _cut(table: pa.Table, keep: int | None) -> pa.Table:
    if keep is None:
        return table
    for name in of_candidates(table):
        cut = pc.list_slice(table[name], 0, keep, return_fixed_size_list=False).cast(table[name].type)
        table = table.set_column(table.schema.get_field_index(name), name, cut)
    return table
