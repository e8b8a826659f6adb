"""FlagEmbedding's layout: JSON Lines with the texts of positives and negatives and the teacher's scores of both."""

from dataclasses import dataclass
from typing import Any

from datamodules.formats.layout import SidedLayout, no_score
from datamodules.formats.passages import CorpusPassages
from datamodules.formats.raw_lists import RawPassage, ids_of, list_of
from datamodules.query_lists import QueryList
from retriever.errors import InputError, shown


@dataclass(frozen=True)
class FlagEmbedding(SidedLayout):
    """``{"query", "pos": [texts], "neg": [texts], "pos_scores", "neg_scores"}``, one query a line.

    Read: the texts of ``pos`` are the labelled positives. Written: ``pos`` has the labelled positives that stand in
    the list or, where none does, the teacher's first, for FlagEmbedding needs one; ``neg`` has the others. The layout
    itself holds no ids, no types, no positive without a score, and not the order of the candidates; these are written
    under keys of their own (``query_id``, ``query_type``, ``corpus``, ``positive_ids``, ``passage_ids``, ``pos_ids``,
    ``neg_ids``), which FlagEmbedding does not read, and are taken up again on reading. ``prompt`` and ``type``, which
    mean something else there, are neither written nor read.

    Args:
        scores: for reading, ``stated``, or ``labels``: 1 for every positive and 0 for every negative, for an objective
            that reads labels alone.
    """

    tool = "FlagEmbedding"
    sides = "pos", "neg"
    queries = ("query",)
    scores: str = "stated"

    def read_side(
        self, where: str, record: dict[str, Any], side: str, score: float | None
    ) -> tuple[list[RawPassage], list[Any]]:
        """See :class:`SidedLayout`."""
        texts = list_of(where, record, side)
        for text in texts:
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"{where}: {shown(text)} in {side!r}; expected a text that is not empty.")
        if score is None and record.get(f"{side}_scores") is None:
            raise no_score(where, f"no '{side}_scores'")
        scores = list_of(where, record, f"{side}_scores") if score is None else [score] * len(texts)
        ids: list[str] | list[None] = ids_of(where, record, f"{side}_ids") or [None] * len(texts)
        for name, values in ((f"{side}_scores", scores), (f"{side}_ids", ids)):
            if len(values) != len(texts):
                raise InputError(f"{where}: {len(texts)} texts in {side!r} but {len(values)} in {name!r}.")
        return [RawPassage(where, *pair) for pair in zip(ids, texts, strict=True)], scores

    def encode(self, where: str, query_list: QueryList, passages: CorpusPassages) -> dict[str, Any]:
        """See :class:`Layout`."""
        scores = dict(zip(query_list.passage_ids, query_list.teacher_scores, strict=True))
        positive, negative = self.divided(where, query_list)
        return {
            "query": query_list.query,
            "pos": [passages.text(p, where) for p in positive],
            "neg": [passages.text(p, where) for p in negative],
            "pos_scores": [scores[p] for p in positive],
            "neg_scores": [scores[p] for p in negative],
            "query_id": query_list.query_id,
            **self.own_keys(query_list),
            "pos_ids": positive,
            "neg_ids": negative,
        }
