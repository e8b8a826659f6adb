"""Rankings that other tools wrote: TREC's, Pyserini's, MS MARCO's, sentence-transformers', MTEB's, bm25s', tables."""

from collections.abc import Container, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from datamodules.formats import raw_lists
from datamodules.formats.records import records
from datamodules.storage.compressed import split_ending
from datamodules.storage.files import json_lines, lines
from datamodules.storage.parquet import TABLES
from retriever.errors import InputError, shown

PASSAGE_IDS = ("doc_id", "docid", "docno", "pid", "corpus-id", "corpus_id", "passage_id")
_QUERY_IDS = ("query_id", "qid", "query-id")
_NESTED = ("candidates", "results")  # a query's passages: of Castorini's rerankers, of sentence-transformers
# where query, passage and rank or score are in lines of so many columns
_LINES = {3: {"qid": 0, "docid": 1, "rank": 2}, 4: {"qid": 0, "docid": 1, "rank": 2, "score": 3}}
_TREC = {"qid": 0, "docid": 2, "rank": 3, "score": 4}


def read_ranking(path: Path, judged: Container[str]) -> tuple[dict[str, dict[str, float]], int]:
    """Read a ranking, in any form that :func:`ranking_rows` gives: query id → passage id → score.

    Scores decide, as in trec_eval, and ranks only where there are no scores.

    Args:
        path: the file.
        judged: queries to keep.

    Returns:
        The ranking, and the number of lines of other queries.

    Raises:
        InputError: with file and line, for a passage twice, a score that is no finite number, a rank that is no whole
            one, or a line of another form.
    """
    ranking: dict[str, dict[str, float]] = {}
    others, by = 0, None
    for number, query_id, row in ranking_rows(path):
        if query_id not in judged:
            others += 1
            continue
        where = f"{path}:{number}"
        row = named_columns(where, row) if isinstance(row, str) else row
        passage = raw_lists.id_of(where, "docid", next((row[n] for n in PASSAGE_IDS if row.get(n) is not None), None))
        by = by or ("score" if row.get("score") is not None else "rank")
        if row.get(by) is None:
            raise InputError(f"{where}: no {by}, as the lines before have; it has {raw_lists.keys(row)}.")
        score = -rank_of(where, row[by]) if by == "rank" else row[by]
        _add(ranking, where, query_id, passage, score)
    return ranking, others


def ranking_of(
    path: Path, content: Mapping[str, Any], judged: Container[str]
) -> tuple[dict[str, dict[str, float]], int]:
    """Read what a JSON file holds as a ranking: as bm25s, BEIR and ranx have it, or MTEB's predictions.

    Args:
        path: the file, for messages.
        content: query id → passage id → score; or subset → split → that, of which the one is taken that has judged
            queries.
        judged: queries to keep.

    Returns:
        As :func:`read_ranking`; of other queries, their number.

    Raises:
        InputError: neither, or several splits with judged queries.
    """
    splits = {
        f"{subset}, {split}": of_split
        for subset, of_subset in content.items()
        if subset != "mteb_model_meta" and isinstance(of_subset, Mapping)
        for split, of_split in of_subset.items()
        if isinstance(of_split, Mapping)
    }
    if splits:
        fitting = [name for name, queries in splits.items() if any(query in judged for query in queries)]
        if len(fitting) > 1:
            raise InputError(f"{path}: judged queries in {' and in '.join(fitting)}. Keep the one that is compared.")
        content = splits[fitting[0]] if fitting else {}
    ranking: dict[str, dict[str, float]] = {}
    for query_id, hits in content.items():
        if not isinstance(hits, Mapping):
            raise InputError(
                f"{path}: {shown(query_id)} is {shown(hits)}; expected query id → passage id → score, or query id → "
                "nDCG@10. (Means over queries cannot be compared: have the tool write its predictions.)"
            )
        for passage, score in hits.items() if query_id in judged else ():
            _add(ranking, f"{path}: query {shown(query_id)}", query_id, passage, score)
    return ranking, sum(query_id not in judged for query_id in content)


def rank_of(where: str, value: Any) -> int:
    """A rank, which may be written as text, or as the number of a table's column.

    Raises:
        InputError: no whole number; a third column may hold scores, and would be read upside down.
    """
    is_whole = value.isdecimal() if isinstance(value, str) else raw_lists.number_of(where, "rank", value) % 1 == 0
    if not is_whole:
        raise InputError(
            f"{where}: {shown(value)} stands where a rank is expected, a whole number. If it is a score, name the "
            "columns in a first line: qid docid score."
        )
    return int(value)


def _add(ranking: dict[str, dict[str, float]], where: str, query_id: str, passage: str, score: Any) -> None:
    """Add a passage to a query's ranking."""
    hits = ranking.setdefault(query_id, {})
    if passage in hits:
        raise InputError(
            f"{where}: passage {shown(passage)} of query {shown(query_id)} was there before. Keep one of the two lines."
        )
    hits[passage] = raw_lists.number_of(where, f"score of passage {shown(passage)}", score)


def ranking_rows(path: Path) -> Iterator[tuple[int, str, Any]]:
    """Number, query id and content (a line, or an object) of each row of a run.

    Raises:
        InputError: with file and line, for a row without a query's id, or of other columns than a first line names.
    """
    is_table = split_ending(path)[0] in (*TABLES, ".csv")
    first = "" if is_table else next((line for _, line in lines(path)), "")
    if not is_table and not first.lstrip().startswith("{"):
        names = first.split()
        named = bool(names) and names[0] in _QUERY_IDS and bool(set(names) & set(PASSAGE_IDS))
        for number, line in islice(lines(path), int(named), None):
            cells = line.split()
            if named and len(cells) != len(names):
                raise InputError(
                    f"{path}:{number}: {shown(line)} has {len(cells)} columns; expected {len(names)}, as the first "
                    f"line names them: {', '.join(names)}."
                )
            yield number, cells[0], dict(zip(names[1:], cells[1:], strict=True)) if named else line
        return
    for number, record in records(path, _QUERY_IDS) if is_table else json_lines(path):
        where = f"{path}:{number}"
        key = next((name for name in _NESTED if name in record), None)
        if key is not None:
            query = record.get("query")
            query = query if isinstance(query, dict) else {**record, "text": query}
            query_id = _query_id(where, query)
            if not isinstance(record[key], list) or not record[key]:
                raise InputError(f"{where}: {key!r} is {shown(record[key])}; expected a list of passages.")
            for entry in record[key]:
                if not isinstance(entry, dict):
                    raise InputError(f"{where}: {shown(entry)} in {key!r}; expected an object with docid and score.")
                document = entry.get("doc")
                texts = document if isinstance(document, dict) else {"text": document}
                yield number, query_id, {**texts, **entry, "query": raw_lists.text_of(where, query, "text")}
        else:
            yield number, _query_id(where, record), record


def _query_id(where: str, record: dict[str, Any]) -> str:
    found = raw_lists.text_of(where, record, *_QUERY_IDS, numbers=True)
    if found is None:
        raise InputError(
            f"{where}: no {' or '.join(map(repr, _QUERY_IDS[:2]))}; this line has {raw_lists.keys(record)}."
        )
    return found


def named_columns(at: str, line: str) -> dict[str, str]:
    """The columns of a line of text by their names: ``qid``, ``docid``, and ``rank``, ``score``, or both.

    Raises:
        InputError: a line of another number of columns.
    """
    columns = line.split()
    places = _TREC if len(columns) == 6 else _LINES.get(len(columns))
    if places is None or (len(columns) == 4 and columns[1] in ("0", "Q0")):  # judgements have four, too
        raise InputError(
            f"{at}: {shown(line)} has {len(columns)} columns; expected qid Q0 docid rank score tag, qid docid rank "
            "score, or qid docid rank."
        )
    return {name: columns[place] for name, place in places.items()}
