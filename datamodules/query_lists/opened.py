"""Query lists opened for training: checked, and their ids resolved to rows of the corpus, once."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from datamodules.corpus import Corpus
from datamodules.query_lists.files import list_tables, read_metadata, to_ragged, unequal_lengths
from datamodules.query_lists.query_list import STRINGS, QueryLists, to_offsets
from datamodules.storage.columns import ColumnWriter, cached_columns, mapped_strings
from datamodules.storage.files import require_file
from datamodules.storage.input_hashes import input_sha256
from datamodules.storage.string_index import string_hashes
from retriever.errors import InputError, choose, shown


def open_query_lists(
    path: str | Path, corpus: Corpus, cache_dir: str | Path, on_bad_list: str = "error"
) -> tuple[QueryLists, dict[str, int]]:
    """Open a file of lists for training: checked and ids resolved, once; afterwards memory-mapped.

    Args:
        path: ``.parquet``, ``.arrow`` or ``.jsonl`` file; the last one may be compressed (``.gz``, ``.zst``, ``.bz2``).
        corpus: the corpus that the lists were made from.
        cache_dir: where the resolved copy is kept, by the contents of the file and of the corpus's ids.
        on_bad_list: ``error``, or ``drop`` to leave out lists that fail a check.

    Returns:
        The lists, and how many each check dropped (check → number).

    Raises:
        InputError: with file, line, what is wrong and what to do.
    """
    choose("on_bad_list", on_bad_list, ("error", "drop"))
    path = require_file(Path(path))
    key = json.dumps([input_sha256(path), corpus.name, corpus.ids_sha256, on_bad_list])
    folder = Path(cache_dir) / "query_lists" / hashlib.sha256(key.encode()).hexdigest()[:32]
    columns, facts = cached_columns(folder, lambda writer: _resolve(path, corpus, on_bad_list, writer))
    lists = QueryLists(
        source=path,
        line=columns["line"],
        **{name: mapped_strings(columns, name) for name in STRINGS},
        rows=columns["rows"],
        scores=columns["scores"],
        offsets=columns["rows_offsets"],
        positive_rows=columns["positive_rows"],
        positive_offsets=columns["positive_rows_offsets"],
        metadata=read_metadata(path),
    )
    return lists, facts["dropped"]


def _resolve(path: Path, corpus: Corpus, on_bad_list: str, writer: ColumnWriter) -> dict[str, Any]:
    """Check and resolve a file block by block; write the good lists, and say how many each check dropped."""
    row_type = np.int32 if len(corpus) <= np.iinfo(np.int32).max else np.int64
    hashes, kept = [], 0
    failures: dict[str, _Failure] = {}
    for table, numbers in list_tables(path):
        _refuse_other_corpora(path, table, corpus)
        hashes.append(string_hashes(table["query_id"]))
        lists, candidate_ids, positive_ids = _resolved(path, corpus, table, np.array(numbers, np.int64), row_type)
        bad = _add_failures(failures, lists, _check(lists, candidate_ids, positive_ids))
        lists = _best_first(lists.select(~bad) if bad.any() else lists)
        writer.append("line", lists.line)
        for name in STRINGS:
            writer.append_strings(name, getattr(lists, name))
        writer.append("rows", lists.rows, np.diff(lists.offsets))
        writer.append("scores", lists.scores)
        writer.append("positive_rows", lists.positive_rows, np.diff(lists.positive_offsets))
        kept += len(lists)
    if not hashes:
        raise InputError(f"{path}: no list in it.")
    hashes = np.concatenate(hashes)
    if len(np.unique(hashes)) < len(hashes):
        _refuse_repeated_query_ids(path)
    failed = next((failure for failure in failures.values() if failure.lists), None)
    if failed is not None and on_bad_list == "error":
        raise InputError(
            f"{failed.first}({failed.lists} list(s) like this.) Correct the file, or leave them out with "
            "on_bad_list=drop."
        )
    dropped = {name: failure.dropped for name, failure in failures.items() if failure.dropped}
    if not kept:
        raise InputError(f"{path}: every list fails a check ({dropped}).")
    return {"dropped": dropped}


@dataclass
class _Failure:
    """Lists that fail a check: what to say of the first, how many there are, and how many no check before drops."""

    first: str = ""
    lists: int = 0
    dropped: int = 0


def _add_failures(
    failures: dict[str, _Failure],
    lists: QueryLists,
    checks: Mapping[str, tuple[np.ndarray, Callable[[int], str]]],
) -> np.ndarray:
    """Add what a block's lists fail; return which of them are bad, bool [N]."""
    bad = np.zeros(len(lists), dtype=bool)
    for name, (failing, say) in checks.items():
        failure = failures.setdefault(name, _Failure())
        if len(failing) and not failure.lists:
            at = int(failing[0])
            query = shown(lists.query_ids[at].as_py())
            failure.first = f"{lists.source}:{lists.line[at]}: list of query {query}: {say(at)}. "
        failure.lists += len(failing)
        failure.dropped += int((~bad[failing]).sum())
        bad[failing] = True
    return bad


def _resolved(
    path: Path, corpus: Corpus, table: pa.Table, line: np.ndarray, row_type: type[np.signedinteger]
) -> tuple[QueryLists, pa.Array, pa.Array]:
    """A block of lists, not checked, and the ids of their candidates and positives."""
    candidate_ids, lengths = to_ragged(table["passage_ids"])
    scores, score_lengths = to_ragged(table["teacher_scores"])
    positive_ids, positive_lengths = to_ragged(table["positive_ids"])
    unequal = np.flatnonzero(lengths != score_lengths)
    if len(unequal):
        at = unequal[0]
        raise InputError(unequal_lengths(path, line[at], lengths[at], score_lengths[at]))
    lists = QueryLists(
        source=path,
        line=line,
        query_ids=table["query_id"],
        queries=table["query"],
        query_types=table["query_type"],
        rows=corpus.rows(candidate_ids).astype(row_type),
        scores=scores.to_numpy(zero_copy_only=False).astype(np.float32),
        offsets=to_offsets(lengths),
        positive_rows=corpus.rows(positive_ids).astype(row_type),
        positive_offsets=to_offsets(positive_lengths),
        metadata={},
    )
    return lists, candidate_ids, positive_ids


def _refuse_other_corpora(path: Path, table: pa.Table, corpus: Corpus) -> None:
    foreign = set(table["corpus"].unique().to_pylist()) - {corpus.name}
    if foreign:
        raise InputError(
            f"{path}: lists of the corpus {shown(min(map(str, foreign)))}, but it is read with the corpus "
            f"{corpus.name!r}. Name the right corpus beside this file in data.train."
        )


def _check(
    lists: QueryLists, candidate_ids: pa.Array, positive_ids: pa.Array
) -> dict[str, tuple[np.ndarray, Callable[[int], str]]]:
    """Check → the lists that fail it, and what to say of one of them."""
    number = np.repeat(np.arange(len(lists)), np.diff(lists.offsets))
    positive_number = np.repeat(np.arange(len(lists)), np.diff(lists.positive_offsets))
    finite = np.isfinite(lists.scores)
    order = np.lexsort((lists.rows, number))
    same = (np.diff(number[order]) == 0) & (np.diff(lists.rows[order]) == 0) & (lists.rows[order][1:] >= 0)
    lowest, highest = np.full(len(lists), np.inf), np.full(len(lists), -np.inf)
    np.minimum.at(lowest, number[finite], lists.scores[finite])
    np.maximum.at(highest, number[finite], lists.scores[finite])

    def unknown(ids: pa.Array, rows: np.ndarray, numbers: np.ndarray, at: int) -> str:
        return shown(ids[int(np.flatnonzero((numbers == at) & (rows < 0))[0])].as_py())

    return {
        "fewer than two candidates": (
            np.flatnonzero(np.diff(lists.offsets) < 2),
            lambda at: f"{np.diff(lists.offsets)[at]} candidate(s); a list needs at least 2",
        ),
        "unknown passage": (
            np.unique(number[lists.rows < 0]),
            lambda at: f"the passage {unknown(candidate_ids, lists.rows, number, at)} is not in the corpus",
        ),
        "unknown positive": (
            np.unique(positive_number[lists.positive_rows < 0]),
            lambda at: (
                f"the positive {unknown(positive_ids, lists.positive_rows, positive_number, at)} is not in the corpus"
            ),
        ),
        "score not finite": (
            np.unique(number[~finite]),
            lambda at: (
                f"a teacher score is {lists.scores[(number == at) & ~finite][0]}; scores must be finite in 32 bits"
            ),
        ),
        "passage twice": (
            np.unique(number[order][1:][same]),
            lambda at: "a passage is twice in passage_ids",
        ),
        "constant scores": (
            np.flatnonzero(lowest == highest),
            lambda at: f"all teacher scores are {lowest[at]}, so the teacher says nothing here",
        ),
    }


def _refuse_repeated_query_ids(path: Path) -> None:
    seen: dict[str, int] = {}
    for table, numbers in list_tables(path):
        for value, line in zip(table["query_id"].to_pylist(), numbers, strict=True):
            if value in seen:
                raise InputError(
                    f"{path}:{line}: the query_id {shown(value)} is already in line {seen[value]}. Ids must differ."
                )
            seen[value] = line


def _best_first(lists: QueryLists) -> QueryLists:
    number = np.repeat(np.arange(len(lists)), np.diff(lists.offsets))
    order = np.lexsort((-lists.scores, number))  # stable: tied candidates stay in the file's order
    return replace(lists, rows=lists.rows[order], scores=lists.scores[order])
