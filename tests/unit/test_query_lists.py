"""Query list files: round trips, memory mapping, and what is said of a bad one."""

import itertools
import json
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamodules.corpus import Corpus
from datamodules.query_lists import (
    SCHEMA,
    QueryList,
    open_query_lists,
    ragged_take,
    read_metadata,
    read_query_lists,
    write_query_lists,
)
from retriever.errors import InputError

CORPUS = Corpus("small", pa.array(list("abcde")), pa.array([""] * 5), pa.array(["text " + c for c in "abcde"]))
GOOD = QueryList("q1", "what is a", "human", "small", ["a"], ["c", "a", "b"], [0.25, 3.0, -1.5])
OTHER = QueryList("q2", "é 漢字 🙂", "title", "small", [], ["d", "e"], [0.5, 0.75])


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_round_trip_keeps_lists_and_metadata(tmp_path, ending):
    path = tmp_path / f"lists.{ending}"
    assert write_query_lists(path, [GOOD, OTHER], {"teacher": "fusion", "dtype": "float32"}) == 2
    assert list(read_query_lists(path)) == [GOOD, OTHER]
    assert read_metadata(path) == {"teacher": "fusion", "dtype": "float32"}
    assert {p.name for p in tmp_path.iterdir()} <= {path.name, f"{path.name}.meta.json"}


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_opened_lists_are_resolved_and_best_first(tmp_path, ending):
    path = tmp_path / f"lists.{ending}"
    write_query_lists(path, [GOOD, OTHER], {})
    lists, dropped = open_query_lists(path, CORPUS, tmp_path / "cache")
    assert dropped == {}
    assert lists.offsets.tolist() == [0, 3, 5]
    assert lists.rows.tolist() == [0, 2, 1, 4, 3]
    assert lists.scores.tolist() == [3.0, 0.25, -1.5, 0.75, 0.5]
    assert lists.positive_rows.tolist() == [0] and lists.positive_offsets.tolist() == [0, 1, 1]
    assert lists.line.tolist() == [1, 2]
    second = lists.select(np.array([False, True]))
    assert second.query_ids.to_pylist() == ["q2"] and second.rows.tolist() == [4, 3]


BAD = {
    "one candidate": (replace(OTHER, passage_ids=["d"], teacher_scores=[1.0]), "1 candidate"),
    "unknown passage": (replace(OTHER, passage_ids=["d", "zz"]), "'zz' is not in the corpus"),
    "unknown positive": (replace(OTHER, positive_ids=["yy"]), "'yy' is not in the corpus"),
    "nan": (replace(OTHER, teacher_scores=[float("nan"), 1.0]), "nan"),
    "infinite": (replace(OTHER, teacher_scores=[1.0, float("inf")]), "inf"),
    "constant": (replace(OTHER, teacher_scores=[0.5, 0.5]), "all teacher scores are 0.5"),
    "passage twice": (replace(OTHER, passage_ids=["d", "d"]), "twice"),
}


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
@pytest.mark.parametrize("name", BAD)
def test_bad_list_is_named_with_file_and_line_or_dropped(tmp_path, name, ending):
    bad, message = BAD[name]
    path = tmp_path / f"lists.{ending}"
    write_query_lists(path, [GOOD, bad], {})
    with pytest.raises(InputError, match=message) as caught:
        open_query_lists(path, CORPUS, tmp_path / "cache")
    assert f"{path}:2: list of query 'q2'" in str(caught.value) and "on_bad_list=drop" in str(caught.value)
    lists, dropped = open_query_lists(path, CORPUS, tmp_path / "cache", "drop")
    assert lists.query_ids.to_pylist() == ["q1"] and sum(dropped.values()) == 1


def test_repeated_query_id_is_named_with_both_lines(tmp_path):
    write_query_lists(tmp_path / "l.jsonl", [GOOD, OTHER, GOOD], {})
    with pytest.raises(InputError, match=r"l\.jsonl:3: the query_id 'q1' is already in line 1"):
        open_query_lists(tmp_path / "l.jsonl", CORPUS, tmp_path / "cache")


def test_lists_of_another_corpus_are_refused(tmp_path):
    write_query_lists(tmp_path / "l.parquet", [replace(GOOD, corpus="nq")], {})
    with pytest.raises(InputError, match="corpus 'nq'"):
        open_query_lists(tmp_path / "l.parquet", CORPUS, tmp_path / "cache")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"query_id": "q2"', "l.jsonl:2: not JSON"),
        ("[1, 2]", "l.jsonl:2: a JSON list"),
        (json.dumps({k: v for k, v in asdict(OTHER).items() if k != "query"}), "l.jsonl:2: no 'query'"),
        (json.dumps(asdict(OTHER) | {"query": "  "}), "l.jsonl:2: 'query' is '  '"),
        (json.dumps(asdict(OTHER) | {"teacher_scores": ["high", 1]}), "l.jsonl:2: 'teacher_scores'"),
        (json.dumps(asdict(OTHER) | {"passage_ids": [1, 2]}), "l.jsonl:2: 'passage_ids'"),
        (json.dumps(asdict(OTHER) | {"teacher_scores": [1.0]}), "2 passage_ids but 1 teacher_scores"),
    ],
)
def test_bad_json_line_is_named(tmp_path, line, message):
    path = tmp_path / "l.jsonl"
    path.write_text(json.dumps(asdict(GOOD)) + "\n" + line + "\n")
    with pytest.raises(InputError) as caught:
        open_query_lists(path, CORPUS, tmp_path / "cache")
    assert message in str(caught.value)


def test_missing_torn_empty_and_foreign_files_are_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        open_query_lists(tmp_path / "none.parquet", CORPUS, tmp_path / "cache")
    whole = tmp_path / "whole.parquet"
    write_query_lists(whole, [GOOD], {})
    torn = tmp_path / "torn.parquet"
    torn.write_bytes(whole.read_bytes()[:-20])
    with pytest.raises(InputError, match="not a whole Parquet file"):
        open_query_lists(torn, CORPUS, tmp_path / "cache")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match="no list in it"):
        open_query_lists(tmp_path / "empty.jsonl", CORPUS, tmp_path / "cache")
    (tmp_path / "latin.jsonl").write_bytes(b'{"query_id": "\xe9"}\n')
    with pytest.raises(InputError, match="not UTF-8"):
        open_query_lists(tmp_path / "latin.jsonl", CORPUS, tmp_path / "cache")
    with pytest.raises(InputError, match="'csv'"):
        (tmp_path / "l.csv").write_text("a,b\n")
        open_query_lists(tmp_path / "l.csv", CORPUS, tmp_path / "cache")
    pq.write_table(pa.table({"query_id": ["q"]}), tmp_path / "columns.parquet")
    with pytest.raises(InputError, match="no column 'query'"):
        open_query_lists(tmp_path / "columns.parquet", CORPUS, tmp_path / "cache")
    nulls = pa.Table.from_pylist([asdict(GOOD), asdict(OTHER) | {"query": None}], schema=SCHEMA)
    pq.write_table(nulls, tmp_path / "nulls.parquet")
    with pytest.raises(InputError, match=r"nulls\.parquet:2: 'query' is null"):
        open_query_lists(tmp_path / "nulls.parquet", CORPUS, tmp_path / "cache")


def test_failed_write_leaves_the_file_that_was_there(tmp_path):
    path = tmp_path / "l.parquet"
    write_query_lists(path, [GOOD], {})

    def broken():
        yield OTHER
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write_query_lists(path, broken(), {})
    assert list(read_query_lists(path)) == [GOOD]
    assert [p.name for p in tmp_path.iterdir()] == ["l.parquet"]


def test_lists_are_resolved_once_per_file_and_corpus(tmp_path):
    path, cache = tmp_path / "l.parquet", tmp_path / "cache"
    write_query_lists(path, [GOOD, OTHER], {"teacher": "fusion"})

    def stamps():
        return {p: p.stat().st_mtime_ns for p in (cache / "query_lists").glob("*/*")}

    first, _ = open_query_lists(path, CORPUS, cache)
    made = stamps()
    again, _ = open_query_lists(path, CORPUS, cache)
    assert stamps() == made != {}
    for lists in (first, again):
        assert isinstance(lists.rows, np.memmap) and (lists.rows.dtype, lists.scores.dtype) == (np.int32, np.float32)
    assert again.queries.to_pylist() == [GOOD.query, OTHER.query] and again.metadata == {"teacher": "fusion"}
    other = Corpus("small", pa.array(list("edcba")), CORPUS.titles, CORPUS.texts)
    assert open_query_lists(path, other, cache)[0].rows.tolist() == [4, 2, 3, 0, 1]
    open_query_lists(path, CORPUS, cache, "drop")
    assert len(stamps()) == 3 * len(made)


def test_blocks_are_checked_as_the_whole_file(tmp_path, monkeypatch):
    bad = [replace(BAD[name][0], query_id=f"bad {name} {i}") for i in (0, 1) for name in BAD]
    both = replace(OTHER, query_id="both", passage_ids=["d", "zz"], teacher_scores=[0.5, float("nan")])
    good = [replace(GOOD, query_id=f"good {i}") for i in range(3)]
    path = tmp_path / "l.parquet"
    write_query_lists(path, [good[0], *bad[:3], good[1], *bad[3:], both, good[2]], {})
    opened = []
    for block in (100, 3):
        monkeypatch.setattr("datamodules.query_lists.files._BLOCK", block)
        with pytest.raises(InputError) as caught:
            open_query_lists(path, CORPUS, tmp_path / f"cache {block}")
        opened.append((str(caught.value), *open_query_lists(path, CORPUS, tmp_path / f"cache {block}", "drop")))
    (message, whole, dropped), (other_message, parts, other_dropped) = opened
    assert message == other_message and f"{path}:2: list of query 'bad one candidate 0'" in message
    assert "(2 list(s) like this.)" in message
    assert dropped == other_dropped and sum(dropped.values()) == len(bad) + 1 and dropped["unknown passage"] == 3
    assert parts.query_ids.to_pylist() == [g.query_id for g in good] and parts.line.tolist() == [1, 5, 18]
    for name in ("line", "rows", "scores", "offsets", "positive_rows", "positive_offsets"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))
    write_query_lists(path, [*good, good[0]], {})
    with pytest.raises(InputError, match=r":4: the query_id 'good 0' is already in line 1"):
        open_query_lists(path, CORPUS, tmp_path / "cache")


def test_lists_taken_in_blocks_are_the_lists(monkeypatch):
    monkeypatch.setattr("datamodules.query_lists.query_list._TAKEN", 3)
    random = np.random.default_rng(0)
    rows = [random.integers(0, 99, k) for k in random.integers(0, 5, 20)]
    offsets = np.concatenate([[0], np.cumsum([len(r) for r in rows])])
    keep = random.integers(0, 20, 11)
    values, new = ragged_take(np.concatenate(rows), offsets, keep)
    for at, (begin, end) in zip(keep, itertools.pairwise(new), strict=True):
        assert values[begin:end].tolist() == rows[at].tolist()
