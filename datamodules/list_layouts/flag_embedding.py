"""FlagEmbedding's layout: JSON Lines with the texts of positives and negatives and the teacher's scores of both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.files import json_lines, write_json_lines
from datamodules.list_layouts.passages import CorpusPassages
from datamodules.list_layouts.stated import StatedList, StatedPassage, ids_of, list_of, required_text, stated_list
from datamodules.query_lists import QueryList
from retriever.errors import InputError, shown


@dataclass(frozen=True)
class FlagEmbedding:
    """``{"query", "pos": [texts], "neg": [texts], "pos_scores", "neg_scores"}``, one query a line.

    Read: the texts of ``pos`` are the labelled positives. Written: ``pos`` has the labelled positives that stand in
    the list or, where none does, the teacher's first, for FlagEmbedding needs one; ``neg`` has the others. The layout
    itself holds no ids, no types, no positive without a score, and not the order of the candidates; these are written
    under keys of their own (``query_id``, ``query_type``, ``corpus``, ``positive_ids``, ``passage_ids``, ``pos_ids``,
    ``neg_ids``), which FlagEmbedding does not read, and are taken up again on reading. ``prompt`` and ``type``, which
    mean something else there, are neither written nor read.
    """

    def records(self, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        """Number and object of every line."""
        return json_lines(path)

    def parse(self, where: str, record: dict[str, Any]) -> StatedList:
        """What a line states."""
        positives, positive_scores = _side(where, record, "pos")
        negatives, negative_scores = _side(where, record, "neg")
        passages, scores = positives + negatives, positive_scores + negative_scores
        order = ids_of(where, record, "passage_ids")
        if order is not None:
            place = {passage.id: at for at, passage in enumerate(passages)}
            stated = [passage.id for passage in passages if passage.id is not None]
            if len(stated) < len(passages) or sorted(order) != sorted(stated):
                raise InputError(f"{where}: 'passage_ids' are not those of 'pos_ids' and 'neg_ids'. Mend or remove it.")
            scores = [scores[place[passage_id]] for passage_id in order]
            passages = [passages[place[passage_id]] for passage_id in order]
        labelled = ids_of(where, record, "positive_ids")
        if labelled is not None:
            positives = [StatedPassage(where, passage_id, None) for passage_id in labelled]
        return stated_list(where, record, required_text(where, record, "query"), passages, scores, positives)

    def encode(self, where: str, query_list: QueryList, passages: CorpusPassages) -> dict[str, Any]:
        """A line.

        Raises:
            InputError: every candidate is a labelled positive; FlagEmbedding fails without a negative.
        """
        scores = dict(zip(query_list.passage_ids, query_list.teacher_scores, strict=True))
        labelled = set(query_list.positive_ids)
        positive = [p for p in query_list.passage_ids if p in labelled] or [max(scores, key=scores.__getitem__)]
        negative = [p for p in query_list.passage_ids if p not in positive]
        if not negative:
            raise InputError(f"{where}: every candidate is a labelled positive; FlagEmbedding needs a negative.")
        return {
            "query": query_list.query,
            "pos": [passages.text(p, where) for p in positive],
            "neg": [passages.text(p, where) for p in negative],
            "pos_scores": [scores[p] for p in positive],
            "neg_scores": [scores[p] for p in negative],
            "query_id": query_list.query_id,
            "query_type": query_list.query_type,
            "corpus": query_list.corpus,
            "positive_ids": query_list.positive_ids,
            "passage_ids": query_list.passage_ids,
            "pos_ids": positive,
            "neg_ids": negative,
        }

    def write(self, lines: Iterable[dict[str, Any]], path: Path) -> int:
        """Write the lines; return how many."""
        return write_json_lines(path, lines)


def _side(where: str, record: dict[str, Any], side: str) -> tuple[list[StatedPassage], list[Any]]:
    """Passages and scores of ``pos`` or ``neg``."""
    texts = list_of(where, record, side)
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{where}: {shown(text)} in {side!r}; expected a text that is not empty.")
    if record.get(f"{side}_scores") is None:
        raise InputError(
            f"{where}: no '{side}_scores'. A query list needs the teacher's score of every passage; score the pairs "
            "first."
        )
    scores = list_of(where, record, f"{side}_scores")
    ids: list[str] | list[None] = ids_of(where, record, f"{side}_ids") or [None] * len(texts)
    for name, values in ((f"{side}_scores", scores), (f"{side}_ids", ids)):
        if len(values) != len(texts):
            raise InputError(f"{where}: {len(texts)} texts in {side!r} but {len(values)} in {name!r}.")
    return [StatedPassage(where, *pair) for pair in zip(ids, texts, strict=True)], scores
