"""Run files as teacher scores: TREC's, MS MARCO's, and tables of pairs; queries' texts and judgements beside them."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from datamodules.corpus import read_qrels, read_queries
from datamodules.formats import raw_lists
from datamodules.formats.layout import Layout
from datamodules.formats.passages import CorpusPassages
from datamodules.formats.rankings import PASSAGE_IDS, named_columns, rank_of, ranking_rows
from datamodules.formats.raw_lists import RawPassage, RawQueryList
from datamodules.formats.records import find_records
from datamodules.query_lists import QueryList
from datamodules.storage.files import atomic_path, is_file
from retriever.errors import InputError, choose, shown

_HEADER = "query-id\tcorpus-id\tscore"
_TEXTS = ("text", "contents", "segment", "passage")


@dataclass(frozen=True)
class Trec(Layout):
    """``qid Q0 docid rank score tag``, the lines of a query together; texts in a file of queries, labels in qrels.

    Read:

    * JSON Lines, Parquet, Arrow and CSV: a query and a passage each, with ``query_id`` or ``qid``, ``doc_id``,
      ``docid`` or ``docno``, ``score``, and where they are there ``rank``, ``query``, ``title`` and ``text``,
      ``relevance`` (Lightning IR); or a query with its ``candidates`` (``{"query": {"qid", "text"}, "candidates":
      [{"docid", "score", "doc"}]}``, what Castorini's rerankers write) or ``results`` (sentence-transformers).
    * other text: TREC's six columns (Pyserini, Lightning IR), ``qid docid rank score`` or, of ranks alone, MS MARCO's
      ``qid docid rank``; or the columns that a first line names.

    Candidates stay in the order of the lines; judged passages above 0 are positives. The run is streamed; queries and
    judgements are held in memory. Written: the run in TREC's columns, ``<run>.queries.jsonl`` (with ``query_type`` and
    ``corpus`` beside ``_id`` and ``text``) and ``<run>.qrels.tsv`` in BEIR's form. Together they hold all of a query
    list. Ids must not have spaces in them.

    Args:
        queries: ``queries.jsonl``, or ``queries.tsv`` (``id <tab> text``); None takes ``<run>.queries.jsonl``, or the
            file of queries in the run's folder. For reading.
        qrels: judgements, BEIR's three columns or TREC's four; None takes ``<run>.qrels.tsv`` where it is there, else
            none. For reading.
        scores: for reading, ``stated``, or ``ranks``: minus the rank, the better the higher, for a run without scores.
    """

    queries: str | Path | None = None
    qrels: str | Path | None = None
    scores: str = "stated"

    def records(self, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        """Line number of a query's first line, and its lines with what the other files say of it."""
        choose("scores", self.scores, ("stated", "ranks"))
        queries: dict[str, tuple[str, dict[str, Any]]] | None = None
        qrels = self._read_qrels(path)
        seen: dict[str, int] = {}
        for query_id, group in groupby(ranking_rows(path), lambda row: row[1]):
            members = [(f"{path}:{number}", row) for number, _, row in group]
            first = int(members[0][0].rpartition(":")[2])
            if query_id in seen:
                raise InputError(
                    f"{path}:{first}: more lines of query {shown(query_id)}, after those from line {seen[query_id]} "
                    "on. The lines of a query must stand together; sort them: sort --stable --key=1,1 RUN."
                )
            seen[query_id] = first
            query = members[0][1].get("query") if isinstance(members[0][1], Mapping) else None
            if query is None:
                queries = self._read_queries(path) if queries is None else queries
                query = queries.get(query_id)
            else:
                query = (members[0][0], {"text": query})
            yield first, {"id": query_id, "lines": members, "query": query, "positives": qrels.get(query_id, [])}

    def parse(self, where: str, record: dict[str, Any]) -> RawQueryList:
        """See :class:`Layout`; the lines of a query."""
        if record["query"] is None:
            raise InputError(f"{where}: the query {shown(record['id'])} is not in the file of queries.")
        passages, scores, positives = [], [], list(record["positives"])
        for at, row in record["lines"]:
            row = named_columns(at, row) if isinstance(row, str) else row
            passage_id = raw_lists.id_of(
                at, "docid", next((row[n] for n in PASSAGE_IDS if row.get(n) is not None), None)
            )
            text = raw_lists.passage_text(at, row, passage_id, *_TEXTS)
            passage = RawPassage(at, passage_id, text, raw_lists.title_of(at, row))
            passages.append(passage)
            scores.append(self._score(at, row))
            stated, text = row.get("query"), record["query"][1].get("text")
            if stated is not None and stated != text:
                raise InputError(
                    f"{at}: the query is {shown(stated)} here, and {shown(text)} before. Give all lines of a query one "
                    "text."
                )
            grade = row.get("relevance")
            if isinstance(grade, int | float) and grade > 0:
                positives.append(RawPassage(at, passage.id, passage.text, passage.title))
        place, query = record["query"]
        return RawQueryList(
            where=where,
            query=raw_lists.required_text(place, query, "text", "query"),
            passages=passages,
            scores=scores,
            positives=positives,
            query_id=record["id"],
            query_type=raw_lists.text_of(place, query, "query_type"),
            corpus=raw_lists.text_of(place, query, "corpus"),
        )

    def _score(self, at: str, row: Mapping[str, Any]) -> Any:
        name = "rank" if self.scores == "ranks" else "score"
        value = row.get(name)
        if value is None:
            raise InputError(
                f"{at}: no {name}. "
                + (
                    "A query list needs the teacher's score of every passage: write the run with scores (TREC's six "
                    "columns), or take the ranks for scores: scores=ranks."
                    if name == "score"
                    else f"This line has {raw_lists.keys(dict(row))}."
                )
            )
        if name == "rank":
            return -rank_of(at, value)
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError as error:
                raise InputError(f"{at}: the {name} {shown(value)} is no number.") from error
        return value

    def encode(self, where: str, query_list: QueryList, passages: CorpusPassages) -> dict[str, Any]:
        """Lines for the three files."""
        for value in (query_list.query_id, *query_list.passage_ids, *query_list.positive_ids):
            if value.split() != [value]:
                raise InputError(
                    f"{where}: the id {value!r} has a space in it (or is empty); a TREC run cannot hold it."
                )
        query_id = query_list.query_id
        scored = zip(query_list.passage_ids, query_list.teacher_scores, strict=True)
        query = {
            "_id": query_id,
            "text": query_list.query,
            "query_type": query_list.query_type,
            "corpus": query_list.corpus,
        }
        return {
            "run": "".join(
                f"{query_id} Q0 {p} {rank} {score!r} teacher\n" for rank, (p, score) in enumerate(scored, 1)
            ),
            "queries": json.dumps(query, ensure_ascii=False) + "\n",
            "qrels": "".join(f"{query_id}\t{p}\t1\n" for p in query_list.positive_ids),
        }

    def write(self, entries: Iterable[dict[str, Any]], path: Path) -> int:
        """Write the three files; return how many lists."""
        count = 0
        with ExitStack() as stack:
            files = {}
            for part, name in {"run": path, "queries": _queries_of(path), "qrels": _qrels_of(path)}.items():
                temporary = stack.enter_context(atomic_path(name))
                files[part] = stack.enter_context(open(temporary, "w", encoding="utf-8"))
            files["qrels"].write(_HEADER + "\n")
            for entry in entries:
                for part, text in entry.items():
                    files[part].write(text)
                count += 1
        return count

    def _read_queries(self, run: Path) -> dict[str, tuple[str, dict[str, Any]]]:
        paths = [Path(self.queries)] if self.queries else queries_beside(run)
        if not paths or not is_file(paths[0]):
            raise InputError(
                f"{paths[0] if paths else _queries_of(run)}: no such file. A run holds no texts; name the file of its "
                "queries (queries.jsonl, or queries.tsv of id <tab> text): queries=FILE."
            )
        seen: dict[str, int] = {}
        return {query_id: place for path in paths for query_id, _, place in read_queries(path, seen)}

    def _read_qrels(self, run: Path) -> dict[str, list[RawPassage]]:
        path = Path(self.qrels or _qrels_of(run))
        if self.qrels is None and not is_file(path):
            return {}
        return {
            query_id: [RawPassage(f"{path}:{line}", p, None) for p, (grade, line) in judged.items() if grade > 0]
            for query_id, judged in read_qrels(path, spaced=(3, 4)).items()
        }


def queries_beside(run: Path) -> list[Path]:
    """The file of a run's queries, ``<run>.queries.jsonl``, or the one of its folder; empty where there is none."""
    return [_queries_of(run)] if is_file(_queries_of(run)) else find_records(run.parent, "queries")


def _queries_of(run: Path) -> Path:
    return Path(f"{run}.queries.jsonl")


def _qrels_of(run: Path) -> Path:
    return Path(f"{run}.qrels.tsv")
