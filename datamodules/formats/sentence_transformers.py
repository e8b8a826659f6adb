"""The layouts of sentence-transformers' distillation data sets: query, passages, and a list of scores."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datamodules.formats.layout import Layout
from datamodules.formats.passages import CorpusPassages
from datamodules.formats.raw_lists import RawPassage, RawQueryList, keys, raw_query_list, required_text
from datamodules.query_lists import QueryList
from datamodules.storage.files import atomic_path
from datamodules.storage.parquet import PARQUET
from retriever.errors import InputError, choose, shown

_QUERY = ("query", "anchor", "question")
_LABELS = ("label", "labels", "score", "scores")
_NOT_PASSAGES = {"query_type", "corpus", "dataset_name", "id"}
_ID_ENDINGS = ("_id", "_ids", "_idx")
_BLOCK = 1_000


@dataclass(frozen=True)
class SentenceTransformers(Layout):
    """A table (``.parquet``, ``.arrow``, else JSON Lines) of queries, passage texts and scores.

    Two forms are written, and their reader tells them apart by itself:

    * ``columns``: ``query, passage_1, …, passage_K, label`` (a list of K scores), what ``DistillKLDivLoss`` and
      ``MarginMSELoss`` take; K is one number for the whole file.
    * ``lists``: ``query, docs, labels``, what the cross-encoder's ``LambdaLoss``, ``ListNetLoss`` and their kin take.

    Read: the query is ``query``, ``anchor`` or ``question``; the scores ``label``, ``labels``, ``score`` or ``scores``;
    the passages every other column of strings or of lists of strings, in order, nulls left out. Columns whose name
    begins with ``positive`` hold labelled positives. ``query_id`` and ``query_type`` are taken where they are there.

    These losses take every column but the label as a text, so none is written beside: the layout holds the query, the
    passages' texts in order, and the scores; not the query's id and type, nor which passages are labelled. Two
    passages of one text are one passage in it.

    Args:
        form: ``columns`` or ``lists``, for writing.
        list_length: for writing, keep the teacher's best ones only, this many (whatever their order in the list);
            None keeps all.
    """

    form: str = "columns"
    list_length: int | None = None

    def __post_init__(self):
        choose("the form", self.form, ("columns", "lists"))
        if self.list_length is not None and self.list_length < 2:
            raise InputError(f"list_length is {self.list_length}; a list needs at least 2 passages.")

    def parse(self, where: str, record: dict[str, Any]) -> RawQueryList:
        """See :class:`Layout`."""
        query = required_text(where, record, *_QUERY)
        passages, positives = [], []
        for name, value in record.items():
            if name in _LABELS or name in _QUERY or name in _NOT_PASSAGES or name.endswith(_ID_ENDINGS):
                continue
            kinds = {type(v) for v in value if v is not None} if isinstance(value, list) else set()
            if str in kinds and len(kinds) > 1:
                raise InputError(f"{where}: {name!r} is {shown(value)}; expected texts alone (or nulls).")
            for text in value if isinstance(value, list) else [value]:
                if not isinstance(text, str):  # a null (a shorter list), or a column that holds no text
                    continue
                if not text.strip():
                    raise InputError(f"{where}: {name!r} has an empty text where a passage is expected.")
                passages.append(RawPassage(where, None, text))
                if name.startswith("positive"):
                    positives.append(passages[-1])
        if not passages:
            raise InputError(
                f"{where}: no column of passage texts; this row has {keys(record)}. Where columns hold ids, resolve "
                "them first (sentence_transformers.util.resolve_ids)."
            )
        return raw_query_list(where, record, query, passages, _label(where, record, len(passages)), positives)

    def encode(self, where: str, query_list: QueryList, passages: CorpusPassages) -> dict[str, Any]:
        """A row.

        Raises:
            InputError: fewer passages than ``list_length``.
        """
        scored = list(zip(query_list.passage_ids, query_list.teacher_scores, strict=True))
        if self.list_length is not None:
            if len(scored) < self.list_length:
                raise InputError(f"{where}: {len(scored)} passages, fewer than list_length={self.list_length}.")
            best = sorted(range(len(scored)), key=lambda at: -scored[at][1])[: self.list_length]
            scored = [scored[at] for at in sorted(best)]
        texts = [passages.text(passage_id, where) for passage_id, _ in scored]
        if len(set(texts)) < len(texts):
            raise InputError(f"{where}: two of its passages have the same text, and this layout has no ids.")
        scores = [score for _, score in scored]
        if self.form == "lists":
            return {"query": query_list.query, "docs": texts, "labels": scores}
        columns = {f"passage_{number}": text for number, text in enumerate(texts, 1)}
        return {"query": query_list.query, **columns, "label": scores}

    def write(self, lines: Iterable[dict[str, Any]], path: Path) -> int:
        """Write the rows; return how many.

        Raises:
            InputError: in the form ``columns``, a list that is not as long as the first.
        """
        rows = self._alike(iter(lines)) if self.form == "columns" else iter(lines)
        if path.suffix != ".parquet":
            return super().write(rows, path)
        first = next(rows, None)
        if first is None:
            return 0
        types = {str: pa.string(), "docs": pa.list_(pa.string()), list: pa.list_(pa.float32())}
        schema = pa.schema([(n, types.get(n) or types[type(value)]) for n, value in first.items()])
        count = 0
        rows = chain([first], rows)
        with (
            atomic_path(path) as temporary,
            pq.ParquetWriter(temporary, schema, **PARQUET) as writer,
        ):
            while block := list(islice(rows, _BLOCK)):
                writer.write_table(pa.Table.from_pylist(block, schema=schema))
                count += len(block)
        return count

    @staticmethod
    def _alike(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        expected = None
        for row in rows:
            length = len(row["label"])
            expected = expected or length
            if length != expected:
                raise InputError(
                    f"The query {shown(row['query'])} has {length} passages, the first query {expected}; the form "
                    "columns needs one length. Cut them with list_length, or write form=lists."
                )
            yield row


def _label(where: str, record: dict[str, Any], passages: int) -> list[Any]:
    names = [name for name in _LABELS if record.get(name) is not None]
    if len(names) > 1:
        raise InputError(
            f"{where}: {' and '.join(map(repr, names))}, and nothing says which of them the teacher's scores "
            "are. Remove the others."
        )
    if not names:
        raise InputError(f"{where}: none of {', '.join(map(repr, _LABELS))}; this row has {keys(record)}.")
    name = names[0]
    label = record[name]
    if not isinstance(label, list) or len(label) == passages - 1:
        what = shown(label) if not isinstance(label, list) else f"a list of {len(label)}"
        raise InputError(
            f"{where}: {name!r} is {what} for {passages} passages; expected a list of {passages} teacher scores. "
            "(One less, or a number, is what margins look like; the scores cannot be had back from those.)"
        )
    return label
