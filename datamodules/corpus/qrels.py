"""Judgements: qrels files of BEIR and of TREC."""

import re
from collections.abc import Collection, Iterator
from pathlib import Path

from datamodules.formats.records import find_records
from datamodules.storage.compressed import ENDINGS
from datamodules.storage.files import is_file, lines
from retriever.errors import InputError, shown

_WHOLE = re.compile(r"[+-]?[0-9]{1,9}")
_BEIR, _TREC = (0, 1, 2), (0, 2, 3)  # the columns of query, passage and grade


def load_qrels(folder: str | Path, split: str) -> tuple[Path, dict[str, dict[str, tuple[int, int]]]]:
    """Read ``qrels/<split>.tsv``: the path, and what :func:`read_qrels` finds in it.

    Raises:
        InputError: no such split, or as :func:`read_qrels`.
    """
    path = qrels_file(Path(folder), split)
    if path is None:
        splits = ", ".join(qrels_splits(Path(folder))) or "none"
        raise InputError(f"{Path(folder) / 'qrels' / split}.tsv: no such file. The splits of {folder} are {splits}.")
    return path, read_qrels(path)


def read_qrels(path: Path, spaced: Collection[int] = (4,)) -> dict[str, dict[str, tuple[int, int]]]:
    """Read judgements: query id → passage id → (grade, line number).

    A line is BEIR's ``query-id <tab> corpus-id <tab> score`` or TREC's ``qid 0 docid grade``, with tabs or spaces.
    A first line that names ``score`` third, or ``corpus-id`` and ``score`` anywhere, says where they stand; without
    one, columns behind BEIR's three are left out where none is a number.

    Args:
        path: the file.
        spaced: how many columns a line without tabs may have.

    Raises:
        InputError: a line of neither form, or not of the first line's, or a pair judged twice.
    """
    qrels: dict[str, dict[str, tuple[int, int]]] = {}
    for number, query_id, passage_id, grade in _judgements(path, spaced):
        judged = qrels.setdefault(query_id, {})
        if passage_id in judged:
            raise InputError(
                f"{path}:{number}: query {shown(query_id)} and passage {shown(passage_id)} were judged already in line "
                f"{judged[passage_id][1]}. Keep one of the two lines."
            )
        judged[passage_id] = (grade, number)
    return qrels


def _judgements(path: Path, spaced: Collection[int]) -> Iterator[tuple[int, str, str, int]]:
    """Number, query id, passage id and grade of every line."""
    named, first = None, None
    for number, line in lines(path):
        columns = line.split("\t")
        if len(columns) == 1 and len(line.split()) in spaced:  # as TREC's are written
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


def judgement_files(folder: Path, split: str) -> list[Path]:
    """The files that a split's queries and qrels come from, sorted."""
    found = qrels_file(folder, split)
    return sorted([*find_records(folder, "queries"), *([found] if found else [])])


def qrels_file(folder: Path, split: str) -> Path | None:
    """The judgements of a split, ``qrels/<split>.tsv``, compressed or not; None where there are none."""
    paths = (folder / "qrels" / f"{split}.tsv{packed}" for packed in ("", *ENDINGS))
    return next(filter(is_file, paths), None)


def qrels_splits(folder: Path) -> list[str]:
    """The splits that a folder has judgements of, sorted."""
    names = {path.name.partition(".tsv")[0] for path in (folder / "qrels").glob("*.tsv*")}
    return sorted(name for name in names if qrels_file(folder, name))
