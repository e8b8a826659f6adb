"""Inspecting, importing and exporting list files from the command line."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.image import imread

from datamodules.corpus import SHIPPED, load_corpus
from datamodules.list_summary import summarise
from datamodules.query_lists import QueryList, read_metadata, read_query_lists, write_query_lists
from experiments.lists.command import main
from experiments.lists.inspect import teacher_ndcg
from retriever.errors import InputError

LISTS = [
    QueryList("1", "one two", "human", "c", ["a"], ["b", "a"], [0.5, 2.0]),
    QueryList("2", "one two", "title", "c", ["z"], ["b", "a", "c"], [3.0, -1.0, 0.0]),
    QueryList("3", "three", "human", "c", ["a", "c"], ["b", "a", "d"], [4.0, 1.0, 1.0]),
    QueryList("4", "four and more words", "human", "c", [], ["b", "a"], [1.0, 0.0]),
]


def refuse(argv, capsys):
    """Run a command that has to fail; return what it says."""
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in argv])
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_summary_counts_by_type():
    summary = summarise(LISTS)
    human, title = summary.types
    assert (human.query_type, title.query_type) == ("human", "title")
    assert human.lengths.tolist() == [2, 3, 2] and title.lengths.tolist() == [3]
    assert human.words.tolist() == [2, 1, 4]
    assert human.scores.tolist() == [0.5, 2.0, 4.0, 1.0, 1.0, 1.0, 0.0] and human.best.tolist() == [2.0, 4.0, 1.0]
    assert (human.labelled, human.positive_first, human.positive_listed, human.repeated) == (2, 1, 2, 0)
    assert (title.labelled, title.positive_first, title.positive_listed, title.repeated) == (1, 0, 0, 1)
    total = summary.total
    assert (total.labelled, total.positive_listed, total.repeated, len(total.scores)) == (3, 2, 1, 10)
    assert summary.examples == LISTS and summary.corpora == {"c": 4}


def test_examples_are_few_always_the_same_and_from_the_whole_file():
    many = [replace(LISTS[0], query_id=str(n)) for n in range(1000)]
    drawn = [int(q.query_id) for q in summarise(many).examples]
    assert drawn == [int(q.query_id) for q in summarise(many).examples] == sorted(set(drawn))
    assert len(drawn) == 5 and max(drawn) > 100


def test_bad_scores_and_empty_files_do_not_break_the_summary():
    broken = [
        replace(LISTS[0], teacher_scores=[float("nan"), 1.0]),
        replace(LISTS[1], passage_ids=[], teacher_scores=[]),
    ]
    total = summarise(broken).total
    assert total.scores.tolist() == [1.0] and total.best.tolist() == [1.0] and total.lengths.tolist() == [2, 0]
    with pytest.raises(InputError, match="no list"):
        summarise([])


def test_teacher_ndcg_takes_its_ideal_from_all_judgements(tmp_path):
    folder = tmp_path / "c"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"_id": p, "text": f"text {p}"}) + "\n" for p in "abcdz"))
    queries = {"1": "one two", "2": "another text", "3": "three", "5": "not in the file"}
    (folder / "queries.jsonl").write_text("".join(json.dumps({"_id": q, "text": t}) + "\n" for q, t in queries.items()))
    judged = "1\ta\t1\n1\tz\t2\n2\tb\t1\n3\td\t1\n5\ta\t1\n"
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    path = tmp_path / "l.parquet"
    write_query_lists(path, LISTS, {})
    # query 1: a (grade 1) first, z (grade 2) not retrieved; query 3: d and a tie after b, the higher id goes first;
    # query 2 has another text in the data set, so it is another query
    first = 1 / (2 + 1 / math.log2(3))
    third = 1 / math.log2(3)
    split, value, number = teacher_ndcg(path, folder, load_corpus(folder), None)
    assert (split, number) == ("train", 2) and value == pytest.approx((first + third) / 2, abs=1e-5)
    with pytest.raises(InputError, match=r"test\.tsv: no such file"):
        teacher_ndcg(path, folder, load_corpus(folder), "test")


@pytest.mark.slow
def test_inspect_shows_a_shipped_file(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["inspect", "scifact/lists/human.train.parquet"])
    shown = capsys.readouterr().out
    assert "626 lists" in shown and "50 / 50 / 50" in shown
    lists = list(read_query_lists(SHIPPED / "scifact/lists/human.train.parquet"))  # shipped lists are best first
    for share in (
        sum(q.passage_ids[0] in q.positive_ids for q in lists),
        sum(not set(q.positive_ids).isdisjoint(q.passage_ids) for q in lists),
    ):
        assert f"{share / len(lists):.1%}" in shown
    assert "all 626 lists pass" in shown and "0.7315 over the 626 lists judged in qrels/train.tsv" in shown
    assert "fusion of BM25" in shown  # the metadata
    texts = [line.split("│")[3].strip() for line in shown.splitlines() if line.count("│") == 4]
    assert sum(text.endswith("…") and len(text) > 40 for text in texts) == 15  # three passages of five lists
    picture = imread(tmp_path / "human.train.parquet.inspect.png")
    assert picture.shape[0] > 600 and np.unique(picture.reshape(-1, picture.shape[2]), axis=0).shape[0] > 50
    assert [p.name for p in tmp_path.iterdir()] == ["human.train.parquet.inspect.png"]


@pytest.mark.slow
def test_inspect_works_without_a_corpus_and_says_what_is_wrong(tmp_path, capsys, small_scifact, small_lists):
    path = tmp_path / "l.jsonl"
    write_query_lists(path, LISTS, {})
    main(["inspect", str(path), "--png", str(tmp_path / "p.png")])
    shown = capsys.readouterr().out
    assert "no corpus 'c' found here" in shown and "*a" in shown and (tmp_path / "p.png").is_file()
    main(["inspect", str(path), "--corpus", str(small_scifact)])  # of other passages
    shown = capsys.readouterr().out
    assert "training refuses this file" in shown and "(not in the corpus)" in shown
    main(["inspect", str(small_lists), "--corpus", str(small_scifact), "--qrels", "train"])
    assert "over the 40 lists judged in qrels/train.tsv" in capsys.readouterr().out
    for argv, message in {
        ("inspect", tmp_path / "none.parquet"): "no such file",
        ("inspect", path, "--corpus", "sciffact"): "There is no data set 'sciffact'",
        ("inspect", small_lists, "--corpus", small_scifact, "--qrels", "dev"): "The splits of",
        ("inspect", small_lists, "--corpus", small_scifact, "--qrels", "test"): "judges no query",
    }.items():
        assert refuse(argv, capsys).startswith("error: ") and message in refuse(argv, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["cadet", "flag_embedding", "trec"])
def test_exported_file_comes_back(tmp_path, capsys, layout):
    out, back = tmp_path / "out.jsonl", tmp_path / "back.parquet"
    main(["export", "scifact/lists/human.dev.parquet", "--layout", layout, "--output", str(out)])
    argv = ["import", str(out), "--layout", layout, "--corpus", "scifact", "--output", str(back), "--teacher", "fusion"]
    main(argv)
    assert capsys.readouterr().out == f"{out}: 183 lists\n{back}: 183 lists\n"
    assert list(read_query_lists(back)) == list(read_query_lists(SHIPPED / "scifact/lists/human.dev.parquet"))
    expected = {"teacher": "fusion", "imported_from": "out.jsonl", "layout": layout, "corpus": "scifact"}
    assert read_metadata(back) == expected


@pytest.mark.slow
def test_import_without_a_corpus_writes_one_beside_the_lists(tmp_path, capsys):
    table = tmp_path / "table.parquet"
    argv = ["--layout", "sentence_transformers", "--list-length", "8", "--output", str(table)]
    main(["export", "scifact/lists/human.dev.parquet", *argv])
    main(["import", str(table), "--layout", "sentence_transformers", "--output", str(tmp_path / "l.parquet")])
    lists = list(read_query_lists(tmp_path / "l.parquet"))
    assert {q.corpus for q in lists} == {"l_corpus"} and {len(q.passage_ids) for q in lists} == {8}
    main(["inspect", str(tmp_path / "l.parquet"), "--corpus", str(tmp_path / "l_corpus")])
    assert "all 183 lists pass those of training" in capsys.readouterr().out


def test_import_says_what_is_wrong_and_writes_nothing(tmp_path, capsys):
    bad = tmp_path / "x.jsonl"
    bad.write_text('{"query": "q", "passages": [{"docid": "1", "text": "t", "score": 1}]}\n')
    output = ["--output", tmp_path / "out" / "l.parquet"]
    said = refuse(["import", bad, "--layout", "cadet", *output], capsys)
    assert said.startswith(f"error: {bad}:1: 1 passage(s); a list needs at least 2.")
    said = refuse(["import", bad, "--layout", "cadet", "--queries", "q.jsonl", *output], capsys)
    start, valid = "An option of the layout 'cadet' is 'queries'", "'score_key', 'source_ids'"
    assert said == f"error: {start}; valid values are {valid}.\n"
    said = refuse(["import", bad, "--layout", "cadet", "--corpus", "scifact", "--corpus-output", "x", *output], capsys)
    assert "Name one of the two" in said
    said = refuse(["export", "scifact/lists/human.dev.parquet", "--layout", "cade", *output], capsys)
    assert "Did you mean 'cadet'?" in said
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p != bad]
