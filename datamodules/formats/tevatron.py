"""Tevatron's layout: JSON Lines with the passages of positives and negatives, each with id, title, text and score."""

from dataclasses import dataclass
from typing import Any

from datamodules.formats.layout import SidedLayout, no_score
from datamodules.formats.passages import CorpusPassages
from datamodules.formats.raw_lists import RawPassage, keys, list_of, passage_text, text_of, title_of
from datamodules.query_lists import QueryList
from retriever.errors import InputError, shown


@dataclass(frozen=True)
class Tevatron(SidedLayout):
    """``{"query_id", "query", "positive_passages": [{"docid", "title", "text", "score"}], "negative_passages": […]}``.

    Read: ``query`` or ``query_text``; passages with ``docid``, with ``text``, or with both. Written: as for
    :class:`~datamodules.formats.flag_embedding.FlagEmbedding`, the labelled positives or the teacher's first;
    ``query_type``, ``corpus``, ``positive_ids`` and ``passage_ids`` hold what the layout itself has no place for.

    Args:
        score_key: the passage's key for the score.
        scores: for reading, ``stated``, or ``labels``: 1 for every positive and 0 for every negative, for an objective
            that reads labels alone. Tevatron's training files as it publishes them have no scores.
    """

    tool = "Tevatron"
    sides = "positive_passages", "negative_passages"
    queries = "query", "query_text"
    score_key: str = "score"
    scores: str = "stated"

    def read_side(
        self, where: str, record: dict[str, Any], side: str, score: float | None
    ) -> tuple[list[RawPassage], list[Any]]:
        """See :class:`SidedLayout`."""
        passages, scores = [], []
        for entry in list_of(where, record, side):
            if not isinstance(entry, dict):
                raise InputError(f"{where}: {shown(entry)} in {side!r}; expected an object with docid, text and score.")
            passage_id = text_of(where, entry, "docid", numbers=True)
            text = passage_text(where, entry, passage_id, "text")
            if passage_id is None and text is None:
                raise InputError(f"{where}: a passage without 'docid' and 'text' in {side!r}; it has {keys(entry)}.")
            if score is None and entry.get(self.score_key) is None:
                raise no_score(where, f"a passage without {self.score_key!r} in {side!r}; it has {keys(entry)}")
            passages.append(RawPassage(where, passage_id, text, title_of(where, entry)))
            scores.append(entry[self.score_key] if score is None else score)
        return passages, scores

    def encode(self, where: str, query_list: QueryList, passages: CorpusPassages) -> dict[str, Any]:
        """See :class:`Layout`."""
        scores = dict(zip(query_list.passage_ids, query_list.teacher_scores, strict=True))

        def entries(ids: list[str]) -> list[dict[str, Any]]:
            parts = ((p, *passages.title_and_text(p, where)) for p in ids)
            return [{"docid": p, "title": title, "text": text, self.score_key: scores[p]} for p, title, text in parts]

        positive, negative = self.divided(where, query_list)
        return {
            "query_id": query_list.query_id,
            "query": query_list.query,
            "positive_passages": entries(positive),
            "negative_passages": entries(negative),
            **self.own_keys(query_list),
        }
