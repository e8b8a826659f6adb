"""CADET's layout: JSON Lines, one query a line with its passages, each with id, text and score."""

from dataclasses import dataclass
from typing import Any

from datamodules.formats import raw_lists
from datamodules.formats.layout import Layout
from datamodules.formats.passages import CorpusPassages
from datamodules.formats.raw_lists import RawPassage, RawQueryList
from datamodules.query_lists import QueryList
from retriever.errors import InputError, shown


@dataclass(frozen=True)
class Cadet(Layout):
    """``{"qid", "query", "passages": [{"docid", "text", "score"}, …]}``, one query a line.

    Read: ``qid`` or ``query_id``, ``query_type`` or ``type``, ``positive_ids`` (or one ``positive_docid`` or
    ``positive_id``), ``corpus``, and each passage's ``title``, where they are there; ``text`` may be missing where the
    corpus is given. Written: ``qid``, ``query_type``, ``corpus`` and ``positive_ids`` beside what CADET's scripts
    read, which they leave alone; texts are title + space + text. This layout holds all of a query list.

    Args:
        score_key: the passage's key for the score. CADET's scorer writes ``score``, its trainers read
            ``rankt5_score``.
        source_ids: ``qid`` is the id of the passage that the query was written for, as in the files that CADET's
            scripts make: where no positive is stated, that passage is it. As there are several queries of a passage,
            a query's id gets the number of its line behind it.
    """

    score_key: str = "score"
    source_ids: bool = False

    def parse(self, where: str, record: dict[str, Any]) -> RawQueryList:
        """See :class:`Layout`."""
        passages, scores = [], []
        for entry in raw_lists.list_of(where, record, "passages"):
            if not isinstance(entry, dict):
                raise InputError(f"{where}: {shown(entry)} in 'passages'; expected an object with docid and score.")
            if self.score_key not in entry:
                raise InputError(
                    f"{where}: a passage without {self.score_key!r}; it has {raw_lists.keys(entry)}. If the score is "
                    "under another key, name it: score_key=KEY."
                )
            passage_id = raw_lists.id_of(where, "docid", entry.get("docid"))
            text = raw_lists.passage_text(where, entry, passage_id, "text")
            passages.append(RawPassage(where, passage_id, text, raw_lists.title_of(where, entry)))
            scores.append(entry[self.score_key])
        query = raw_lists.required_text(where, record, "query")
        positive_ids = _positive_ids(where, record)
        if self.source_ids:
            source = raw_lists.id_of(where, "qid", record.get("qid"))
            positive_ids = positive_ids or [source]
            record = record | {"qid": f"{source}-{where.rpartition(':')[2]}"}
        positives = [RawPassage(where, passage_id, None) for passage_id in positive_ids]
        names = ("qid",) if self.source_ids else ("query_id", "qid"), ("query_type", "type")
        return raw_lists.raw_query_list(where, record, query, passages, scores, positives, *names)

    def encode(self, where: str, query_list: QueryList, passages: CorpusPassages) -> dict[str, Any]:
        """See :class:`Layout`."""
        return {
            "qid": query_list.query_id,
            "query": query_list.query,
            "query_type": query_list.query_type,
            "corpus": query_list.corpus,
            "positive_ids": query_list.positive_ids,
            "passages": [
                {"docid": passage_id, "text": passages.text(passage_id, where), self.score_key: score}
                for passage_id, score in zip(query_list.passage_ids, query_list.teacher_scores, strict=True)
            ],
        }


def _positive_ids(where: str, record: dict[str, Any]) -> list[str]:
    one = raw_lists.text_of(where, record, "positive_docid", "positive_id", numbers=True)
    return raw_lists.ids_of(where, record, "positive_ids") or ([one] if one is not None else [])
