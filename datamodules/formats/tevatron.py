"""Tevatron's layout: JSON Lines with the passages of positives and negatives, each with id, title, text and score."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.formats.passages import CorpusPassages
from datamodules.formats.raw_lists import (
    RawPassage,
    RawQueryList,
    in_order,
    keys,
    label_scores,
    list_of,
    no_score,
    own_keys,
    passage_text,
    raw_positives,
    raw_query_list,
    required_text,
    sides,
    text_of,
    title_of,
)
from datamodules.formats.records import records
from datamodules.query_lists import QueryList
from datamodules.storage.files import write_json_lines
from retriever.errors import InputError, shown


@dataclass(frozen=True)
class Tevatron:
    """``{"query_id", "query", "positive_passages": [{"docid", "title", "text", "score"}], "negative_passages": […]}``.

    Read: ``query`` or ``query_text``; passages with ``docid``, with ``text``, or with both. Written: as for
    :class:`~datamodules.formats.flag_embedding.FlagEmbedding`, the labelled positives or the teacher's first;
    ``query_type``, ``corpus``, ``positive_ids`` and ``passage_ids`` hold what the layout itself has no place for.

    Args:
        score_key: the passage's key for the score.
        scores: for reading, ``stated``, or ``labels``: 1 for every positive and 0 for every negative, for an objective
            that reads labels alone. Tevatron's training files as it publishes them have no scores.
    """

    score_key: str = "score"
    scores: str = "stated"

    def records(self, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        """Number and object of every line (or row of a table)."""
        return records(path)

    def parse(self, where: str, record: dict[str, Any]) -> RawQueryList:
        """What a line states."""
        by_label = label_scores(self.scores)
        positives, positive_scores = self._side(where, record, "positive_passages", 1.0 if by_label else None)
        negatives, negative_scores = self._side(where, record, "negative_passages", 0.0 if by_label else None)
        passages, scores = in_order(where, record, positives + negatives, positive_scores + negative_scores)
        query = required_text(where, record, "query", "query_text")
        return raw_query_list(where, record, query, passages, scores, raw_positives(where, record, positives))

    def encode(self, where: str, query_list: QueryList, passages: CorpusPassages) -> dict[str, Any]:
        """A line.

        Raises:
            InputError: every candidate is a labelled positive; Tevatron fails without a negative.
        """
        scores = dict(zip(query_list.passage_ids, query_list.teacher_scores, strict=True))

        def entries(ids: list[str]) -> list[dict[str, Any]]:
            parts = ((p, *passages.title_and_text(p, where)) for p in ids)
            return [{"docid": p, "title": title, "text": text, self.score_key: scores[p]} for p, title, text in parts]

        positive, negative = sides(where, query_list, "Tevatron")
        return {
            "query_id": query_list.query_id,
            "query": query_list.query,
            "positive_passages": entries(positive),
            "negative_passages": entries(negative),
            **own_keys(query_list),
        }

    def write(self, lines: Iterable[dict[str, Any]], path: Path) -> int:
        """Write the lines; return how many."""
        return write_json_lines(path, lines)

    def _side(
        self, where: str, record: dict[str, Any], side: str, score: float | None
    ) -> tuple[list[RawPassage], list[Any]]:
        """Passages and scores of one side; ``score`` for all of them, None for those that are stated."""
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
