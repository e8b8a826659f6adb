"""Stage split: train and dev lists, without what gives away an evaluation query."""

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datamodules.caches import cached_embeddings, cached_tokens
from datamodules.corpus import Corpus, EvaluationSet
from datamodules.leakage.queries import Leak, find_leaks
from datamodules.leakage.same_passages import Match, RelevantPassages, translated
from datamodules.pipeline.stages.queries import QUERIES
from datamodules.pipeline.stages.stage import BLOCK_ROWS, Blocks, Output, Stage
from datamodules.query_lists import QueryList, write_query_lists
from datamodules.splits import dev_and_test
from datamodules.storage.files import write_json_lines
from datamodules.storage.parquet import ParquetRows, regrouped, table_blocks
from datamodules.text.near_texts import checked_threshold
from datamodules.text.words import METHOD
from retriever.encoder.text_encoder import TextEncoder
from retriever.errors import InputError, choose, require_positive
from retriever.search import exact_search

log = logging.getLogger(__name__)
_FILTERED = "filtered.parquet"
_COMPARED = 131_072  # queries that are compared with evaluation queries together
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
        return [len(ParquetRows(self.filtered.file(_FILTERED)))]

    def run_block(self, number: int, advance: Callable[[int], None]) -> Iterator[pa.Table]:
        """Train, dev, test or the leak, for each list."""
        positives = (ids for _, table in self._parts("positive_ids") for ids in table["positive_ids"].to_pylist())
        # one-passage queries bind nothing, so only judgements and own queries of several passages count
        sides = dev_and_test(chain(positives, self.judgements), self.dev_fraction, self.test_fraction)
        leaks = {leak.position: leak for name in self._groups() for leak in self._leaks_of(name)}
        yield _VERDICT.empty_table()  # where there are no lists
        for start, table in self._parts("query_id"):
            dev, test = (side[start : start + len(table)] for side in sides)
            verdict = np.select([dev, test], ["dev", "test"], "train").astype(object)
            query, similarity = np.full(len(table), None, dtype=object), np.full(len(table), np.nan)
            for at in range(len(table)):
                if leak := leaks.get(start + at):
                    verdict[at], query[at], similarity[at] = leak.reason, leak.evaluation_query, leak.similarity
            yield pa.table([pa.array(list(verdict)), pa.array(list(query), pa.string()), similarity], schema=_VERDICT)
            advance(len(table))

    def finish(self, blocks: Blocks, folder: Path) -> dict[str, Any]:
        """See :class:`Stage`."""
        verdicts = ParquetRows(blocks.paths[0])
        self._report_leaks(verdicts, folder / "leaks.jsonl")
        parts = ("train", "dev", "test") if self.test_fraction else ("train", "dev")
        names = list(self.guards)  # also a group that lost all its lists: its file says so
        group, found = np.full(len(verdicts), -1, np.int16), np.full(len(verdicts), -1, np.int8)
        for start, table in self._parts("group"):
            rows = slice(start, start + len(table))
            group[rows] = _numbers(table["group"], names)
            found[rows] = _numbers(verdicts.rows(start, start + len(table))["verdict"], parts)
        counts: dict[str, Any] = {}
        for number, name in enumerate(names):
            for at, part in enumerate(parts):
                wanted = (group == number) & (found == at)
                path = folder / f"{name}.{part}.parquet"
                counts[path.stem] = write_query_lists(path, self._lists(wanted), self._about(name, part))
        return {**counts, "left out by the leak guard": int((found < 0).sum())}

    def _parts(self, *columns: str) -> Iterator[tuple[int, pa.Table]]:
        """Some lists at a time, with the number of the first; some columns of theirs."""
        return table_blocks(self.filtered.file(_FILTERED), BLOCK_ROWS, columns)

    def _groups(self) -> list[str]:
        """The groups that are guarded and have lists."""
        found = {name for _, table in self._parts("group") for name in pc.unique(table["group"]).to_pylist()}
        return sorted(name for name in found if self.guards.get(name, "drop") != "off")

    def _leaks_of(self, group: str) -> Iterator[Leak]:
        """What the lists of a group give away; a leak's position is among all lists."""
        judged = group in self.judged
        labelled = sorted(
            {passage for table in self._queries_of(group) for ids in _labels(table, judged) for passage in ids}
        )
        relevant = [self._relevant(evaluation, labelled) for evaluation, _ in self.evaluation]
        for table in regrouped(self._queries_of(group), _COMPARED):
            positions = table["position"].to_numpy()
            for leak in self._leaks(table, judged, relevant):
                yield replace(leak, position=int(positions[leak.position]))

    def _queries_of(self, group: str) -> Iterator[pa.Table]:
        for start, table in self._parts("group", "query", "query_type", "positive_ids"):
            table = table.append_column("position", pa.array(np.arange(start, start + len(table))))
            yield table.filter(pc.equal(table["group"], group))

    def _leaks(
        self,
        table: pa.Table,
        judged: bool,
        relevant: Sequence[tuple[Mapping[str, Collection[str]], dict[str, Match]]],
    ) -> list[Leak]:
        queries, positives = table["query"].to_pylist(), _labels(table, judged)
        found: dict[int, Leak] = {}
        for (evaluation, _), (known, copies) in zip(self.evaluation, relevant, strict=True):
            leaks = find_leaks(queries, positives, evaluation.queries, known, self.jaccard, copies)
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

    def _report_leaks(self, verdicts: ParquetRows, path: Path) -> None:
        write_json_lines(path, self._caught(verdicts))

    def _caught(self, verdicts: ParquetRows) -> Iterator[dict[str, Any]]:
        for start, table in self._parts("group", "query_id", "query"):
            found = verdicts.rows(start, start + len(table))
            caught = found["evaluation_query"].is_valid()
            for row, leak in zip(table.filter(caught).to_pylist(), found.filter(caught).to_pylist(), strict=True):
                if self.guards.get(row["group"], "drop") == "fail":
                    raise InputError(
                        f"The query {row['query_id']!r} of {row['group']} ({row['query']!r}) {leak['verdict']} the "
                        f"evaluation query {leak['evaluation_query']!r}. Remove it, or say split.leak_guard=drop."
                    )
                yield {**row, "reason": leak["verdict"], **{k: v for k, v in leak.items() if k != "verdict"}}

    def _lists(self, wanted: np.ndarray) -> Iterator[QueryList]:
        lists = ParquetRows(self.filtered.file(_FILTERED), [*QUERIES.names, "passage_ids", "teacher_scores"])
        for start in range(0, len(lists), BLOCK_ROWS):
            mask = wanted[start : start + BLOCK_ROWS]
            if not mask.any():
                continue
            for row in lists.rows(start, start + BLOCK_ROWS).filter(pa.array(mask)).to_pylist():
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


def _labels(table: pa.Table, judged: bool) -> list[list[str]]:
    """Ids of the passages that people judged relevant, of each query; none where it is synthetic."""
    human = (judged or kind == "human" for kind in table["query_type"].to_pylist())
    return [ids if h else [] for ids, h in zip(table["positive_ids"].to_pylist(), human, strict=True)]


def _numbers(column: pa.ChunkedArray, names: Sequence[str]) -> np.ndarray:
    """Each value's place among the names, −1 where it is none of them."""
    return pc.index_in(column, pa.array(names, pa.string())).fill_null(-1).to_numpy()
