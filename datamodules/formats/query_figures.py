"""nDCG@10 of each query, as trec_eval, ir_measures and others write it."""

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from datamodules.formats import raw_lists
from datamodules.formats.records import QUERY_IDS, records
from datamodules.storage.compressed import split_ending
from datamodules.storage.files import lines
from datamodules.storage.parquet import TABLES
from retriever.errors import InputError, shown

# as trec_eval, ir_measures, MTEB and sentence-transformers call it
_NDCG = re.compile(r"(?:[\w-]*[_-])?ndcg(?:@|_cut_|_cut\.|_at_|_)10", re.IGNORECASE)
_LOOKED_AT = 1_000  # lines; trec_eval writes a hundred of each query
_SUMMARY = "all"  # trec_eval's and ir_measures' row of means


def figures_in_lines(path: Path) -> dict[str, float] | None:
    """nDCG@10 of each query, from a table or lines; None where the file is a ranking.

    Read: trec_eval's ``metric query value``, ir_measures' ``query metric value`` or its JSON Lines, and tables (CSV,
    TSV, Parquet, JSON Lines) with a column of query ids and one of nDCG@10.

    Raises:
        InputError: with file and line, for a query twice, or a value that is none of nDCG@10.
    """
    figures: dict[str, float] = {}
    for where, query, value in _figure_lines(path):
        if query in figures:
            raise InputError(f"{where}: a second nDCG@10 of query {shown(query)}. Keep one of the two lines.")
        figures[query] = _figure(where, query, value)
    return figures or None


def _figure_lines(path: Path) -> Iterator[tuple[str, str, Any]]:
    """Place, query id and value of each line with an nDCG@10."""
    ending = split_ending(path)[0]
    head = "" if ending in TABLES else next((line for _, line in lines(path)), "")
    if ending in (*TABLES, ".csv") or head.lstrip().startswith("{"):
        for number, record in records(path, QUERY_IDS):
            name = next((key for key in record if _NDCG.fullmatch(key)), None)
            if name is None and not _NDCG.fullmatch(str(record.get("measure"))):
                if number == 1 and "measure" not in record:
                    return
                continue
            query = next((record[key] for key in QUERY_IDS if record.get(key) is not None), None)
            if query != _SUMMARY:
                where = f"{path}:{number}"
                yield where, raw_lists.id_of(where, "query_id", query), record[name] if name else record.get("value")
        return
    names = head.split()
    if names and names[0] in QUERY_IDS and any(map(_NDCG.fullmatch, names)):
        query_at, value_at, metric_at = 0, next(at for at, name in enumerate(names) if _NDCG.fullmatch(name)), None
    else:
        some = [line.split() for _, line in islice(lines(path), _LOOKED_AT)]
        metric_at = next((at for at in (0, 1) if any(len(c) == 3 and _NDCG.fullmatch(c[at]) for c in some)), None)
        if metric_at is None:
            return
        query_at, value_at = 1 - metric_at, 2
    for number, line in islice(lines(path), int(metric_at is None), None):
        cells = line.split()
        if len(cells) <= value_at:
            raise InputError(f"{path}:{number}: {shown(line)} has {len(cells)} columns; expected query and nDCG@10.")
        if cells[query_at] != _SUMMARY and (metric_at is None or _NDCG.fullmatch(cells[metric_at])):
            yield f"{path}:{number}", cells[query_at], cells[value_at]


def figures_of(path: Path, content: Mapping[str, Any]) -> dict[str, float] | None:
    """nDCG@10 of each query, from a JSON file; None where it is a ranking.

    Read: metric → query id → value, query id → metric → value, and query id → value.

    Args:
        path: the file, for messages.
        content: what it holds.

    Raises:
        InputError: a value that is none of nDCG@10.
    """
    metric = next((key for key in content if _NDCG.fullmatch(key)), None)
    if metric is not None and isinstance(content[metric], Mapping):
        values = content[metric]
    elif metric is None and content and not any(isinstance(value, Mapping | list | str) for value in content.values()):
        values = content
    else:
        of_each = {query: of for query, of in content.items() if isinstance(of, Mapping) and query != _SUMMARY}
        name = next((key for of in of_each.values() for key in of if _NDCG.fullmatch(key)), None)
        if name is None:
            return None
        values = {query: of.get(name) for query, of in of_each.items()}
    return {query: _figure(str(path), query, value) for query, value in values.items()}


def _figure(where: str, query: str, value: Any) -> float:
    figure = raw_lists.number_of(where, f"nDCG@10 of query {shown(query)}", value)
    if not 0 <= figure <= 1:
        raise InputError(f"{where}: the nDCG@10 of query {shown(query)} is {figure}; expected 0 to 1.")
    return figure
