"""Corpora, queries and qrels in BEIR's folder layout: shipped, on disk, or downloaded by ``beir``."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datamodules.archives import BEIR, download_beir
from datamodules.columns import ColumnWriter, cached_columns, mapped_strings, update_digest
from datamodules.files import is_file, is_folder, json_lines, lines
from datamodules.input_hashes import input_sha256
from datamodules.string_index import StringIndex, string_hashes
from retriever.errors import InputError, choose, shown

_BLOCK = 10_000
_WHOLE = re.compile(r"[+-]?[0-9]{1,9}")
_BEIR, _TREC = (0, 1, 2), (0, 2, 3)  # the columns of query, passage and grade
SHIPPED = Path(__file__).parent / "data"
BEIR_NAMES = list(BEIR)


@dataclass(frozen=True)
class Corpus:
    """N passages.

    Attributes:
        name: what lists and results call it.
        ids: string array [N].
        titles: string array [N], empty strings where there is none.
        texts: string array [N], the passage without its title.
        mapped_passages: string array [N] of :attr:`passages` where they are memory-mapped, else None.
    """

    name: str
    ids: pa.Array
    titles: pa.Array
    texts: pa.Array
    mapped_passages: pa.Array | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def passages(self) -> pa.Array:
        """What an encoder or BM25 reads: title, a space, text [N]."""
        return _joined(self.titles, self.texts) if self.mapped_passages is None else self.mapped_passages

    @cached_property
    def ids_sha256(self) -> str:
        """Hash of the ids in their order: what rows of this corpus mean."""
        digest = hashlib.sha256()
        update_digest(digest, self.ids)
        return digest.hexdigest()

    @cached_property
    def _index(self) -> StringIndex:
        return StringIndex(self.ids)

    def rows(self, passage_ids: pa.Array | list[str]) -> np.ndarray:
        """Rows of passages, int64; −1 for an unknown id. The first call makes an index of 16 bytes a passage."""
        return self._index.find_all(passage_ids)


@dataclass(frozen=True)
class EvaluationSet:
    """Queries with judgements over a corpus.

    Attributes:
        name: as in metric names, ``val/<name>/ndcg@10``.
        corpus: the whole corpus.
        queries: id → text, those with at least one judgement.
        qrels: query id → passage id → grade (0 is judged and not relevant).
    """

    name: str
    corpus: Corpus
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]] = field(repr=False)

    def is_query_itself(self, passage_id: str) -> bool:
        """Whether a passage that has a query's id is taken for that query: it is not judged relevant to it.

        ArguAna and Quora hold their queries among the passages. Elsewhere ids are equal by chance, as in a list of
        questions and answers that are both numbered from 0.
        """
        return passage_id in self.qrels and self.qrels[passage_id].get(passage_id, 0) <= 0

    def relevant(self) -> dict[str, set[str]]:
        """Query id → ids of the passages judged relevant (grade above 0)."""
        return {q: {p for p, grade in judged.items() if grade > 0} for q, judged in self.qrels.items()}


def find_dataset(name: str | Path, data_dir: str | Path = "data") -> Path:
    """Find a data set's folder: a path, one that is shipped, one in ``data_dir``, or a BEIR name to download.

    Raises:
        InputError: none of these, or the download failed.
    """
    for folder in (Path(name), SHIPPED / name, Path(data_dir) / name):
        if is_folder(folder):
            return folder
    if str(name) not in BEIR_NAMES:
        raise InputError(
            f"There is no data set {shown(str(name))}: it is no folder, none in {data_dir}, not shipped, and no BEIR "
            f"name. BEIR names are {', '.join(BEIR_NAMES)}."
        )
    return download_beir(str(name), data_dir)


def find_file(path: str | Path) -> Path:
    """Find a file by its path or, where there is none, among the shipped data.

    Raises:
        InputError: neither is there.
    """
    for candidate in (Path(path), SHIPPED / path):
        if is_file(candidate):
            return candidate
    if is_folder(path):
        raise InputError(f"{path}: a folder, where a file is expected.")
    shipped = sorted(str(p.relative_to(SHIPPED)) for p in SHIPPED.glob("*/lists/*.parquet"))
    raise InputError(f"{path}: no such file, and none of the shipped ones ({', '.join(shipped) or 'none'}).")


def load_corpus(
    folder: str | Path,
    name: str | None = None,
    empty_passages: str = "error",
    cache_dir: str | Path | None = None,
) -> Corpus:
    """Read ``corpus.jsonl`` or ``corpus.jsonl.gz``: ``_id``, ``title`` (may be missing) and ``text``.

    Args:
        folder: BEIR-layout folder.
        name: the corpus's name; None takes the folder's.
        empty_passages: ``error``, or ``keep`` to let passages without title and text stand.
        cache_dir: where a memory-mapped copy is kept, by the file's content: it is made once, and takes no memory
            afterwards. None reads the corpus into memory.

    Raises:
        InputError: with file and line, for a line that is not JSON, has no id, repeats an id, or holds no text.
    """
    choose("empty_passages", empty_passages, ("error", "keep"))
    folder = Path(folder)
    path = _either(folder, "corpus.jsonl")
    if cache_dir is None:
        blocks = list(_passage_blocks(path, empty_passages, {}))
        arrays = (pa.array([value for block in blocks for value in block[i]], pa.string()) for i in range(3))
        return Corpus(name or folder.name, *arrays)
    copy = Path(cache_dir) / "corpora" / f"{input_sha256(path)[:32]}-{empty_passages}"
    columns, _ = cached_columns(copy, lambda writer: _write_corpus(path, empty_passages, writer))
    return Corpus(name or folder.name, *(mapped_strings(columns, n) for n in ("ids", "titles", "texts", "passages")))


def _write_corpus(path: Path, empty_passages: str, writer: ColumnWriter) -> dict[str, int]:
    hashes = []
    for ids, titles, texts in _passage_blocks(path, empty_passages, None):
        for name, column in {"ids": ids, "titles": titles, "texts": texts}.items():
            writer.append_strings(name, column)
        writer.append_strings("passages", _joined(*(pa.array(c, pa.string()) for c in (titles, texts))))
        hashes.append(string_hashes(ids))
    hashes = np.concatenate(hashes)
    if len(np.unique(hashes)) < len(hashes):
        for _ in _passage_blocks(path, empty_passages, {}):  # says which id stands where
            pass
    return {"passages": len(hashes)}


def _passage_blocks(
    path: Path, empty_passages: str, seen: dict[str, int] | None
) -> Iterator[tuple[list[str], list[str], list[str]]]:
    """Ids, titles and texts, checked. ``seen`` (a line for every id) takes memory; None lets ids repeat."""
    block: tuple[list[str], list[str], list[str]] = ([], [], [])
    number = None
    for number, record in json_lines(path):
        passage_id = _id(path, number, record, {} if seen is None else seen)
        title, text = ("" if record.get(key) is None else record[key] for key in ("title", "text"))
        if not isinstance(title, str) or not isinstance(text, str):
            raise InputError(f"{path}:{number}: title and text of passage {shown(passage_id)} must be strings.")
        if empty_passages == "error" and not (title.strip() or text.strip()):
            raise InputError(
                f"{path}:{number}: passage {shown(passage_id)} has neither title nor text. Remove it, or let it stand "
                "with data.empty_passages=keep."
            )
        for column, value in zip(block, (passage_id, title, text), strict=True):
            column.append(value)
        if len(block[0]) == _BLOCK:
            yield block
            block = ([], [], [])
    if number is None:
        raise InputError(f"{path}: no passage in it.")
    if block[0]:
        yield block


def _joined(titles: pa.Array, texts: pa.Array) -> pa.Array:
    return pc.utf8_trim_whitespace(pc.binary_join_element_wise(titles, texts, pa.scalar(" ", titles.type)))


def load_queries(folder: str | Path) -> dict[str, str]:
    """Read ``queries.jsonl`` or ``queries.jsonl.gz``: id → text. Any other field (gold evidence) is not read."""
    path = _either(Path(folder), "queries.jsonl")
    queries: dict[str, str] = {}
    seen: dict[str, int] = {}
    for number, record in json_lines(path):
        query_id = _id(path, number, record, seen)
        text = record.get("text")
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{path}:{number}: query {shown(query_id)} has no text. Mend or remove this line.")
        queries[query_id] = text
    return queries


def load_qrels(folder: str | Path, split: str) -> tuple[Path, dict[str, dict[str, tuple[int, int]]]]:
    """Read ``qrels/<split>.tsv``: the path, and query id → passage id → (grade, line number).

    A line is BEIR's ``query-id <tab> corpus-id <tab> score`` or TREC's ``qid 0 docid grade``, with tabs or spaces.
    A first line that names ``score`` third, or ``corpus-id`` and ``score`` anywhere, says where they stand; without
    one, columns behind BEIR's three are left out where none is a number.

    Raises:
        InputError: no such split, a line of neither form, or not of the first line's, or a pair judged twice.
    """
    path = Path(folder) / "qrels" / f"{split}.tsv"
    if not path.is_file():
        splits = sorted(p.stem for p in path.parent.glob("*.tsv"))
        raise InputError(f"{path}: no such file. The splits of {folder} are {', '.join(splits) or 'none'}.")
    qrels: dict[str, dict[str, tuple[int, int]]] = {}
    for number, query_id, passage_id, grade in _judgements(path):
        judged = qrels.setdefault(query_id, {})
        if passage_id in judged:
            raise InputError(
                f"{path}:{number}: query {shown(query_id)} and passage {shown(passage_id)} were judged already in line "
                f"{judged[passage_id][1]}. Keep one of the two lines."
            )
        judged[passage_id] = (grade, number)
    return path, qrels


def _judgements(path: Path) -> Iterator[tuple[int, str, str, int]]:
    """Number, query id, passage id and grade of every line."""
    named, first = None, None
    for number, line in lines(path):
        columns = line.split("\t")
        if len(columns) == 1 and len(line.split()) == 4:  # as TREC's are written
            columns = line.split()
        while len(columns) > 3 and not columns[-1].strip():  # a tab at the end
            columns.pop()
        if number == 1 and _is_header(columns):
            names = [column.strip() for column in columns]
            if "corpus-id" in names or names.index("score") == 2:
                named = 0, names.index("corpus-id") if "corpus-id" in names else 1, names.index("score")
            continue
        places = named or (_BEIR if len(columns) == 3 else _places(columns))
        first = first or places
        if places is None or len(columns) <= max(places) or "\0" in line:
            grade, whole = None, False
        else:
            grade, whole = whole_grade(columns[places[2]]), all(map(str.strip, columns[: places[2]]))
        if places is None or grade is None or places != first or not whole:
            raise InputError(
                f"{path}:{number}: {shown(line)} is not 'query-id <tab> corpus-id <tab> whole number', up to "
                f"1,000,000 (nor TREC's 'qid 0 docid whole number'), or not as those before; it has {len(columns)} "
                "columns. Where further ones hold numbers, begin with a line 'query-id <tab> corpus-id <tab> score'."
            )
        yield number, columns[places[0]], columns[places[1]], grade


def _is_header(columns: list[str]) -> bool:
    named = "score" in {column.strip() for column in (*columns[2:3], columns[-1])}
    return named and all(whole_grade(column) is None for column in columns)


def _places(columns: list[str]) -> tuple[int, int, int] | None:
    """Where query, passage and grade stand in more than three columns; None where that cannot be known."""
    grades = [whole_grade(column) is not None for column in columns]
    iteration = len(columns) > 1 and columns[1].strip() in ("0", "Q0")
    if len(columns) == 4 and grades[3] and (iteration or (grades[1] and not grades[2])):
        return _TREC
    return _BEIR if grades[2:] == [True] + [False] * len(columns[3:]) and not iteration else None


def whole_grade(text: str) -> int | None:
    """A grade of relevance, a whole number up to a million; None where the text is none.

    trec_eval makes an array as long as the highest grade, and crashes at 2³¹.
    """
    text = text.strip()
    return int(text) if _WHOLE.fullmatch(text) and abs(int(text)) <= 1_000_000 else None


def load_evaluation_set(
    path: str,
    split: str = "test",
    *,
    name: str | None = None,
    data_dir: str | Path = "data",
    unknown_qrels: str = "error",
    empty_passages: str = "error",
    corpus: Corpus | None = None,
    cache_dir: str | Path | None = None,
) -> EvaluationSet:
    """Load corpus, queries and one split's qrels, and check that they belong together.

    Args:
        path: as for :func:`find_dataset`.
        split: file name under ``qrels``, without ``.tsv``.
        name: for metric names; None takes the folder's name.
        data_dir: where downloaded sets lie.
        unknown_qrels: ``error`` where a judgement names an unknown query or passage; ``keep`` keeps judgements of
            passages that the corpus lacks (they count in the ideal ranking, as in trec_eval) and leaves out unknown
            queries.
        empty_passages: as for :func:`load_corpus`.
        corpus: the corpus, if it is loaded already.
        cache_dir: as for :func:`load_corpus`.

    Raises:
        InputError: with file and line.
    """
    choose("unknown_qrels", unknown_qrels, ("error", "keep"))
    folder = find_dataset(path, data_dir)
    corpus = corpus or load_corpus(folder, empty_passages=empty_passages, cache_dir=cache_dir)
    queries = load_queries(folder)
    qrels_path, judged = load_qrels(folder, split)
    if unknown_qrels == "error":
        judgements = [(q, p, line) for q, passages in judged.items() for p, (_, line) in passages.items()]
        rows = corpus.rows([p for _, p, _ in judgements])
        for (query_id, passage_id, line), row in zip(judgements, rows, strict=True):
            missing = [f"query {shown(query_id)}"] if query_id not in queries else []
            missing += [f"passage {shown(passage_id)}"] if row < 0 else []
            if missing:
                raise InputError(
                    f"{qrels_path}:{line}: {missing[0]} is not in this data set. Are these the qrels of another "
                    "corpus? To go on all the same: evaluation.unknown_qrels=keep."
                )
    qrels = {q: {p: g for p, (g, _) in passages.items()} for q, passages in judged.items() if q in queries}
    if not qrels:
        raise InputError(f"{qrels_path}: no judgement of any query of {folder}.")
    return EvaluationSet(name or folder.name, corpus, {q: queries[q] for q in qrels}, qrels)


def judgement_files(folder: Path, split: str) -> list[Path]:
    """The files that a split's queries and qrels come from, sorted."""
    return sorted([*folder.glob("queries.jsonl*"), *(folder / "qrels").glob(f"{split}.tsv*")])


def _either(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if is_file(path):
            return path
    raise InputError(f"{folder}: neither {name} nor {name}.gz in it, so this is no folder in BEIR's layout.")


def _id(path: Path, number: int, record: dict, seen: dict[str, int]) -> str:
    value = record.get("_id")
    if value is None or value == "":
        raise InputError(f"{path}:{number}: no _id. Every line needs one.")
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise InputError(f"{path}:{number}: the _id is {shown(value)}; expected a string or a whole number.")
    value = str(value)
    if not value.strip() or "\0" in value:  # trec_eval ends an id at NUL
        raise InputError(f"{path}:{number}: the _id is {shown(value)}; expected characters, and no NUL among them.")
    if value in seen:
        raise InputError(
            f"{path}:{number}: the _id {shown(value)} stands already in line {seen[value]}. Ids must differ."
        )
    seen[value] = number
    return value
