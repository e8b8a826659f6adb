"""Stage score: one or several teachers score each candidate of each query, once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from datamodules.corpus import Corpus
from datamodules.hits import Hits, fuse_scores
from datamodules.normalization import normalize_scores
from datamodules.pipeline.stages.collect import COLLECTED
from datamodules.pipeline.stages.mine import NOWHERE, first_ranks, positive_rows, table_to_hits
from datamodules.pipeline.stages.stage import Output, Stage, table_writer
from datamodules.storage.parquet import read_parquet
from retriever.errors import InputError, choose, require_positive

if TYPE_CHECKING:
    from retriever.teachers import Teacher


class RunFusion:
    """A teacher that reads nothing: the weighted sum of the mined runs' scores, each min-max scaled over its own hits.

    On SciFact, BM25 + all-MiniLM-L6-v2 fused so order passages 8 points of nDCG@10 better than MiniLM alone.

    Args:
        weights: retriever → weight; None weighs all alike, to a sum of 1.
    """

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self.weights = dict(weights) if weights else None

    def provenance(self) -> dict[str, Any]:
        """See :class:`~retriever.teachers.Teacher`."""
        return {"kind": "fusion of mined runs (not a cross-encoder)", "weights": self.weights}

    def score(self, runs: Mapping[str, Hits], candidates: np.ndarray) -> np.ndarray:
        """Fused score of each candidate.

        Args:
            runs: retriever → hits of Q queries.
            candidates: int64 [Q, K], rows of the corpus, −1 where there are fewer.

        Returns:
            float32 [Q, K], in [0, the weights' sum]; −inf where there is no candidate.
        """
        for name in self.weights or {}:
            choose("teacher.weights: the retriever", name, runs)
        weights = self.weights or {name: 1 / len(runs) for name in runs}
        chosen = [runs[name] for name in weights]
        fused = fuse_scores(chosen, list(weights.values()), sum(r.rows.shape[1] for r in chosen))
        scores = np.where(candidates >= 0, 0.0, -np.inf).astype(np.float32)
        for query, row in enumerate(candidates):
            order = np.argsort(fused.rows[query])
            at = order[np.clip(np.searchsorted(fused.rows[query][order], row), 0, len(order) - 1)]
            found = (row >= 0) & (fused.rows[query][at] == row)
            scores[query, found] = fused.scores[query][at][found]
        return scores


class Ensemble:
    """Several teachers, each scaled to [0, 1] between the 1st and the 99th percentile of all its scores, and averaged.

    Args:
        members: name → teacher.
        weights: name → weight; None weighs all alike.
    """

    def __init__(self, members: Mapping[str, Teacher | RunFusion], weights: Mapping[str, float] | None = None) -> None:
        if not members:
            raise InputError("teacher.members is empty; name at least one.")
        for name, weight in (weights or {}).items():
            choose("teacher.weights: the member", name, members)
            require_positive(**{f"teacher.weights.{name}": weight})
        self.members = dict(members)
        given = {name: (weights or {}).get(name, 1.0) for name in members}
        self.weights = {name: w / sum(given.values()) for name, w in given.items()}


class Score(Stage):
    """Raw teacher scores of the candidates.

    Output: ``scored.parquet``: the collected queries with ``passage_ids`` and ``teacher_scores`` (best first),
    ``scores.<member>`` (raw, in the same order) and ``rank.<retriever>``, where the first positive stands in a run
    (null: nowhere).

    Args:
        corpus: where the texts are.
        corpus_sha256: its content.
        collected: output of stage collect.
        mined: output of stage mine.
        teacher: one teacher, or an :class:`Ensemble`.
        candidates: of each query, the best by the fused order; None scores all.
        block_size: queries of a block; a kill loses at most one.
    """

    name = "score"
    unit = "pairs"

    def __init__(
        self,
        corpus: Corpus,
        corpus_sha256: str,
        collected: Output,
        mined: Output,
        teacher: Teacher | RunFusion | Ensemble,
        *,
        candidates: int | None = None,
        block_size: int = 32,
    ) -> None:
        require_positive(block_size=block_size, candidates=candidates or 1)
        self.corpus = corpus
        self.corpus_sha256 = corpus_sha256
        self.collected = collected
        self.mined = mined
        self.members = teacher.members if isinstance(teacher, Ensemble) else {"teacher": teacher}
        self.weights = teacher.weights if isinstance(teacher, Ensemble) else {"teacher": 1.0}
        self.candidates = candidates
        self.block_size = block_size

    def settings(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        members = {name: teacher.provenance() for name, teacher in self.members.items()}
        own = {"candidates": self.candidates, "block_size": self.block_size}
        return {"members": members, "weights": self.weights, **own}

    def inputs(self) -> dict[str, str]:
        """See :class:`Stage`."""
        runs = {p: self.mined.sha256(p) for p in self.mined.manifest["outputs"]}
        return {"corpus": self.corpus_sha256, "queries": self.collected.sha256("queries.parquet"), **runs}

    def block_sizes(self) -> list[int]:
        """Pairs of each block, times the teachers."""
        pairs = (self._candidates.rows >= 0).sum(1)
        starts = range(0, len(pairs), self.block_size)
        return [int(pairs[s : s + self.block_size].sum()) * len(self.members) for s in starts]

    def run_block(self, number: int, advance: Callable[[int], None]) -> pa.Table:
        """Every member's raw scores of the candidates of some queries, in the candidates' order."""
        block = slice(number * self.block_size, (number + 1) * self.block_size)
        rows = self._candidates.rows[block]
        there = rows >= 0
        offsets = pa.array(np.concatenate([[0], np.cumsum(there.sum(1))]), pa.int32())
        columns: dict[str, pa.Array] = {}
        for name, teacher in self.members.items():
            if isinstance(teacher, RunFusion):
                runs = {n: Hits(h.scores[block], h.rows[block]) for n, h in self._runs.items()}
                scores, cut = teacher.score(runs, rows)[there], np.zeros(there.sum(), dtype=bool)
                advance(int(there.sum()))
            else:
                scores, cut = self._read(teacher, block, rows, advance)
            columns[f"scores.{name}"] = pa.ListArray.from_arrays(offsets, pa.array(scores, pa.float32()))
            columns[f"truncated.{name}"] = pa.ListArray.from_arrays(offsets, pa.array(cut))
        return pa.table(columns)

    def finish(self, blocks: Iterator[pa.Table], folder: Path) -> dict[str, Any]:
        """See :class:`Stage`."""
        tables = list(blocks)
        raw = {
            name: np.concatenate([_flat(t[f"scores.{name}"]) for t in tables]).astype(np.float32)
            for name in self.members
        }
        bad = {name: int((~np.isfinite(scores)).sum()) for name, scores in raw.items()}
        if any(bad.values()):
            raise InputError(f"score: scores that are not finite, by teacher: {bad}. Try teacher dtype float32.")
        final = self._combined(raw)
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
        truncated = {n: sum(int(_flat(t[f"truncated.{n}"]).sum()) for t in tables) for n in self.members}
        return {
            "queries": len(table),
            "pairs": len(final),
            "truncated": {n: round(count / max(1, len(final)), 6) for n, count in truncated.items()},
            "positive first": int(sum(self._is_first(ids, offsets))),
        }

    @cached_property
    def _queries(self) -> pa.Table:
        return read_parquet(self.collected.file("queries.parquet")).select(COLLECTED.names)

    @cached_property
    def _positives(self) -> list[np.ndarray]:
        return positive_rows(self._queries, self.corpus)

    @cached_property
    def _candidates(self) -> Hits:
        hits = table_to_hits(read_parquet(self.mined.file("candidates.parquet")))
        return Hits(hits.scores[:, : self.candidates], hits.rows[:, : self.candidates])

    @cached_property
    def _runs(self) -> dict[str, Hits]:
        names = [n for n in self.mined.manifest["outputs"] if n.startswith("run.")]
        in_order = self.mined.manifest["settings"]["retrievers"]
        names.sort(key=lambda n: list(in_order).index(n.removeprefix("run.").removesuffix(".parquet")))
        return {
            n.removeprefix("run.").removesuffix(".parquet"): table_to_hits(read_parquet(self.mined.file(n)))
            for n in names
        }

    def _read(
        self, teacher: Teacher, block: slice, rows: np.ndarray, advance: Callable[[int], None]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores and truncation of the block's pairs; a repeated pair is read once."""
        queries = self._queries["query"][block].to_pylist()
        pairs = [(query, int(row)) for query, found in zip(queries, rows, strict=True) for row in found if row >= 0]
        distinct = {pair: number for number, pair in enumerate(dict.fromkeys(pairs))}
        texts = self.corpus.passages.take(pa.array([row for _, row in distinct])).to_pylist()
        found = teacher.score([query for query, _ in distinct], texts, advance)
        advance(len(pairs) - len(distinct))
        at = [distinct[pair] for pair in pairs]
        return found.scores[at], found.truncated[at]

    def _combined(self, raw: Mapping[str, np.ndarray]) -> np.ndarray:
        if len(raw) == 1:
            return next(iter(raw.values()))
        total = np.zeros(len(next(iter(raw.values()))))
        for name, scores in raw.items():
            whole = np.array([0, len(scores)])
            # in float64: a teacher's scores may lie in a band that is narrow beside their size
            scaled = normalize_scores(scores.astype(np.float64), whole, np.zeros(1, int), "percentile")
            total += self.weights[name] * scaled
        return total.astype(np.float32)

    def _is_first(self, ids: pa.Array, offsets: np.ndarray) -> Iterator[bool]:
        positives = self._queries["positive_ids"].to_pylist()
        for query, wanted in enumerate(positives):
            yield offsets[query] < offsets[query + 1] and ids[int(offsets[query])].as_py() in wanted


def _flat(column: pa.ChunkedArray) -> np.ndarray:
    return column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
