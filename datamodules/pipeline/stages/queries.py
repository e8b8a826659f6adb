"""Stage queries: all queries that lists are made for, human and synthetic, in one table."""

import json
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from datamodules.corpus import Corpus, find_dataset, judgement_files
from datamodules.formats.raw_lists import required_text
from datamodules.pipeline.free_queries import QUERY_SOURCES, collect_queries
from datamodules.pipeline.query_choice import QueryChoice
from datamodules.pipeline.stages.stage import BLOCK_ROWS, Blocks, Output, Stage, table_writer
from datamodules.storage.files import json_lines
from datamodules.storage.parquet import ROW_GROUP, open_table, regrouped, table_blocks
from retriever.errors import InputError, choose
from retriever.hashing import file_sha256

QUERIES = pa.schema(
    [(name, pa.string()) for name in ("group", "query_id", "query", "query_type")]
    + [("positive_ids", pa.list_(pa.string()))]
)
Query: TypeAlias = tuple[str, str, str, list[str]]  # id, text, type, ids of its positives
SOURCES = (*QUERY_SOURCES, "generated", "file")
_CUT = set(QUERY_SOURCES) - {"judged"}  # from passages
_LEFT_OUT = b"left_out"


@dataclass(eq=False)
class CollectQueries(Stage):
    """Queries with their positives.

    Output: ``queries.parquet`` (group, query_id, query, query_type, positive_ids), group by group.

    Args:
        corpus: whose passages the queries are of.
        dataset: the corpus' folder or name, where queries and qrels are.
        data_dir: where downloaded data sets lie.
        groups: name → ``source`` (``generated``, ``judged`` with ``split``, ``titles``, ``claims``, ``sentences``,
            ``keywords``, or ``file`` with ``path``: JSON Lines of query_id, query, query_type, positive_ids),
            ``limit``, at most so many (:func:`~datamodules.pipeline.query_choice.drawn_evenly`), and ``quality``, True
            to leave out those that say nothing of their passage (:mod:`~datamodules.pipeline.query_quality`). Each
            group ends in files of its own.
        generated: output of stage generate, where a group is generated.
        unknown_qrels: as for :func:`~datamodules.pipeline.free_queries.collect_queries`.
    """

    name = "queries"
    unit = "groups"

    corpus: Corpus
    dataset: str
    data_dir: str | Path
    groups: Mapping[str, Mapping[str, Any]]
    generated: Output | None
    unknown_qrels: str = "error"

    def __post_init__(self) -> None:
        """Check the groups."""
        if not self.groups:
            raise InputError("queries is empty; name at least one group: queries='{human: {source: judged}}'.")
        for name, options in self.groups.items():
            choose(f"queries.{name}.source", options.get("source"), SOURCES)
            if options.get("quality") and options["source"] not in _CUT:
                raise InputError(
                    f"queries.{name}.quality is for queries that are cut from passages ({', '.join(sorted(_CUT))}); "
                    f"its source is {options['source']}. Leave it out."
                )
            if options["source"] == "generated" and self.generated is None:
                raise InputError(f"queries.{name}: source is generated, but stage generate is switched off.")
            if options["source"] == "file" and not options.get("path"):
                raise InputError(f"queries.{name}: source is file; name it in queries.{name}.path.")
            if (limit := options.get("limit")) is not None and limit < 1:
                raise InputError(f"queries.{name}.limit is {limit}; it must be a whole number of at least 1, or null.")
            if options["source"] == "file" and not Path(options["path"]).is_file():
                raise InputError(f"queries.{name}: {options['path']}: no such file.")

    def settings(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        kept = {"unknown_qrels": "keep"} if self.unknown_qrels == "keep" else {}
        said = {
            name: {k: o.get(k) for k in ("source", "split")} | {k: o[k] for k in ("limit", "quality") if o.get(k)}
            for name, o in self.groups.items()
        }
        return said | kept

    def inputs(self) -> dict[str, str]:
        """See :class:`Stage`."""
        found = {"corpus": self.corpus.sha256}
        for name, options in self.groups.items():
            if options["source"] == "generated":
                found[name] = self._generated().sha256("queries.parquet")
            elif options["source"] == "file":
                found[name] = file_sha256(Path(options["path"]))
            elif options["source"] == "judged":
                folder = find_dataset(self.dataset, self.data_dir)
                paths = judgement_files(folder, options.get("split", "train"))
                found[name] = " ".join(file_sha256(p) for p in paths)
        return found

    def block_sizes(self) -> list[int]:
        """A block per group."""
        return [1] * len(self.groups)

    def begin(self, folder: Path, blocks: Sequence[int]) -> None:
        """See :class:`Stage`."""
        self._folder = folder

    def run_block(self, number: int, advance: Callable[[int], None]) -> Iterator[pa.Table]:
        """The queries of one group."""
        name = list(self.groups)[number]
        quality, limit = (self.groups[name].get(option) for option in ("quality", "limit"))
        tables = _in_tables(name, self._queries(name))
        left_out = Counter[str]()
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=".chosen-", suffix=".tmp") as scratch:
            if quality or limit:
                choice = QueryChoice(tables, Path(scratch), bool(quality), limit)
                tables, left_out = choice.tables(), choice.left_out
            first = next((table for table in tables if len(table)), None)
            if first is None:
                raise InputError(self._no_query(name, left_out))
            for table in chain([first], tables):
                yield table.replace_schema_metadata({_LEFT_OUT: json.dumps(left_out)})
        advance(1)

    def _no_query(self, name: str, left_out: Counter[str]) -> str:
        if left_out:
            counts = ", ".join(f"{n} {why}" for why, n in sorted(left_out.items()))
            return (
                f"queries.{name}: queries.{name}.quality leaves none of {left_out.total()} queries on "
                f"{self.corpus.name!r}: {counts}. Leave it out, or take another source."
            )
        source = self.groups[name]["source"]
        english = " (claims are found in English texts alone)" if source == "claims" else ""
        return f"queries.{name}: {source!r} gives no query on {self.corpus.name!r}{english}."

    def finish(self, blocks: Blocks, folder: Path) -> dict[str, Any]:
        """See :class:`Stage`."""
        counts: Counter[str] = Counter()
        left_out: dict[str, int] = {}
        with table_writer(folder / "queries.parquet", QUERIES) as append:
            for group, path in zip(self.groups, blocks.paths, strict=True):
                for table in regrouped((table for _, table in table_blocks(path, BLOCK_ROWS)), ROW_GROUP):
                    append(table)
                    counts[group] += len(table)
                reasons = json.loads((open_table(path).schema_arrow.metadata or {}).get(_LEFT_OUT, "{}"))
                left_out |= {f"{group} left out, {why}": n for why, n in sorted(reasons.items())}
        return {"queries": counts.total(), **counts, **left_out}

    def _generated(self) -> Output:
        assert self.generated is not None  # a group whose source is generated is refused without
        return self.generated

    def _queries(self, name: str) -> Iterator[Query]:
        options = self.groups[name]
        if options["source"] == "generated":
            for _, table in table_blocks(self._generated().file("queries.parquet"), BLOCK_ROWS):
                for row in table.to_pylist():
                    yield row["query_id"], row["query"], row["query_type"], [row["passage_id"]]
        elif options["source"] == "file":
            yield from self._from_file(Path(options["path"]))
        else:
            split = options.get("split", "train")
            data = self.dataset, self.corpus, split, self.data_dir, self.unknown_qrels
            yield from collect_queries(options["source"], *data)

    def _from_file(self, path: Path) -> Iterator[Query]:
        hashes = array("q")  # hash() of each id
        lines = json_lines(path)
        while block := [(number, *_own_query(path, number, record)) for number, record in islice(lines, BLOCK_ROWS)]:
            hashes.extend(hash(query_id) for _, query_id, *_ in block)
            ids = [(number, passage_id) for number, *_, positives in block for passage_id in positives]
            for (number, passage_id), row in zip(ids, self.corpus.rows([p for _, p in ids]), strict=True):
                if row < 0:
                    raise InputError(f"{path}:{number}: the positive {passage_id!r} is not in the corpus.")
            yield from ((query_id, text, kind, positives) for _, query_id, text, kind, positives in block)
        if len(np.unique(hashes)) < len(hashes):
            _refuse_repeated_ids(path)


def _in_tables(group: str, queries: Iterable[Query]) -> Iterator[pa.Table]:
    """Tables of queries, which do not cut those of one passage apart."""
    rows: list[dict[str, Any]] = []
    for query_id, text, kind, positives in queries:
        if len(rows) >= BLOCK_ROWS and not (positives and positives == rows[-1]["positive_ids"]):
            yield pa.Table.from_pylist(rows, QUERIES)
            rows = []
        rows.append(dict(zip(QUERIES.names, (group, query_id, text, kind, positives), strict=True)))
    if rows:
        yield pa.Table.from_pylist(rows, QUERIES)


def _refuse_repeated_ids(path: Path) -> None:
    seen: dict[str, int] = {}
    for number, record in json_lines(path):
        query_id = record["query_id"]
        if query_id in seen:
            raise InputError(
                f"{path}:{number}: the query_id {query_id!r} is already in line {seen[query_id]}. Ids must differ."
            )
        seen[query_id] = number


def _own_query(path: Path, number: int, record: dict[str, Any]) -> tuple[str, str, str, list[str]]:
    query_id, query, kind = (required_text(f"{path}:{number}", record, k) for k in ("query_id", "query", "query_type"))
    positives = record.get("positive_ids", [])
    if not isinstance(positives, list) or not all(isinstance(p, str) for p in positives):
        raise InputError(f"{path}:{number}: 'positive_ids' is {str(positives)[:80]}; expected a list of strings.")
    return query_id, query, kind, positives
