"""TREC run files as teacher scores, with the queries' texts and the judgements in files beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from datamodules.corpus import whole_grade
from datamodules.files import atomic_path, is_file, json_lines, lines
from datamodules.list_layouts.passages import CorpusPassages
from datamodules.list_layouts.stated import StatedList, StatedPassage, id_of, required_text, text_of
from datamodules.query_lists import QueryList
from retriever.errors import InputError, shown

_HEADER = "query-id\tcorpus-id\tscore"


@dataclass(frozen=True)
class Trec:
    """``qid Q0 docid rank score tag``, the lines of a query together; texts in ``queries.jsonl``, labels in qrels.

    Read: candidates in the order of the lines (the rank is not looked at), judged passages above 0 as positives. The
    run is streamed; queries and judgements are held in memory. Written: the run, ``<run>.queries.jsonl`` (with
    ``query_type`` and ``corpus`` beside ``_id`` and ``text``) and ``<run>.qrels.tsv`` in BEIR's form. Together they
    hold all of a query list. Ids must not have spaces in them.

    Args:
        queries: JSON Lines with ``_id`` and ``text``; None takes ``<run>.queries.jsonl``. For reading.
        qrels: judgements, BEIR's three columns or TREC's four; None takes ``<run>.qrels.tsv`` where it is there, else
            none. For reading.
    """

    queries: str | Path | None = None
    qrels: str | Path | None = None

    def records(self, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        """Line number of a query's first line, and its lines with what the other files say of it."""
        queries, qrels = self._read_queries(path), self._read_qrels(path)
        seen: dict[str, int] = {}
        for query_id, group in groupby(lines(path), lambda numbered: numbered[1].split(maxsplit=1)[0]):
            members = [(f"{path}:{number}", number, line) for number, line in group]
            first = members[0][1]
            if query_id in seen:
                raise InputError(
                    f"{path}:{first}: more lines of query {shown(query_id)}, after those from line {seen[query_id]} "
                    "on. The lines of a query must stand together; sort them: sort --stable --key=1,1 RUN."
                )
            seen[query_id] = first
            record = queries.get(query_id)
            yield first, {"id": query_id, "lines": members, "query": record, "positives": qrels.get(query_id, [])}

    def parse(self, where: str, record: dict[str, Any]) -> StatedList:
        """What the lines of a query state."""
        if record["query"] is None:
            raise InputError(f"{where}: the query {shown(record['id'])} is not in the file of queries.")
        passages, scores = [], []
        for at, _, line in record["lines"]:
            columns = line.split()
            if len(columns) != 6:
                raise InputError(
                    f"{at}: {shown(line)} has {len(columns)} columns; expected qid Q0 docid rank score tag."
                )
            passages.append(StatedPassage(at, columns[2], None))
            try:
                scores.append(float(columns[4]))
            except ValueError as error:
                raise InputError(f"{at}: the score {shown(columns[4])} is no number.") from error
        place, query = record["query"]
        return StatedList(
            where=where,
            query=required_text(place, query, "text"),
            passages=passages,
            scores=scores,
            positives=record["positives"],
            query_id=record["id"],
            query_type=text_of(place, query, "query_type"),
            corpus=text_of(place, query, "corpus"),
        )

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
        path = Path(self.queries or _queries_of(run))
        if not is_file(path):
            raise InputError(
                f"{path}: no such file. A run holds no texts; name the file of its queries (queries.jsonl)."
            )
        queries: dict[str, tuple[str, dict[str, Any]]] = {}
        for number, record in json_lines(path):
            where = f"{path}:{number}"
            query_id = id_of(where, "_id", record.get("_id"))
            if query_id in queries:
                raise InputError(
                    f"{where}: the _id {shown(query_id)} stands already at {queries[query_id][0]}. Ids must differ."
                )
            queries[query_id] = (where, record)
        return queries

    def _read_qrels(self, run: Path) -> dict[str, list[StatedPassage]]:
        path = Path(self.qrels or _qrels_of(run))
        if self.qrels is None and not path.is_file():
            return {}
        qrels: dict[str, list[StatedPassage]] = {}
        seen: dict[tuple[str, str], int] = {}
        for number, line in lines(path):
            columns = line.split()
            if number == 1 and columns[-1] == "score":
                continue
            grade = whole_grade(columns[-1])
            if len(columns) not in (3, 4) or grade is None:
                raise InputError(
                    f"{path}:{number}: {shown(line)} is neither 'query-id corpus-id grade' nor 'qid 0 docid grade'."
                )
            query_id, passage_id = columns[0], columns[-2]
            if (query_id, passage_id) in seen:
                raise InputError(
                    f"{path}:{number}: query {shown(query_id)} and passage {shown(passage_id)} were judged already in "
                    f"line {seen[query_id, passage_id]}. Keep one of the two lines."
                )
            seen[query_id, passage_id] = number
            if grade > 0:
                qrels.setdefault(query_id, []).append(StatedPassage(f"{path}:{number}", passage_id, None))
        return qrels


def _queries_of(run: Path) -> Path:
    return Path(f"{run}.queries.jsonl")


def _qrels_of(run: Path) -> Path:
    return Path(f"{run}.qrels.tsv")
