"""Bad input: every reader gives what a plain reading gives, or says in one sentence what is wrong.

The cases are few and always the same. ``FUZZ_EXAMPLES=2000 pytest tests/robustness/test_bad_input.py`` draws so many
of each kind, other ones each time.
"""

import bz2
import gzip
import itertools
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from datamodules.corpus import Corpus, load_corpus, load_evaluation_set, load_qrels, load_queries
from datamodules.formats.passages import CorpusPassages, new_corpus
from datamodules.formats.transfer import import_lists
from datamodules.pipeline.query_types import load_query_types
from datamodules.query_lists import QueryList, open_query_lists, read_metadata, read_query_lists, write_query_lists
from experiments.comparison.changes import most_changed
from experiments.comparison.tables import compare
from experiments.lists.command import main as prepare
from helpers.bad_input import (
    LARGEST,
    REFUSED,
    Tally,
    best_first,
    damages,
    in_32_bits,
    passes,
    plain_bzip2,
    plain_corpus,
    plain_gzip,
    plain_lists,
    plain_objects,
    plain_qrels,
    plain_queries,
    plain_text,
)
from helpers.run_folders import values, write_run
from retriever.encoder.text_encoder import TextEncoder
from retriever.errors import InputError

TALLY = Tally()
DRAWN = int(os.environ.get("FUZZ_EXAMPLES", 0))
pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200 if DRAWN else 420)]
drawn = settings(
    max_examples=DRAWN or 25,
    derandomize=not DRAWN,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
IDS = ["7", "a b", "tab\tid", "line\nid", "漢字", "🙂", "é", "e\u0301", r"C:\data\1", " lead", "None", "x" * 300]
TEXTS = [f"Text {number} of {name}. Ελληνικά, العربية, 漢字 🙂" for number, name in enumerate(IDS)]
CORPUS = Corpus("c", pa.array(IDS), pa.array([""] * len(IDS)), pa.array(TEXTS))
LISTS = [
    QueryList("q 1", "what is 漢字?", "human", "c", ["漢字"], ["漢字", "7", "a b"], [0.25, 3.0, -1.5]),
    QueryList("2", "\tTab and 🙂 ", "title", "c", [], ["🙂", "é", "e\u0301"], [0.5, 0.5, 1e-30]),
    QueryList("q\n3", "x" * 200, "human", "c", ["7", "🙂"], IDS[::-1], [float(k) for k in range(len(IDS))]),
]
PASSAGES = [{"_id": i, "title": f"Title of {i}", "text": t} for i, t in zip(IDS, TEXTS, strict=True)]
counter = itertools.count()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A function that gives a new empty folder."""
    root = tmp_path_factory.mktemp("bad_input")

    def fresh() -> Path:
        folder = root / str(next(counter))
        folder.mkdir()
        return folder

    return fresh


@pytest.fixture(autouse=True)
def _findings():
    """Each test answers for its own cases."""
    before = len(TALLY.crashes), len(TALLY.losses)
    yield
    found = TALLY.crashes[before[0] :] + TALLY.losses[before[1] :]
    assert not found, "\n".join(found[:20])


def json_lines(records) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def as_records(lists=LISTS) -> list[dict]:
    return [dict(vars(each)) for each in lists]


def rows_of(lists: QueryList) -> list[tuple]:
    return [
        (q.query_id, q.query, q.query_type, q.corpus, tuple(q.positive_ids), tuple(q.passage_ids), scores_of(q))
        for q in lists
    ]


def scores_of(query_list: QueryList) -> tuple:
    return tuple(float(np.float32(score)) for score in query_list.teacher_scores)


def opened(path: Path, on_bad_list: str = "error", corpus: Corpus = CORPUS) -> list[tuple]:
    """What training gets, in the form of ``best_first``."""
    lists, dropped = open_query_lists(path, corpus, path.parent / f"cache-{on_bad_list}", on_bad_list)
    ids = corpus.ids.to_pylist()
    positives = lists.positive_ids(corpus)
    found = []
    for at in range(len(lists)):
        part = slice(lists.offsets[at], lists.offsets[at + 1])
        names = tuple(ids[row] for row in lists.rows[part])
        strings = (lists.query_ids[at].as_py(), lists.queries[at].as_py(), lists.query_types[at].as_py())
        found.append((int(lists.line[at]), *strings, tuple(positives[at]), names, tuple(lists.scores[part].tolist())))
    return found if on_bad_list == "error" else (found, sum(dropped.values()))


def judge_lists(case: str, path: Path, plain: list[tuple] | None, may_refuse: bool = True) -> None:
    """A file of lists as training reads it, with and without bad lists, and as other commands read it."""
    known = set(IDS)
    foreign = plain is not None and any(row[4] != "c" for row in plain)
    twice = plain is not None and len({row[1] for row in plain}) < len(plain)
    unequal = plain is not None and any(len(row[6]) != len(row[7]) for row in plain)
    good = [row for row in plain or () if passes(row, "c", known)]
    whole = plain is not None and len(good) == len(plain) > 0 and not foreign and not twice
    right = [best_first(row) for row in good]
    TALLY.judge(f"{case}: open", lambda: opened(path), right if whole else REFUSED, may_refuse=may_refuse or not whole)
    some = bool(good) and not foreign and not twice and not unequal
    TALLY.judge(
        f"{case}: drop",
        lambda: opened(path, "drop"),
        (right, len(plain or ()) - len(good)) if some else REFUSED,
        may_refuse=may_refuse or not some,
    )
    comparable = [(*row[1:7], repr(row[7])) for row in plain or ()]  # NaN is not NaN
    TALLY.judge(
        f"{case}: read",
        lambda: [(*row[:6], repr(row[6])) for row in rows_of(read_query_lists(path))],
        comparable if plain is not None and not unequal else [] if plain_is_empty(path) else REFUSED,
    )


def plain_is_empty(path: Path) -> bool:
    return path.suffix == ".jsonl" and not path.read_bytes().removeprefix(b"\xef\xbb\xbf").strip(b" \r\n\t")


# ------------------------------------------------------------------------------------------------- damaged files


def test_damaged_lists_in_json_lines(place):
    for name, data in damages(json_lines(as_records())):
        path = place() / "lists.jsonl"
        path.write_bytes(data)
        judge_lists(f"lists.jsonl, {name}", path, plain_lists(data), name not in ("CRLF", "byte order mark"))


def test_damaged_lists_in_parquet(place):
    whole = place() / "whole.parquet"
    write_query_lists(whole, LISTS, {"teacher": "made up"})
    data = whole.read_bytes()
    plain = plain_lists(json_lines(as_records()))
    assert opened(whole) == [best_first(row) for row in plain]
    ways = dict(damages(data)) | {f"cut at {at}": data[:at] for at in range(0, len(data), 97)}
    ways |= {f"bit {at % 8} of byte {at}": flipped(data, at) for at in range(0, len(data), 1 if DRAWN else 23)}
    for name, damaged in ways.items():
        path = place() / "lists.parquet"
        path.write_bytes(damaged)
        TALLY.judge(f"lists.parquet, {name}", lambda: opened(path), [best_first(r) for r in plain], where=str(path))  # noqa: B023
        TALLY.judge(f"lists.parquet, {name}: read", lambda: rows_of(read_query_lists(path)), [r[1:] for r in plain])  # noqa: B023


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :]


PACKED = {"": (bytes, bytes), ".gz": (gzip.compress, plain_gzip), ".bz2": (bz2.compress, plain_bzip2)}


@pytest.mark.parametrize("ending", PACKED)
def test_damaged_corpora(place, ending):
    pack, unpack = PACKED[ending]
    for name, damaged in damages(pack(json_lines(PASSAGES))):
        folder = place()
        path = folder / f"corpus.jsonl{ending}"
        path.write_bytes(damaged)
        text = unpack(damaged)
        plain = None if text is None else plain_corpus(text)
        for cache in (None, folder / "cache"):
            TALLY.judge(f"corpus.jsonl{ending}, {name}", lambda: corpus_rows(folder, cache), plain, where=str(path))  # noqa: B023


def test_damaged_tables_and_archives_of_passages(place):
    """Whole, what was written; else one sentence: nothing tells how much is missing."""
    table = pa.Table.from_pylist(PASSAGES)
    right = plain_corpus(json_lines(PASSAGES))
    for kind, new in {"stream": pa.ipc.new_stream, "file": pa.ipc.new_file, "Zstandard": None, "Parquet": None}.items():
        stream = pa.BufferOutputStream()
        name = {"Zstandard": "corpus.jsonl.zst", "Parquet": "corpus.parquet"}.get(kind, "corpus.arrow")
        if new:
            with new(stream, table.schema) as writer:
                writer.write_table(table)
        elif kind == "Parquet":
            pq.write_table(table, stream, write_page_checksum=True)
        else:
            with pa.CompressedOutputStream(stream, "zstd") as file:
                file.write(json_lines(PASSAGES))
        data = stream.getvalue().to_pybytes()
        ways = dict(damages(data)) | {f"cut at {at}": data[:at] for at in range(0, len(data), 61)}
        if kind != "Parquet":  # these have no checksums; zeros in a text are a text
            ways = {way: damaged for way, damaged in ways.items() if way not in ("NUL page", "a byte that is no UTF-8")}
        for way, damaged in ways.items():
            folder = place()
            (folder / name).write_bytes(damaged)
            TALLY.judge(f"corpus as {kind}, {way}", lambda: corpus_rows(folder, None), right, where=str(folder))  # noqa: B023


@pytest.mark.parametrize("ending", ["tsv", "csv"])
def test_damaged_columns_of_text(place, ending):
    """Tabs and quotes wherever they come: the same cells as the csv module reads, or one sentence."""
    for name, data in damages("".join(f"{i}{',' if ending == 'csv' else chr(9)}text {i}\n" for i in "abcdef").encode()):
        folder = place()
        head = b"_id,text\n" if ending == "csv" else b""
        (folder / f"corpus.{ending}").write_bytes(head + data)
        text = plain_text(head + data)
        rows = text and [line for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n") if line.strip()]
        cells = [row.split("," if ending == "csv" else "\t") for row in rows or ()][len(head) > 0 :]
        whole = cells and all(len(c) == 2 and c[0].strip() and c[1].strip() and "\0" not in c[0] for c in cells)
        right = [(c[0], "", c[1]) for c in cells] if whole and len({c[0] for c in cells}) == len(cells) else REFUSED
        TALLY.judge(f"corpus.{ending}, {name}", lambda: corpus_rows(folder, None), right, where=str(folder))  # noqa: B023


def corpus_rows(folder: Path, cache: Path | None) -> list[tuple[str, str, str]]:
    corpus = load_corpus(folder, cache_dir=cache)
    return list(zip(*(column.to_pylist() for column in (corpus.ids, corpus.titles, corpus.texts)), strict=True))


def test_damaged_queries_and_judgements(place):
    queries = json_lines({"_id": i, "text": f"question {i}"} for i in IDS)
    for name, damaged in damages(queries):
        folder = place()
        (folder / "queries.jsonl").write_bytes(damaged)
        plain = plain_queries(damaged)
        TALLY.judge(f"queries.jsonl, {name}", lambda: load_queries(folder), plain, where=str(folder))  # noqa: B023
    rows = ["q 1\ta b\t1", "2\t漢字\t0", "2\t🙂\t-1", "é\t7\t3"]
    for name, damaged in damages("\n".join(["query-id\tcorpus-id\tscore", *rows, ""]).encode()):
        judge_qrels(place(), name, damaged)
    for grade in (
        "1.0",
        "1e3",
        "nan",
        "1_0",
        "１",
        "2147483648",
        "99999999999999",
        "0x1",
        "",
        "-",
        "+2",
        " 3 ",
        "1\t2",
    ):
        judge_qrels(place(), f"grade {grade!r}", f"q 1\ta b\t{grade}\n".encode())
    for row in ("\ta b\t1", "q 1\t\t1", "q 1 0 a b 1", "q 1\ta\0b\t1", "q 1\ta b", "q 1\t7\t1\t1", "q 1\t0\t1\tgood"):
        judge_qrels(place(), repr(row), f"{row}\n".encode())
    header = "query-id\tcorpus-id\tscore"
    for name, rows, right in (  # what other tools write; what was read once is read still
        ("a tab at the end", ["q 1\ta b\t1\t", "2\t7\t0"], {"q 1": {"a b": 1}, "2": {"7": 0}}),
        ("a header of more", [f"{header}\tby", "q 1\t0\t1\t2"], {"q 1": {"0": 1}}),
        ("a label before the score", ["query-id\tcorpus-id\tlabel\tscore", "q 1\t7\tgood\t1"], {"q 1": {"7": 1}}),
        ("a passage in the third column", ["query-id\titeration\tcorpus-id\tscore", "q 1\t0\t7\t1"], {"q 1": {"7": 1}}),
        ("a label without a header", ["q 1\t7a\tgood\t1"], None),
        ("a column of notes", ["q 1\ta b\t1\tgood", "q 1\t7\t0"], {"q 1": {"a b": 1, "7": 0}}),
        ("TREC's", ["q 1\t0\ta b\t1", "q 1\t0\t7\t2"], {"q 1": {"a b": 1, "7": 2}}),
        ("TREC's with spaces", ["q1 0 7 1", "q1 Q0 é 0", "q1 3 d 2"], {"q1": {"7": 1, "é": 0, "d": 2}}),
        ("TREC's without a grade", ["q1\t0\t7\t1", "q1\t0\t8"], None),
        ("BEIR's with spaces", ["q1 d 1"], None),
        ("TREC's grade is none", ["q1 0 7 1", "q1 0 8 x"], None),
        ("either form", ["q1 5 7 1"], None),
        ("one form, then the other", ["q1 0 7 1", "q1\t5\t1\tgood"], None),
        ("a passage called score", ["q1 0 score 1"], {"q1": {"score": 1}}),
    ):
        data = "\n".join([*rows, ""]).encode()
        assert plain_qrels(data) == right, name
        judge_qrels(place(), name, data, may_refuse=right is None)


def judge_qrels(folder: Path, name: str, data: bytes, may_refuse: bool = True) -> None:
    (folder / "qrels").mkdir()
    path = folder / "qrels" / "test.tsv"
    path.write_bytes(data)

    def read():
        return {q: {p: g for p, (g, _) in found.items()} for q, found in load_qrels(folder, "test")[1].items()}

    TALLY.judge(f"qrels, {name}", read, plain_qrels(data), where=str(path), may_refuse=may_refuse)


def test_sets_that_do_not_belong_together(place):
    def data_set(passages, queries, qrels) -> Path:
        folder = place()
        (folder / "qrels").mkdir()
        (folder / "corpus.jsonl").write_bytes(json_lines({"_id": p, "text": f"text {p}"} for p in passages))
        (folder / "queries.jsonl").write_bytes(json_lines({"_id": q, "text": f"query {q}"} for q in queries))
        (folder / "qrels" / "test.tsv").write_text("".join(f"{q}\t{p}\t{g}\n" for q, p, g in qrels))
        return folder

    def judgements(folder, **options):
        return lambda: load_evaluation_set(str(folder), **options).qrels

    foreign = data_set("abc", ["q"], [("q", "z", 1)])
    TALLY.judge("qrels of another corpus", judgements(foreign), where="test.tsv:1")
    TALLY.judge("and kept", judgements(foreign, unknown_qrels="keep"), {"q": {"z": 1}}, may_refuse=False)
    for name, folder in {
        "no query of them": data_set("abc", ["q"], [("r", "a", 1)]),
        "no judgement": data_set("abc", ["q"], []),
        "no passage": data_set("", ["q"], [("q", "a", 1)]),
        "no query": data_set("abc", [], [("q", "a", 1)]),
    }.items():
        for unknown in ("error", "keep"):
            TALLY.judge(name, judgements(folder, unknown_qrels=unknown), where=str(folder))
    negative = data_set("abc", ["q"], [("q", "a", -1), ("q", "b", 2)])
    TALLY.judge("negative grades", judgements(negative), {"q": {"a": -1, "b": 2}}, may_refuse=False)


def no_file(folder: Path) -> dict[str, Path]:
    """Paths that are no readable file."""
    loop = folder / "loop.jsonl"
    loop.symlink_to(folder / "loop.jsonl")
    dangling = folder / "dangling.jsonl"
    dangling.symlink_to(folder / "nothing.jsonl")
    (folder / "folder.jsonl").mkdir()
    (folder / "folder.parquet").mkdir()
    (folder / "unreadable.jsonl").symlink_to("/proc/self/mem")  # not even for root
    (folder / "unreadable.parquet").symlink_to("/proc/self/mem")
    secret = folder / "secret.jsonl"
    secret.write_text("{}\n")
    secret.chmod(0)
    return {
        "symlink loop": loop,
        "dangling symlink": dangling,
        "folder": folder / "folder.jsonl",
        "folder as Parquet": folder / "folder.parquet",
        "unreadable": folder / "unreadable.jsonl",
        "unreadable Parquet": folder / "unreadable.parquet",
        "no permission": secret,
        "nothing": folder / "none.jsonl",
        "a file as a folder": secret / "x.jsonl",
        "a name too long": folder / f"{'n' * 300}.jsonl",
        "a NUL in the name": folder / "a\0b.jsonl",
        "a Windows path": Path(r"C:\data\lists.jsonl"),
    }


def test_paths_that_are_no_file(place):
    for name, path in no_file(place()).items():
        where = str(path) if "\0" not in str(path) else ""
        judged = {
            "open": lambda: opened(path),  # noqa: B023
            "read": lambda: rows_of(read_query_lists(path)),  # noqa: B023
            "cadet": lambda: rows_of(import_lists(path, "cadet", CorpusPassages(CORPUS))),  # noqa: B023
            "tables": lambda: rows_of(import_lists(path, "sentence_transformers", CorpusPassages(CORPUS))),  # noqa: B023
            "runs": lambda: rows_of(import_lists(path, "trec", CorpusPassages(CORPUS))),  # noqa: B023
            "corpus": lambda: load_corpus(path),  # noqa: B023
            "queries": lambda: load_queries(path),  # noqa: B023
            "set": lambda: load_evaluation_set(str(path)),  # noqa: B023
        }
        for what, read in judged.items():
            TALLY.judge(f"{name}: {what}", read, where="" if what in ("set", "runs") else where)


# ------------------------------------------------------------------------------------------------- drawn values

half = st.sampled_from(["\ud800", "a\udfff", "\udc80b"])
text = st.one_of(st.text(max_size=12), st.sampled_from([*IDS, "", " ", "\u00a0", "\0", "a\0b", "\r", "\u2028", "nan"]))
scalar = st.one_of(
    text,
    half,
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([2**31, 2**53 + 1, 16_777_217, -(2**63), 10**40, 10**400]),
    st.floats(width=64),
    st.sampled_from([1e39, -1e300, 3.4028235677973366e38, 5e-324]),
)
value = st.recursive(scalar, lambda v: st.lists(v, max_size=4) | st.dictionaries(text, v, max_size=2), max_leaves=6)


@st.composite
def mutated(draw, records: list[dict]) -> bytes:
    """JSON Lines of records of which some values are others, some keys missing, twice, or new, some lines twice."""
    rows = []
    for record in json.loads(json.dumps(records)):
        for _ in range(draw(st.integers(0, 1))):
            key = draw(st.sampled_from(sorted(record)))
            way = draw(st.sampled_from(["value", "value", "element", "without", "new"]))
            if way == "value":
                record[key] = draw(value)
            elif way == "element" and isinstance(record[key], list) and record[key]:
                record[key][draw(st.integers(0, len(record[key]) - 1))] = draw(value)
            elif way == "without":
                del record[key]
            elif way == "new":
                record[draw(text)] = draw(value)
        row = json.dumps(record)
        if record and draw(st.integers(0, 9)) == 0:
            key = draw(st.sampled_from(sorted(record)))
            row = f"{row[:-1]}, {json.dumps(key)}: {json.dumps(draw(value))}}}"
        rows += [row] * draw(st.sampled_from([1, 1, 1, 1, 1, 1, 1, 2]))
    newline = draw(st.sampled_from(["\n", "\n", "\r\n", "\n\n", "\n \t\n"]))
    return newline.join([*rows, ""]).encode()


@drawn
@given(data=mutated(as_records()))
def test_drawn_lists(place, data):
    path = place() / "lists.jsonl"
    path.write_bytes(data)
    judge_lists("drawn lists", path, plain_lists(data))
    shutil.rmtree(path.parent)


@drawn
@given(data=mutated([{"_id": i, "title": "t", "text": t} for i, t in zip(IDS[:4], TEXTS, strict=False)]))
def test_drawn_corpora(place, data):
    folder = place()
    (folder / "corpus.jsonl").write_bytes(data)
    for cache in (None, folder / "cache"):
        TALLY.judge("drawn corpus", lambda: corpus_rows(folder, cache), plain_corpus(data), where=str(folder))  # noqa: B023
    (folder / "queries.jsonl").write_bytes(data)
    TALLY.judge("drawn queries", lambda: load_queries(folder), plain_queries(data), where=str(folder))
    shutil.rmtree(folder)


column = st.one_of(text, st.integers(-3, 10**12).map(str), st.floats().map(str))


@drawn
@given(rows=st.lists(st.lists(column, min_size=1, max_size=5), max_size=4), tab=st.sampled_from(["\t", "\t", " "]))
def test_drawn_judgements(place, rows, tab):
    folder = place()
    judge_qrels(folder, "drawn", "\n".join(tab.join(row) for row in rows).encode())
    shutil.rmtree(folder)


# ------------------------------------------------------------------------------------------------- other tools' files

PLAIN_ROWS = [
    ("q-1", "what is 漢字?", [(IDS[4], TEXTS[4], 0.25), (IDS[0], TEXTS[0], 3), (IDS[1], TEXTS[1], -1.5)]),
    ("q-2", "\tTab and 🙂", [(IDS[5], TEXTS[5], 0.5), (IDS[6], TEXTS[6], 0.5)]),
    ("q-3", "third", [(i, t, float(k)) for k, (i, t) in enumerate(zip(IDS[4:8], TEXTS[4:8], strict=True))]),
]
LAYOUTS = {
    "tevatron": [
        {
            "query_id": q,
            "query": text,
            "positive_passages": [{"docid": i, "title": "", "text": t, "score": s} for i, t, s in rows[:1]],
            "negative_passages": [{"docid": i, "title": "", "text": t, "score": s} for i, t, s in rows[1:]],
        }
        for q, text, rows in PLAIN_ROWS
    ],
    "cadet": [
        {"qid": q, "query": text, "passages": [{"docid": i, "text": t, "score": s} for i, t, s in rows]}
        for q, text, rows in PLAIN_ROWS
    ],
    "flag_embedding": [
        {
            "query_id": q,
            "query": text,
            "pos": [rows[0][1]],
            "neg": [t for _, t, _ in rows[1:]],
            "pos_scores": [rows[0][2]],
            "neg_scores": [s for *_, s in rows[1:]],
        }
        for q, text, rows in PLAIN_ROWS
    ],
    "sentence_transformers": [
        {"query_id": q, "query": text, "docs": [t for _, t, _ in rows], "labels": [float(s) for *_, s in rows]}
        for q, text, rows in PLAIN_ROWS
    ],
}


def plain_rows(layout: str, data: bytes) -> list[tuple] | None:
    """Query id, query, candidates and scores of each line, where all of them are as the layout has them."""
    found = plain_objects(data)
    if not found:
        return None
    texts = dict(zip(TEXTS, IDS, strict=True))
    rows = []
    for number, record in found:
        try:
            rows.append(_plain_row(layout, record, texts, f"lists-{number}"))
        except (KeyError, TypeError, AttributeError, AssertionError):
            return None
    return rows if len({row[0] for row in rows}) == len(rows) else None


def _plain_row(layout: str, record: dict, by_text: dict[str, str], default_id: str) -> tuple:
    if layout == "cadet":
        query_id = record["query_id"] if record.get("query_id") is not None else record.get("qid")
        ids = [entry["docid"] for entry in record["passages"]]
        assert all(by_text[entry["text"]] == entry["docid"] for entry in record["passages"] if entry.get("text"))
        scores = [entry["score"] for entry in record["passages"]]
    elif layout == "tevatron":
        query_id = record.get("query_id")
        entries = record["positive_passages"] + record["negative_passages"]
        ids = [entry["docid"] if entry.get("docid") is not None else by_text[entry["text"]] for entry in entries]
        given = [f"{entry.get('title') or ''} {entry['text']}".strip() for entry in entries if entry.get("text")]
        assert len(given) == len(ids) and all(by_text[text] == i for i, text in zip(ids, given, strict=True))
        scores = [entry["score"] for entry in entries]
    elif layout == "flag_embedding":
        query_id = record.get("query_id")
        ids = [by_text[text] for text in record["pos"] + record["neg"]]
        scores = record["pos_scores"] + record["neg_scores"]
    else:
        query_id = record.get("query_id")
        ids = [by_text[text] for text in record["docs"] if text is not None]
        scores = record["labels"]
    if query_id is None:
        query_id = default_id
    assert isinstance(record["query"], str) and record["query"].strip()
    assert isinstance(query_id, str) and query_id.strip()
    assert len(ids) == len(scores)
    assert all(type(score) in (int, float) and abs(score) <= LARGEST for score in scores)
    pairs = dict(zip(ids, scores, strict=True))  # an equal passage with an equal score is one
    assert len(pairs) >= 2 and all(pairs[i] == score for i, score in zip(ids, scores, strict=True))
    ids, scores = list(pairs), list(pairs.values())
    return query_id, record["query"], tuple(ids), tuple(map(in_32_bits, scores))


RUN_ROWS = [
    {"query_id": f"q{k}", "query": f"query 漢 {k}", "doc_id": i, "text": t, "score": n + 0.5, "rank": n}
    for k in (1, 2)
    for n, (i, t) in enumerate(zip(IDS[k : k + 4], TEXTS[k : k + 4], strict=True))
]


def plain_run(data: bytes) -> list[tuple] | None:
    """Query id, query, candidates and scores of each query of a run in JSON Lines."""
    found = plain_objects(data)
    if not found:
        return None
    texts, groups = dict(zip(IDS, TEXTS, strict=True)), []
    for _, record in found:
        try:
            query, score = record["query_id"], record["score"]
            text = texts[record["doc_id"]]  # a text that is not there is not compared
            assert isinstance(query, str) and query.strip() and record.get("text") in (None, text)
            assert type(score) in (int, float) and abs(score) <= LARGEST
        except (KeyError, TypeError, AssertionError):
            return None
        if not groups or groups[-1][0] != query:
            groups.append((query, record.get("query"), {}))
        if record.get("query") not in (None, groups[-1][1]):
            return None
        if groups[-1][2].setdefault(record["doc_id"], score) != score:
            return None
    if len({query for query, *_ in groups}) < len(groups) or any(len(pairs) < 2 for *_, pairs in groups):
        return None
    if not all(isinstance(text, str) and text.strip() for _, text, _ in groups):
        return None
    return [(q, text, tuple(pairs), tuple(map(in_32_bits, pairs.values()))) for q, text, pairs in groups]


@drawn
@given(data=mutated(RUN_ROWS))
def test_drawn_runs_in_json_lines(place, data):
    path = place() / "run.jsonl"
    path.write_bytes(data)
    TALLY.judge("drawn run", lambda: imported(path, "lightning_ir"), plain_run(data), where=str(path.parent))
    shutil.rmtree(path.parent)


def test_damaged_runs_in_json_lines(place):
    for name, data in damages(json_lines(RUN_ROWS)):
        path = place() / "run.jsonl"
        path.write_bytes(data)
        TALLY.judge(f"run.jsonl, {name}", lambda: imported(path, "pyserini"), plain_run(data), where=str(path.parent))  # noqa: B023


def imported(path: Path, layout: str, corpus: Corpus = CORPUS) -> list[tuple]:
    lists = import_lists(path, layout, CorpusPassages(corpus))
    return [(q.query_id, q.query, tuple(q.passage_ids), scores_of(q)) for q in lists]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_damaged_files_of_other_tools(place, layout):
    for name, data in damages(json_lines(LAYOUTS[layout])):
        path = place() / "lists.jsonl"
        path.write_bytes(data)
        TALLY.judge(f"{layout}, {name}", lambda: imported(path, layout), plain_rows(layout, data), where=str(path))  # noqa: B023


def test_damaged_tables_of_other_tools(place):
    table = pa.Table.from_pylist(LAYOUTS["sentence_transformers"])
    whole = place() / "whole.parquet"
    pq.write_table(table, whole, write_page_checksum=True)
    data = whole.read_bytes()
    right = imported(whole, "sentence_transformers")
    assert right == plain_rows("sentence_transformers", json_lines(LAYOUTS["sentence_transformers"]))
    for name, docs, admissible in (
        ("bytes", table["docs"].cast(pa.list_(pa.binary())), right),
        ("bytes that are no UTF-8", pa.array([[b"\xff"]] * len(table)), None),
    ):
        path = place() / "lists.parquet"
        with_digest = table.append_column("md5", pa.array([b"\xff\x00"] * len(table)))  # bytes that nobody asks for
        pq.write_table(with_digest.set_column(2, "docs", docs), path)
        read = partial(imported, path, "sentence_transformers")
        TALLY.judge(f"table of {name}", read, admissible, where=f"{path}:1", may_refuse=admissible is None)
    # the footer has no checksum, and a column of another name is one that this layout may lack
    pages = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    ways = dict(damages(data)) | {f"bit of {at}": flipped(data, at) for at in range(0, pages, 1 if DRAWN else 41)}
    for name, damaged in ways.items():
        path = place() / "lists.parquet"
        path.write_bytes(damaged)
        TALLY.judge(f"table, {name}", lambda: imported(path, "sentence_transformers"), right, where=str(path))  # noqa: B023


def run_files(folder: Path) -> Path:
    """A TREC run with its queries and judgements; ids without spaces, as there must not be any."""
    names = [i for i in IDS if i.split() == [i]]
    run = folder / "x.run"
    run.write_text("".join(f"q{k} Q0 {i} {n} {n}.5 t\n" for k in (1, 2) for n, i in enumerate(names[k : k + 4], 1)))
    (folder / "x.run.queries.jsonl").write_bytes(json_lines({"_id": f"q{k}", "text": f"query 漢 {k}"} for k in (1, 2)))
    (folder / "x.run.qrels.tsv").write_text(f"query-id\tcorpus-id\tscore\nq1\t{names[2]}\t1\nq2\t7\t0\n")
    return run


def run_rows(path: Path) -> list[tuple]:
    lists = import_lists(path, "trec", CorpusPassages(CORPUS))
    return [(q.query_id, q.query, tuple(q.passage_ids), scores_of(q), tuple(q.positive_ids)) for q in lists]


def test_damaged_runs_and_files_beside_them(place):
    right = run_rows(run_files(place()))
    assert len(right) == 2 and right[0][-1]
    for ending in ("", ".queries.jsonl", ".qrels.tsv"):
        for name, data in damages(Path(f"{run_files(place())}{ending}").read_bytes()):
            path = run_files(place())
            Path(f"{path}{ending}").write_bytes(data)
            empty = ending == ".qrels.tsv" and not data.strip()
            without_qrels = [[(*row[:-1], ()) for row in right]] if empty else []
            TALLY.judge(f"run{ending}, {name}", lambda: run_rows(path), right, *without_qrels, where=str(path.parent))  # noqa: B023
    for line in (
        "q1 Q0 7 1 nan t",
        "q1 Q0 7 1 inf t",
        "q1 Q0 7 1 1e39 t",
        "q1 Q0 7 1 x t",
        "q1 Q0 7 1 2",
        "q1",
        "q9 Q0 7 1 2 t",
        "q1 Q0 ghost 1 2 t",
    ):
        path = run_files(place())
        path.write_text(line + "\n" + path.read_text())
        TALLY.judge(f"run with {line}", lambda: imported(path, "trec"), where=f"{path}:")  # noqa: B023


@drawn
@given(data=st.sampled_from(sorted(LAYOUTS)).flatmap(lambda name: st.tuples(st.just(name), mutated(LAYOUTS[name]))))
def test_drawn_files_of_other_tools(place, data):
    layout, content = data
    path = place() / "lists.jsonl"
    path.write_bytes(content)
    TALLY.judge(f"drawn {layout}", lambda: imported(path, layout), plain_rows(layout, content), where=str(path))
    with_new_corpus(path, layout, content)
    shutil.rmtree(path.parent)


def with_new_corpus(path: Path, layout: str, content: bytes) -> None:
    """Without a corpus, one is written: every text of the lists stands in it, under the id that the lists name."""

    def read() -> list[tuple]:
        with new_corpus(path.parent / "new") as passages:
            lists = list(import_lists(path, layout, passages))
        corpus = load_corpus(path.parent / "new")
        own = dict(zip(corpus.ids.to_pylist(), corpus.passages.to_pylist(), strict=True))
        return [(q.query_id, q.query, tuple(own[i] for i in q.passage_ids), scores_of(q)) for q in lists]

    plain = plain_rows(layout, content)
    if plain is not None:
        text = dict(zip(IDS, TEXTS, strict=True))
        plain = [(q, query, tuple(text[i] for i in ids), scores) for q, query, ids, scores in plain]
        TALLY.judge(f"drawn {layout}, new corpus", read, plain, where=str(path))


# ------------------------------------------------------------------------------------------------- commands


def said(argv: list, capsys) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of ``experiments.prepare``."""
    try:
        prepare([str(a) for a in argv])
    except SystemExit as end:
        captured = capsys.readouterr()
        return end.code, captured.out, captured.err
    captured = capsys.readouterr()
    return 0, captured.out, captured.err


def judge_command(case: str, argv: list, capsys, shows: str | None, where: str = "") -> None:
    """A command that shows something, or ends with one sentence and status 2."""

    def read() -> bool:
        status, out, error = said(argv, capsys)
        if status:
            if status != 2 or not error.startswith("error: ") or not error.endswith("\n"):
                raise RuntimeError(f"status {status}, {error}")
            raise InputError(error.removeprefix("error: ").removesuffix("\n"))
        return shows is not None and shows in out

    TALLY.judge(case, read, *([True] if shows else []), where=where)


def test_commands_end_in_one_sentence(place, capsys, monkeypatch, small_scifact, small_lists):
    folder = place()
    monkeypatch.chdir(folder)
    lists, corpus = as_records(), folder / "c"
    corpus.mkdir()
    (corpus / "corpus.jsonl").write_bytes(json_lines({"_id": i, "text": t} for i, t in zip(IDS, TEXTS, strict=True)))
    for name, change, shows in (
        ("as they are", {}, "3 lists"),
        ("null scores", {"teacher_scores": [None, 1.0, 2.0]}, "3 lists"),
        ("NaN scores", {"teacher_scores": [float("nan"), 1.0, 2.0]}, "3 lists"),
        ("infinite scores", {"teacher_scores": [float("inf"), 1.0, 2.0]}, "3 lists"),
        ("huge scores", {"teacher_scores": [3e38, -3e38, 0.0]}, "3 lists"),
        ("no score", {"teacher_scores": []}, None),
        ("a score too few", {"teacher_scores": [1.0, 2.0]}, None),
        ("no candidate", {"passage_ids": [], "teacher_scores": []}, "3 lists"),
        ("a null among ids", {"passage_ids": ["7", None, "é"]}, None),
        ("a null among positives", {"positive_ids": [None]}, None),
        ("no corpus", {"corpus": None}, None),
        ("markup", {"query": "[red]x[/red] [/] [link=x]", "query_type": "[bold]"}, "3 lists"),
        ("control characters", {"query": "\x1b[31m\x07 \x00 x", "query_type": "a\nb"}, "3 lists"),
        ("a corpus with a long name", {"corpus": "c" * 5_000}, "3 lists"),
        ("a corpus up the tree", {"corpus": "../../../etc"}, "3 lists"),
        ("a corpus with a NUL", {"corpus": "a\0b"}, "3 lists"),
    ):
        records = [dict(lists[0], **change), *lists[1:]]
        path = folder / "lists.parquet"
        pq.write_table(pa.Table.from_pylist(records), path)
        judge_command(f"inspect, {name}", ["inspect", path, "--corpus", corpus], capsys, shows, where=str(path))
        if "corpus" in name or not change:
            judge_command(f"inspect without corpus, {name}", ["inspect", path], capsys, shows, where=str(path))
        right = name in ("as they are", "huge scores", "control characters", "markup")
        for layout in ("cadet", "flag_embedding", "tevatron", "sentence_transformers", "trec"):
            argv = ["export", path, "--layout", layout, "--corpus", corpus, "--output", folder / f"out.{layout}"]
            shows_out = "3 lists" if right and layout in ("cadet", "flag_embedding", "tevatron") else None
            if not right or shows_out:
                judge_command(f"export to {layout}, {name}", argv, capsys, shows_out)
    cadet = folder / "cadet.jsonl"
    cadet.write_bytes(json_lines(LAYOUTS["cadet"]))
    argv = ["import", cadet, "--layout", "cadet", "--corpus", corpus, "--output"]
    judge_command("import", [*argv, folder / "i.parquet"], capsys, "3 lists")
    (folder / "taken.parquet").mkdir()
    judge_command("import onto a folder", [*argv, folder / "taken.parquet"], capsys, None, where="taken.parquet")
    judge_command("import below a file", [*argv, cadet / "x.parquet"], capsys, None, where="cadet.jsonl")
    judge_command("import to no format", [*argv, folder / "x.csv"], capsys, None, where="x.csv")
    judge_command("picture below a file", ["inspect", small_lists, "--png", cadet / "x.png"], capsys, None)
    cut = ["cut", small_scifact, "--passages", "60", "--output"]
    judge_command("cut", [*cut, folder / "small"], capsys, "60 passages")
    kept = set(load_corpus(folder / "small").ids.to_pylist())
    judged = load_evaluation_set(str(folder / "small")).qrels
    TALLY.judge("cut: judged passages", lambda: {p for found in judged.values() for p in found} <= kept, True)
    judge_command("cut again", [*cut, folder / "small"], capsys, None, where="small")
    judge_command("cut below a file", [*cut, cadet / "x"], capsys, None, where="cadet.jsonl")
    judge_command(
        "cut of none", ["cut", corpus, "--passages", "3", "--output", folder / "n"], capsys, None, where="queries"
    )
    for number in ("0", "-5", "100000", "1"):
        argv = ["cut", small_scifact, "--passages", number, "--output", folder / "other"]
        judge_command(f"cut to {number}", argv, capsys, None, where=number)


# ------------------------------------------------------------------------------------------------- prompts


def prompt_of(folder: Path, name: str = "own") -> tuple:
    [found] = load_query_types([name], [folder])
    return found.instruction, found.labels, found.examples, found.shots


PROMPT = (
    "instruction: Write 漢字.\nlabels: [Query]\nexamples:\n  - {passage: tide, query: when is high tide}\nshots: 1\n"
)


def test_damaged_prompts(place):
    for file, content in (("own.yaml", PROMPT), ("passages.yaml", "tide: The tide rises.\n")):
        for name, data in damages(content.encode()):
            folder = place()
            (folder / "own.yaml").write_text(PROMPT)
            (folder / "passages.yaml").write_text("tide: The tide rises.\n")
            right = prompt_of(folder)
            (folder / file).write_bytes(data)
            # YAML has no end mark: what is cut may be a text still
            if name not in ("last byte missing", "cut in the middle", "first byte missing", "a byte that is no UTF-8"):
                TALLY.judge(f"{file}, {name}", lambda: prompt_of(folder), right, where=str(folder))  # noqa: B023
    for line in (
        "instruction: [a]", "instruction: 7", "instruction: no", "labels: [no]", "labels: x", "labels: {a: b}",
        "examples: 3", "examples: x", "examples: [{passage: 3, query: 4}]", "examples: [{passage: a b, query: }]",
        "shots: true", "shots: -1", "shots: 1.5", "max_words: true", "max_words: .nan", "1: 2", "? [a]: b",
        "instruction: ${oc.env:HOME", "instruction: *x", "x: &a [*a, *a]",
    ):  # fmt: skip
        folder = place()
        (folder / "passages.yaml").write_text("tide: The tide rises.\n")
        key = line.split(":")[0]
        kept = "".join(
            f"{row}\n" for row in PROMPT.splitlines() if not row.startswith((key, "  -" if key == "examples" else key))
        )
        (folder / "own.yaml").write_text(f"{kept}{line}\n")
        TALLY.judge(f"prompt with {line}", lambda: prompt_of(folder), where=str(folder))  # noqa: B023


# ------------------------------------------------------------------------------------------------- run folders


def run_folder(folder: Path) -> Path:
    write_run(folder / "a", "a", 1, {"d": values(1, 5)}, overlap={"d": {"q1": "near"}}, texts={"d": {"q1": WORDS}})
    config = {"data": {"train": [{"path": "l", "corpus": "d"}]}, "evaluation": {"datasets": [{"path": "x/d"}]}}
    OmegaConf.save({"seed": 1, **config}, folder / "a" / "config.yaml")
    return folder / "a"


WORDS = {"query": "what?", "relevant": ["this"]}
RUN_FILES = (
    "results.json",
    "config.yaml",
    "metrics.csv",
    "per_query/d/step-000000.json",
    "per_query/d/step-000008.json",
    "overlap/d.json",
    "queries/d.json",
)


def compared(folder: Path) -> list[tuple]:
    """What a comparison shows: its table, its page's parts, and the learning curve."""
    comparison = compare([folder])
    arms = [(arm.name, arm.seeds, round(arm.ndcg, 9)) for arm in comparison["d"]]
    changes = [
        (change.query_id, change.query) for part in most_changed(comparison) for change in part.hurt + part.helped
    ]
    [[run]] = comparison.groups.values()
    return [arms, sorted(changes), run.curve("d"), run.is_home("d"), run.overlap("d")]


def test_damaged_run_folders(place):
    right = compared(run_folder(place()))
    for file in RUN_FILES:
        data = (run_folder(place()) / file).read_bytes()
        for name, damaged in damages(data):
            folder = run_folder(place())
            (folder / file).write_bytes(damaged)
            # tables and YAML have no end mark, and a file beside the results may say nothing
            cut = name in ("cut in the middle", "last byte missing", "first byte missing", "NUL bytes at the end")
            if not (cut and file.endswith(("csv", "yaml"))):
                less = [right_without(right, file)] if file.endswith(("csv", "yaml")) else []
                if file == "metrics.csv" and name == "no newline at the end":  # the last number may be half of one
                    less.append([*right[:2], dict(list(right[2].items())[:-1]), *right[3:]])
                TALLY.judge(f"{file}, {name}", lambda: compared(folder), right, *less, where=str(folder.parent))  # noqa: B023
        folder = run_folder(place())
        (folder / file).unlink()
        (folder / file).mkdir()
        less = right_without(right, file)
        TALLY.judge(f"{file} is a folder", lambda: compared(folder), less, where=str(folder.parent))  # noqa: B023


def right_without(right: list, file: str) -> list:
    """The comparison of a run that lacks a file which it may lack."""
    arms, changes, curve, home, overlap = right
    return {
        "metrics.csv": [arms, changes, {}, home, overlap],
        "config.yaml": [arms, changes, curve, False, overlap],
        "overlap/d.json": [arms, changes, curve, home, None],
        "queries/d.json": [arms, [(query, "") for query, _ in changes], curve, home, overlap],
    }.get(file, [])


@drawn
@given(data=st.data())
def test_drawn_values_in_run_folders(place, data):
    """Whatever stands at one place of a JSON file of a run: a sentence, or the figures of the other files."""
    folder = run_folder(place())
    right = compared(folder)
    file = data.draw(st.sampled_from([name for name in RUN_FILES if name.endswith("json")]))
    content = json.loads((folder / file).read_text())
    keys = []
    inside = content
    while isinstance(inside, dict) and inside and (not keys or data.draw(st.booleans())):
        keys.append(data.draw(st.sampled_from(sorted(inside))))
        outer, inside = inside, inside[keys[-1]]
    other = data.draw(value)
    outer[keys[-1]] = other
    (folder / file).write_text(json.dumps(content))
    admissible = [right]
    if type(other) in (int, float) or isinstance(other, str | dict | list):  # another value of the same kind is a value
        admissible.append(AnyComparison())
    TALLY.judge(f"{file}: {keys} is {str(other)[:40]}", lambda: compared(folder), *admissible, where=str(folder.parent))
    shutil.rmtree(folder.parent)


class AnyComparison:
    """Equal to any comparison of finite figures."""

    def __eq__(self, other: object) -> bool:
        return all(np.isfinite(arm[2]) for arm in other[0])

    __hash__ = None


# ------------------------------------------------------------------------------------------------- model folders


def embedded(folder: Path) -> list:
    encoder = TextEncoder.from_pretrained(
        str(folder), pooling="mean", query_max_length=16, passage_max_length=16
    ).eval()
    tokens = encoder.tokenize(["what is it"], "query")
    ids = torch.from_numpy(np.asarray(tokens.ids, np.int64))[None]
    with torch.inference_mode():
        return encoder(ids, torch.ones_like(ids)).tolist()


def test_damaged_model_folders(place, tiny_model):
    right = embedded(tiny_model)
    weights = load_file(tiny_model / "model.safetensors")

    def judge(name: str, change: Callable[[Path], object], *admissible) -> None:
        folder = place() / "model"
        shutil.copytree(tiny_model, folder)
        change(folder)
        TALLY.judge(f"model, {name}", lambda: embedded(folder), *admissible, where=str(folder))
        shutil.rmtree(folder)

    for file in ("config.json", "tokenizer.json", "model.safetensors", "tokenizer_config.json"):
        data = (tiny_model / file).read_bytes()
        for name, damaged in damages(data):
            if DRAWN or name in (
                "empty",
                "cut in the middle",
                "junk",
                "NUL page",
                "utf-16",
                "a web page",
                "null",
                "a list",
                "deep nesting",
            ):
                # weights have no checksum: zeros in the middle of them are weights
                kept = name == "NUL page" and file == "model.safetensors"
                if not kept:
                    judge(f"{file}, {name}", lambda folder: (folder / file).write_bytes(damaged), right)  # noqa: B023
        judge(f"no {file}", lambda folder: (folder / file).unlink(), right)  # noqa: B023
    for key, other in {
        "hidden_size": 64, "intermediate_size": 16, "vocab_size": 10, "num_hidden_layers": 3, "num_attention_heads": 3,
        "model_type": "gpt9", "hidden_act": "none such", "max_position_embeddings": "many", "layer_norm_eps": "x",
    }.items():  # fmt: skip
        judge(f"{key} is {other}", lambda folder: rewrite(folder / "config.json", key, other))  # noqa: B023
    judge("weights of another model", lambda f: save_file({"other": torch.ones(2)}, f / "model.safetensors"))
    fewer = {name: tensor for name, tensor in weights.items() if "layer.1" not in name}
    judge("weights of fewer layers", lambda f: save_file(fewer, f / "model.safetensors"))
    judge("a folder for the weights", lambda f: (f / "model.safetensors").unlink() or (f / "model.safetensors").mkdir())
    for content in (
        "{",
        "[]",
        '{"truncate_dim": "x"}',
        '{"query_prompt": 3}',
        '{"colour": "red"}',
        '{"normalize": 1}',
        "null",
    ):
        judge(f"spec {content}", lambda f: (f / "encoder_spec.json").write_text(content))  # noqa: B023
    for content in ("{", "{}", "[3]", '[{"type": 1, "path": ""}]', '[{"type": "a.Pooling", "path": "none"}]'):
        judge(f"modules {content}", lambda f: (f / "modules.json").write_text(content))  # noqa: B023


def rewrite(path: Path, key: str, value: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))


# ------------------------------------------------------------------------------------------------- large


def test_large_lines_and_lists(place):
    """Lines of megabytes and long lists; sizes of the order are 50 MB and 10,000 candidates of many lists."""
    folder = place()
    size = 50_000_000 if DRAWN else 5_000_000
    long = {"_id": "long", "title": "", "text": "漢 a " * (size // 6)}
    (folder / "corpus.jsonl").write_bytes(json_lines([long, {"_id": "b", "text": "short"}]))
    for cache in (None, folder / "cache"):
        rows = [("long", "", long["text"]), ("b", "", "short")]
        TALLY.judge("long passage", lambda: corpus_rows(folder, cache), rows, may_refuse=False)  # noqa: B023
    for name, data in {
        "long line that is no JSON": b"x" * size,
        "long line without an end": json_lines([long])[:-10],
        "long id": json_lines([{"_id": "i" * size, "text": ""}]),
        "long id twice": json_lines([{"_id": "i" * size, "text": "t"}] * 2),
    }.items():
        (folder / "corpus.jsonl").write_bytes(data)
        TALLY.judge(name, lambda: corpus_rows(folder, None), where="corpus.jsonl")
    ids = [f"passage-{number}" for number in range(10_000)]
    corpus = Corpus("large", pa.array(ids), pa.array([""] * len(ids)), pa.array(ids))
    scores = np.random.default_rng(0).normal(size=len(ids)).astype(np.float32).astype(float).tolist()
    lists = [QueryList(str(k), "q", "human", "large", [], ids, scores[k:] + scores[:k]) for k in range(2)]
    right = [
        best_first((k + 1, str(k), "q", "human", "large", (), tuple(ids), tuple(lists[k].teacher_scores)))
        for k in range(2)
    ]
    for ending in ("jsonl", "parquet"):
        path = folder / f"lists.{ending}"
        write_query_lists(path, lists, {})
        TALLY.judge(f"10,000 candidates, {ending}", lambda: opened(path, corpus=corpus), right, may_refuse=False)  # noqa: B023


def test_damaged_metadata(place):
    for content in ("", "{", "[]", "null", '{"a": 1, "a": 2}', '{"a": "\\ud800"}', "[" * 100_000, "\xe9"):
        path = place() / "lists.jsonl"
        write_query_lists(path, LISTS, {"teacher": "made up"})
        Path(f"{path}.meta.json").write_bytes(content.encode("latin-1"))
        TALLY.judge(f"metadata {content[:20]}", lambda: read_metadata(path), where=str(path))  # noqa: B023
        table = pq.read_table(write_parquet(path.parent)).replace_schema_metadata(
            {"query_lists": content.encode("latin-1")}
        )
        pq.write_table(table, path.parent / "x.parquet")
        if '"a"' not in content:  # what the sidecar must not have, Parquet's own metadata may
            TALLY.judge(f"metadata {content[:20]}", lambda: read_metadata(path.parent / "x.parquet"), where="x.parquet")  # noqa: B023


def write_parquet(folder: Path) -> Path:
    write_query_lists(folder / "whole.parquet", LISTS, {})
    return folder / "whole.parquet"


def test_columns_of_other_types(place):
    """Whatever types the columns of a Parquet file have: the same lists, or one sentence."""
    plain = [row[1:] for row in plain_lists(json_lines(as_records()))]
    table = pa.Table.from_pylist(as_records())
    lengths = [len(each.teacher_scores) for each in LISTS]
    whole = pa.array([list(range(n)) for n in lengths], pa.list_(pa.int64()))
    equal = {
        "large strings": {"query": table["query"].cast(pa.large_string())},
        "large lists": {"passage_ids": table["passage_ids"].cast(pa.large_list(pa.large_string()))},
        "a dictionary": {"query_type": table["query_type"].dictionary_encode()},
        "bytes": {name: table[name].cast(pa.binary()) for name in ("query_id", "query", "query_type", "corpus")},
        "lists of bytes": {"passage_ids": table["passage_ids"].cast(pa.list_(pa.large_binary()))},
        "a dictionary of bytes": {"query_type": table["query_type"].cast(pa.binary()).dictionary_encode()},
        "single scores": {"teacher_scores": table["teacher_scores"].cast(pa.list_(pa.float32()))},
    }
    other = {
        "scores as texts": {"teacher_scores": whole.cast(pa.list_(pa.string()))},
        "binary ids": {"query_id": pa.array([b"a", b"b", b"\xff"])},
        "bytes in lists": {"passage_ids": pa.array([[b"7", b"\xff"]] * 3)},
        "ids as floats": {"query_id": pa.array([1.0, 2.0, 3.0])},
        "a struct": {"query": pa.array([{"text": "a"}] * 3)},
        "timestamps": {"query_id": pa.array([1, 2, 3], pa.timestamp("ms"))},
        "booleans": {"query": pa.array([True, False, True])},
        "ids not in a list": {"passage_ids": pa.array(["7", "7", "7"])},
        "lists of lists": {"teacher_scores": pa.array([[[1.0]]] * 3)},
        "nulls alone": {"query": pa.nulls(3)},
        "null lists": {"positive_ids": pa.nulls(3)},
        "a column missing": {"query": None},
    }
    for name, columns in (equal | other).items():
        path = place() / "lists.parquet"
        changed = table
        for column, values_ in columns.items():
            at = changed.schema.get_field_index(column)
            changed = changed.remove_column(at) if values_ is None else changed.set_column(at, column, values_)
        pq.write_table(changed, path)
        right = [plain] if name in equal else []
        TALLY.judge(
            f"columns, {name}",
            lambda: rows_of(read_query_lists(path)),  # noqa: B023
            *right,
            where=str(path),
            may_refuse=not right,
        )
    for name, changed in {
        "whole scores": table.set_column(6, "teacher_scores", whole),
        "whole ids": table.set_column(0, "query_id", pa.array([1, 2, 3])),
    }.items():
        path = place() / "lists.parquet"
        pq.write_table(changed, path)
        expected = [[str(value) if name == "whole ids" else float(value) for value in column] for column in (
            [[1], [2], [3]] if name == "whole ids" else whole.to_pylist()
        )]  # fmt: skip
        read = {"whole ids": lambda q: [q.query_id], "whole scores": lambda q: q.teacher_scores}[name]
        TALLY.judge(f"columns, {name}", lambda: [read(q) for q in read_query_lists(path)], expected, may_refuse=False)  # noqa: B023
    for name, changed in {
        "a column twice": table.append_column("query", pa.array(["x"] * 3)),
        "no row": table.slice(0, 0),
        "no column": pa.table({}),
    }.items():
        path = place() / "lists.parquet"
        pq.write_table(changed, path)
        TALLY.judge(f"columns, {name}", lambda: opened(path), where=str(path))  # noqa: B023


def test_the_figure(capsys):
    with capsys.disabled():
        print(f"\n{TALLY}")
    TALLY.refuse_findings()
