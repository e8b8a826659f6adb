"""Stage split: train and dev lists, without what gives away an evaluation query."""

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from datamodules.caches import cached_embeddings, cached_tokens
from datamodules.corpus import Corpus, EvaluationSet
from datamodules.leakage.queries import Leak, find_leaks
from datamodules.leakage.same_passages import Match, RelevantPassages, translated
from datamodules.pipeline.stages.queries import QUERIES
from datamodules.pipeline.stages.stage import BLOCK_ROWS, Blocks, Output, Stage
from datamodules.query_lists import QueryList, write_query_lists
from datamodules.splits import dev_and_test
from datamodules.storage.files import write_json_lines
from datamodules.storage.parquet import ParquetRows
from datamodules.text.near_texts import checked_threshold
from datamodules.text.words import METHOD
from retriever.encoder.text_encoder import TextEncoder
from retriever.errors import InputError, choose, require_positive
from retriever.search import exact_search

log = logging.getLogger(__name__)
_FILTERED = "filtered.parquet"
GUARDS = ("drop", "fail", "off")
_VERDICT = pa.schema([("verdict", pa.string()), ("evaluation_query", pa.string()), ("similarity", pa.float64())])


@dataclass(eq=False)
class Split(Stage):
    """Train and dev by source passage, by a hash and so the same everywhere; behind the leak guard.

    A human query must not share a relevant passage (its text, under whatever id) with an evaluation query; no query may
    nearly equal one (token Jaccard, and cosine where asked for). A synthetic query may be written from a passage that
    an evaluation query is about.

    Output: ``<group>.train.parquet``, ``<group>.dev.parquet`` and, where asked for, ``<group>.test.parquet``, query
    lists; ``leaks.jsonl``, what was caught.

    Args:
        filtered: output of stage filter.
        scored: output of stage score, for what the lists' metadata say of the teacher.
        corpus_name: stands in the lists.
        evaluation: the sets that are evaluated on, each with the SHA-256 of its files.
        dev_fraction: share of dev, in [0, 1].
        test_fraction: share of lists that are kept to evaluate on, where a corpus has no human test queries.
        guards: group → ``drop``, ``fail`` or ``off``.
        judged: groups whose positives are human judgements; those of query type ``human`` are, too.
        judgements: the relevant passages of each judged query of the corpus, whether it is in these lists or not:
            passages that such a query binds together fall on one side. What else is in the lists moves no passage.
        jaccard: from which two queries are nearly equal.
        cosine: from which two queries are nearly equal by the encoder; None does not look.
        encoder: for ``cosine``.
        cache_dir: of the encoder's embeddings.
        near_passages: similarity of three-word shingles from which two passages count as one, in (0, 1]; None counts
            those of one text alone.
        corpus: the lists' corpus, whose texts are compared; None compares ids alone.
        metadata: what else the lists' metadata say.
    """

    name = "split"
    unit = "lists"

    filtered: Output
    scored: Output
    corpus_name: str
    evaluation: Sequence[tuple[EvaluationSet, str]]
    _: KW_ONLY
    guards: Mapping[str, str]
    dev_fraction: float = 0.1
    test_fraction: float = 0.0
    judged: Sequence[str] = ()
    judgements: Sequence[Sequence[str]] = ()
    jaccard: float = 0.6
    cosine: float | None = None
    encoder: TextEncoder | None = None
    cache_dir: str | Path = "cache"
    near_passages: float | None = None
    corpus: Corpus | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("dev_fraction", "test_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"split.{name} is {getattr(self, name)}; it must be in [0, 1].")
        if self.dev_fraction + self.test_fraction > 1:
            raise InputError(
                f"split.dev_fraction is {self.dev_fraction} and split.test_fraction is {self.test_fraction}; together "
                "they must not be more than 1."
            )
        for name, guard in self.guards.items():
            choose(f"the leak guard of {name}", guard, GUARDS)
        require_positive(jaccard=self.jaccard, cosine=self.cosine or 1)
        checked_threshold("split.leak_near_passages", self.near_passages)
        self.judged = sorted(self.judged)

    def settings(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        encoder = self.encoder.fingerprint() if self.cosine and self.encoder else None
        bound = hashlib.sha256(json.dumps(self.judgements).encode()).hexdigest()
        own = self.fields(
            "corpus_name", "dev_fraction", "guards", "judged", "jaccard", "cosine", "near_passages", "metadata"
        )
        said = {"encoder": encoder, "judgements": bound, "words": METHOD, "scale": self._scale}
        held_out = {"test_fraction": self.test_fraction} if self.test_fraction else {}
        return {**own, **held_out, **self._teacher, **said}

    def inputs(self) -> dict[str, str]:
        """See :class:`Stage`."""
        sets = {f"{s.name} {number}": digest for number, (s, digest) in enumerate(self.evaluation)}
        if self.corpus is not None:
            sets["corpus"] = self.corpus.sha256
        return {"filtered": self.filtered.sha256("filtered.parquet"), **sets}

    def block_sizes(self) -> list[int]:
        """One block: whether two queries share a passage is known only among all."""
        return [len(self._table)]

    def run_block(self, number: int, advance: Callable[[int], None]) -> pa.Table:
        """Train, dev, test or the leak, for each list."""
        table = self._table
        group = np.array(table["group"].to_pylist(), dtype=object)
        positives = table["positive_ids"].to_pylist()
        # one-passage queries bind nothing, so only judgements and own queries of several passages count
        sides = dev_and_test([*positives, *self.judgements], self.dev_fraction, self.test_fraction)
        dev, test = (side[: len(positives)] for side in sides)
        verdict = np.select([dev, test], ["dev", "test"], "train").astype(object)
        query, similarity = np.full(len(table), None, dtype=object), np.full(len(table), np.nan)
        for name in sorted(set(group)):
            inside = np.flatnonzero(group == name)
            if self.guards.get(name, "drop") == "off":
                continue
            for leak in self._leaks(table.take(pa.array(inside)), name in self.judged):
                at = inside[leak.position]
                verdict[at], query[at], similarity[at] = leak.reason, leak.evaluation_query, leak.similarity
        advance(len(table))
        return pa.table([pa.array(list(verdict)), pa.array(list(query), pa.string()), similarity], schema=_VERDICT)

    def finish(self, blocks: Blocks, folder: Path) -> dict[str, Any]:
        """See :class:`Stage`."""
        verdicts = pa.concat_tables(blocks)
        self._report_leaks(verdicts, folder / "leaks.jsonl")
        found = np.array(verdicts["verdict"].to_pylist(), dtype=object)
        group = np.array(self._table["group"].to_pylist(), dtype=object)
        counts: dict[str, Any] = {}
        parts = ("train", "dev", "test") if self.test_fraction else ("train", "dev")
        for name in self.guards:  # also a group that lost all its lists: its file says so
            for part in parts:
                rows = np.flatnonzero((group == name) & (found == part))
                path = folder / f"{name}.{part}.parquet"
                counts[path.stem] = write_query_lists(path, self._lists(rows), self._about(name, part))
        leaks = np.isin(found, parts, invert=True)
        return {**counts, "left out by the leak guard": int(leaks.sum())}

    @cached_property
    def _table(self) -> pa.Table:
        """The queries; their candidates are read as they are written."""
        return self.filtered.table(_FILTERED, QUERIES.names)

    def _leaks(self, table: pa.Table, judged: bool) -> list[Leak]:
        queries = table["query"].to_pylist()
        human = (judged or kind == "human" for kind in table["query_type"].to_pylist())
        positives = [p if h else [] for p, h in zip(table["positive_ids"].to_pylist(), human, strict=True)]
        labelled = sorted({passage for ids in positives for passage in ids})
        found: dict[int, Leak] = {}
        for evaluation, _ in self.evaluation:
            relevant, copies = self._relevant(evaluation, labelled)
            leaks = find_leaks(queries, positives, evaluation.queries, relevant, self.jaccard, copies)
            if self.cosine:
                leaks += self._alike(queries, evaluation)
            for leak in leaks:
                found.setdefault(leak.position, leak)
        return [found[position] for position in sorted(found)]

    def _relevant(
        self, evaluation: EvaluationSet, labelled: list[str]
    ) -> tuple[Mapping[str, Collection[str]], dict[str, Match]]:
        """Evaluation query → ids of its relevant passages in the lists' corpus, and how those are the same."""
        if self.corpus is None:
            return evaluation.relevant() if evaluation.corpus.name == self.corpus_name else {}, {}
        passages = RelevantPassages(evaluation.corpus, evaluation.relevant(), self.near_passages)
        rows = self.corpus.rows(labelled)
        copies = passages.among(self.corpus, rows[rows >= 0])
        return translated(passages.relevant, copies), copies

    def _alike(self, queries: list[str], evaluation: EvaluationSet) -> list[Leak]:
        """Queries whose embedding is near an evaluation query's."""
        names, encoder = list(evaluation.queries), self.encoder
        assert encoder is not None  # the pipeline gives one where split.cosine is set

        def embedded(texts: list[str]) -> np.ndarray:
            tokens = cached_tokens(texts, encoder, "query", self.cache_dir)
            return cached_embeddings(tokens, encoder, self.cache_dir, 16_384, "encode queries")

        scores, rows = exact_search(embedded(queries), embedded([evaluation.queries[n] for n in names]), 1)
        near = np.flatnonzero(scores[:, 0] >= self.cosine)
        return [Leak(int(i), "means nearly the same as", names[rows[i, 0]], float(scores[i, 0])) for i in near]

    def _report_leaks(self, verdicts: pa.Table, path: Path) -> None:
        table = self._table.select(["group", "query_id", "query"])
        caught = []
        for row, leak in zip(table.to_pylist(), verdicts.to_pylist(), strict=True):
            if leak["evaluation_query"] is None:
                continue
            if self.guards.get(row["group"], "drop") == "fail":
                raise InputError(
                    f"The query {row['query_id']!r} of {row['group']} ({row['query']!r}) {leak['verdict']} the "
                    f"evaluation query {leak['evaluation_query']!r}. Remove it, or say split.leak_guard=drop."
                )
            caught.append({**row, "reason": leak["verdict"], **{k: v for k, v in leak.items() if k != "verdict"}})
        write_json_lines(path, caught)

    def _lists(self, rows: np.ndarray) -> Iterator[QueryList]:
        lists = ParquetRows(self.filtered.file(_FILTERED), [*QUERIES.names, "passage_ids", "teacher_scores"])
        for start in range(0, len(lists), BLOCK_ROWS):
            first, end = np.searchsorted(rows, [start, start + BLOCK_ROWS])
            if first == end:
                continue
            table = lists.rows(start, start + BLOCK_ROWS).take(pa.array(rows[first:end] - start))
            for row in table.to_pylist():
                yield QueryList(
                    query_id=row["query_id"],
                    query=row["query"],
                    query_type=row["query_type"],
                    corpus=self.corpus_name,
                    positive_ids=row["positive_ids"],
                    passage_ids=row["passage_ids"],
                    teacher_scores=row["teacher_scores"],
                )

    def _about(self, group: str, part: str) -> dict[str, Any]:
        return {
            **self.metadata,
            "corpus": self.corpus_name,
            "group": group,
            "split": part,
            "dev_fraction": self.dev_fraction,
            "scale": self._scale.get(group),
            **self._teacher,
        }

    @property
    def _scale(self) -> dict[str, dict[str, list[float]]]:
        """Group → query type → percentiles of the scores of all candidates, see stage filter."""
        return self.filtered.manifest.get("counts", {}).get("scale", {})

    @property
    def _teacher(self) -> dict[str, Any]:
        """What the lists' metadata say of the teacher."""
        settings, counts = (self.scored.manifest.get(key, {}) for key in ("settings", "counts"))
        return {
            "teacher": settings.get("members"),
            "teacher_weights": settings.get("weights"),
            "truncated": counts.get("truncated"),
        }
