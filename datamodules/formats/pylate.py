"""PyLate's layout for knowledge distillation of multi-vector models: scores by ids, and two tables of texts beside."""

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.formats.layout import Layout
from datamodules.formats.passages import CorpusPassages
from datamodules.formats.raw_lists import (
    RawPassage,
    RawQueryList,
    ids_of,
    list_of,
    raw_query_list,
    required_text,
    text_of,
    title_of,
)
from datamodules.formats.records import records
from datamodules.query_lists import QueryList
from datamodules.storage.files import atomic_path, require_file
from retriever.errors import InputError, shown


@dataclass(frozen=True)
class Pylate(Layout):
    """``{"query_id", "document_ids", "scores"}``, beside ``X.queries.jsonl`` and ``X.documents.jsonl`` for ``X.jsonl``.

    These are the three data sets of ``pylate.utils.KDProcessing``, and of ``resolve_ids`` in sentence-transformers: the
    queries have ``query_id`` and ``text``, the documents ``document_id`` and ``text`` (title, a space, text), each
    once. What PyLate has no place for stands in the queries' file under names that it does not read: ``query_type``,
    ``corpus`` and ``positive_ids``. Together they hold all of a query list. Texts are held in memory.
    """

    def records(self, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        """Number and content of every line, with its query, and with the texts of its documents."""
        queries = dict(_by_id(_beside(path, "queries"), "query_id"))
        documents = dict(_by_id(_beside(path, "documents"), "document_id"))
        for number, record in super().records(path):
            yield number, {**record, "query": queries, "documents": documents}

    def parse(self, where: str, record: dict[str, Any]) -> RawQueryList:
        """See :class:`Layout`."""
        query_id = text_of(where, record, "query_id", numbers=True)
        if query_id not in record["query"]:
            raise InputError(f"{where}: the query {shown(query_id)} is not in the file of queries.")
        place, query = record["query"][query_id]
        passages = [self._document(where, found, record) for found in ids_of(where, record, "document_ids") or ()]
        positives = [RawPassage(place, found, None) for found in ids_of(place, query, "positive_ids") or ()]
        scores = list_of(where, record, "scores")
        stated = {**query, "query_id": query_id}
        return raw_query_list(where, stated, required_text(place, query, "text"), passages, scores, positives)

    def _document(self, where: str, document_id: str, record: dict[str, Any]) -> RawPassage:
        place, document = record["documents"].get(document_id, (where, {}))
        return RawPassage(where, document_id, document.get("text"), title_of(place, document))

    def encode(self, where: str, query_list: QueryList, passages: CorpusPassages) -> dict[str, Any]:
        """Lines for the three files."""
        texts = {found: passages.text(found, where) for found in query_list.passage_ids}
        query = {"query_id": query_list.query_id, "text": query_list.query, "query_type": query_list.query_type}
        return {
            "scores": {
                "query_id": query_list.query_id,
                "document_ids": query_list.passage_ids,
                "scores": query_list.teacher_scores,
            },
            "queries": {**query, "corpus": query_list.corpus, "positive_ids": query_list.positive_ids},
            "documents": [{"document_id": found, "text": text} for found, text in texts.items()],
        }

    def write(self, entries: Iterable[dict[str, Any]], path: Path) -> int:
        """Write the three files; return how many lists."""
        count, written = 0, set[str]()
        with ExitStack() as stack:
            places = {"scores": path, "queries": _beside(path, "queries"), "documents": _beside(path, "documents")}
            files = {
                part: stack.enter_context(open(stack.enter_context(atomic_path(place)), "w", encoding="utf-8"))
                for part, place in places.items()
            }
            for entry in entries:
                new = [document for document in entry["documents"] if document["document_id"] not in written]
                written.update(document["document_id"] for document in new)
                for part, lines in {
                    "scores": [entry["scores"]],
                    "queries": [entry["queries"]],
                    "documents": new,
                }.items():
                    files[part].writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
                count += 1
        return count


def _beside(path: Path, part: str) -> Path:
    return path.with_name(f"{path.name.split('.')[0]}.{part}.jsonl")


def _by_id(path: Path, name: str) -> Iterator[tuple[str, tuple[str, dict[str, Any]]]]:
    require_file(path)
    for number, record in records(path):
        where = f"{path}:{number}"
        found = text_of(where, record, name, numbers=True)
        if found is None:
            raise InputError(f"{where}: no {name!r}.")
        yield found, (where, record)
