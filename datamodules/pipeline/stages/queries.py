"""Stage queries: all queries that lists are made for, human and synthetic, in one table."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa

from datamodules.corpus import Corpus, find_dataset, judgement_files
from datamodules.formats.raw_lists import required_text
from datamodules.pipeline.free_queries import QUERY_SOURCES, collect_queries
from datamodules.pipeline.query_quality import good_queries
from datamodules.pipeline.stages.stage import Blocks, Output, Stage, table_writer
from datamodules.splits import unit_hash
from datamodules.storage.files import json_lines
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
            ``limit``, at most so many (:func:`drawn_evenly`), and ``quality``, True to leave out those that say nothing
            of their passage (:func:`~datamodules.pipeline.query_quality.good_queries`). Each group ends in files of its
            own.
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

    def run_block(self, number: int, advance: Callable[[int], None]) -> pa.Table:
        """The queries of one group."""
        name = list(self.groups)[number]
        rows, left_out = list(self._queries(name)), Counter[str]()
        if self.groups[name].get("quality"):
            rows, left_out = good_queries(rows)
        if limit := self.groups[name].get("limit"):
            rows = drawn_evenly(rows, limit)
        if not rows and left_out:
            counts = ", ".join(f"{n} {why}" for why, n in sorted(left_out.items()))
            raise InputError(
                f"queries.{name}: queries.{name}.quality leaves none of {left_out.total()} queries on "
                f"{self.corpus.name!r}: {counts}. Leave it out, or take another source."
            )
        if not rows:
            source = self.groups[name]["source"]
            english = " (claims are found in English texts alone)" if source == "claims" else ""
            raise InputError(f"queries.{name}: {source!r} gives no query on {self.corpus.name!r}{english}.")
        advance(1)
        table = pa.Table.from_pylist([dict(zip(QUERIES.names, (name, *row), strict=True)) for row in rows], QUERIES)
        return table.replace_schema_metadata({_LEFT_OUT: json.dumps(left_out)})

    def finish(self, blocks: Blocks, folder: Path) -> dict[str, Any]:
        """See :class:`Stage`."""
        counts: Counter[str] = Counter()
        left_out: dict[str, int] = {}
        with table_writer(folder / "queries.parquet", QUERIES) as append:
            for table in blocks:
                append(table)
                counts.update(table["group"].to_pylist())
                reasons = json.loads((table.schema.metadata or {}).get(_LEFT_OUT, "{}"))
                left_out |= {f"{table['group'][0]} left out, {why}": n for why, n in sorted(reasons.items())}
        return {"queries": counts.total(), **counts, **left_out}

    def _generated(self) -> Output:
        assert self.generated is not None  # a group whose source is generated is refused without
        return self.generated

    def _queries(self, name: str) -> Iterator[Query]:
        options = self.groups[name]
        if options["source"] == "generated":
            for row in self._generated().table("queries.parquet").to_pylist():
                yield row["query_id"], row["query"], row["query_type"], [row["passage_id"]]
        elif options["source"] == "file":
            yield from self._from_file(Path(options["path"]))
        else:
            split = options.get("split", "train")
            data = self.dataset, self.corpus, split, self.data_dir, self.unknown_qrels
            yield from collect_queries(options["source"], *data)

    def _from_file(self, path: Path) -> Iterator[Query]:
        records = [(number, *_own_query(path, number, record)) for number, record in json_lines(path)]
        seen: dict[str, int] = {}
        for number, query_id, *_ in records:
            if query_id in seen:
                raise InputError(
                    f"{path}:{number}: the query_id {query_id!r} is already in line {seen[query_id]}. Ids must differ."
                )
            seen[query_id] = number
        ids = [(number, passage_id) for number, _, _, _, positives in records for passage_id in positives]
        for (number, passage_id), row in zip(ids, self.corpus.rows([p for _, p in ids]), strict=True):
            if row < 0:
                raise InputError(f"{path}:{number}: the positive {passage_id!r} is not in the corpus.")
        yield from (record[1:] for record in records)


def drawn_evenly(rows: list[Query], limit: int) -> list[Query]:
    """Draw at most ``limit`` queries, of each passage about as many, by a hash and so the same everywhere."""
    turns: Counter[str] = Counter()
    order = []
    for row in sorted(rows, key=lambda row: unit_hash(row[0])):
        passage = min(row[3], default="")
        order.append((turns[passage], row[0]))
        turns[passage] += 1
    order.sort(key=lambda turn: turn[0])
    chosen = {query_id for _, query_id in order[:limit]}
    return [row for row in rows if row[0] in chosen]


def _own_query(path: Path, number: int, record: dict[str, Any]) -> tuple[str, str, str, list[str]]:
    query_id, query, kind = (required_text(f"{path}:{number}", record, k) for k in ("query_id", "query", "query_type"))
    positives = record.get("positive_ids", [])
    if not isinstance(positives, list) or not all(isinstance(p, str) for p in positives):
        raise InputError(f"{path}:{number}: 'positive_ids' is {str(positives)[:80]}; expected a list of strings.")
    return query_id, query, kind, positives
