"""Lightning IR's run with texts: one query and one passage a line, with rank, score and both texts."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.formats.passages import CorpusPassages
from datamodules.formats.trec import Trec
from datamodules.query_lists import QueryList
from datamodules.storage.files import write_json_lines


@dataclass(frozen=True)
class LightningIr(Trec):
    """``{"query_id", "query", "doc_id", "text", "rank", "score", "relevance"}``, the lines of a query together.

    Its ``RunDataset`` needs no other file, and no corpus of ir_datasets; ``targets="score"`` distils. Read: as
    :class:`~datamodules.formats.trec.Trec`. Written: by the teacher's order, ``relevance`` 1 for labelled positives;
    the query's type, and positives without a score, have no place in it.
    """

    def encode(self, where: str, query_list: QueryList, passages: CorpusPassages) -> dict[str, Any]:
        """Lines of a list, best first."""
        query = {"query_id": query_list.query_id, "query": query_list.query}
        scored = sorted(zip(query_list.passage_ids, query_list.teacher_scores, strict=True), key=lambda pair: -pair[1])
        return {
            "lines": [
                query
                | {"doc_id": found, "text": passages.text(found, where), "rank": rank, "score": score}
                | {"relevance": int(found in query_list.positive_ids)}
                for rank, (found, score) in enumerate(scored, 1)
            ]
        }

    def write(self, entries: Iterable[dict[str, Any]], path: Path) -> int:
        """Write the lines; return how many lists."""
        count = 0

        def lines() -> Iterator[dict[str, Any]]:
            nonlocal count
            for entry in entries:
                count += 1
                yield from entry["lines"]

        write_json_lines(path, lines())
        return count
