"""Corpora, queries and qrels: what is read and what is refused; and the data that ships."""

import hashlib
import json

import pytest

from datamodules.corpus import SHIPPED, find_dataset, find_file, load_corpus, load_evaluation_set, load_queries
from datamodules.files import open_text
from retriever.errors import InputError


def folder_with(tmp_path, corpus=None, queries=None, qrels=None):
    corpus = (
        corpus if corpus is not None else [{"_id": "d1", "title": "T", "text": "one"}, {"_id": "d2", "text": "two"}]
    )
    queries = queries if queries is not None else [{"_id": "q1", "text": "?", "metadata": {"d1": "gold"}}]
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(r) + "\n" for r in corpus))
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(r) + "\n" for r in queries))
    (tmp_path / "qrels" / "test.tsv").write_text(qrels or "query-id\tcorpus-id\tscore\nq1\td1\t1\n")
    return tmp_path


def test_passage_is_title_space_text(tmp_path):
    data = load_evaluation_set(str(folder_with(tmp_path)))
    assert data.corpus.passages.to_pylist() == ["T one", "two"]
    assert data.queries == {"q1": "?"} and data.qrels == {"q1": {"d1": 1}}
    assert data.corpus.rows(["d2", "zz", "d1"]).tolist() == [1, -1, 0]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"corpus": [{"_id": "d1", "text": "x"}, {"_id": "d1", "text": "y"}]}, "corpus.jsonl:2: the _id 'd1'"),
        ({"corpus": [{"text": "x"}]}, "corpus.jsonl:1: no _id"),
        (
            {"corpus": [{"_id": "d1", "text": "x"}, {"_id": "d2", "text": " "}]},
            "corpus.jsonl:2: passage 'd2' has neither",
        ),
        ({"corpus": []}, "no passage"),
        ({"queries": [{"_id": "q1", "text": ""}]}, "queries.jsonl:1: query 'q1' has no text"),
        ({"qrels": "query-id\tcorpus-id\tscore\nq1\td9\t1\n"}, "test.tsv:2: passage 'd9' is not in this data set"),
        ({"qrels": "query-id\tcorpus-id\tscore\nq9\td1\t1\n"}, "test.tsv:2: query 'q9' is not in this data set"),
        ({"qrels": "query-id\tcorpus-id\tscore\nq1 d1 1\n"}, "test.tsv:2: 'q1 d1 1' is not"),
        ({"qrels": "query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td1\t0\n"}, "test.tsv:3: query 'q1' and passage 'd1'"),
    ],
)
def test_bad_data_set_is_named_with_file_and_line(tmp_path, parts, message):
    with pytest.raises(InputError) as caught:
        load_evaluation_set(str(folder_with(tmp_path, **parts)))
    assert message in str(caught.value)


def test_unknown_qrels_and_empty_passages_can_be_kept(tmp_path):
    folder = folder_with(
        tmp_path,
        corpus=[{"_id": "d1", "text": "x"}, {"_id": "d2", "text": ""}],
        qrels="query-id\tcorpus-id\tscore\nq1\td9\t1\nq1\td1\t1\nq9\td1\t1\n",
    )
    data = load_evaluation_set(str(folder), unknown_qrels="keep", empty_passages="keep")
    assert data.qrels == {"q1": {"d9": 1, "d1": 1}} and len(data.corpus) == 2


def test_missing_split_and_unknown_name_say_what_there_is(tmp_path):
    with pytest.raises(InputError, match=r"The splits of .* are test"):
        load_evaluation_set(str(folder_with(tmp_path)), "dev")
    with pytest.raises(InputError, match="BEIR names are arguana"):
        find_dataset("scifakt", tmp_path)
    with pytest.raises(InputError, match=r"scifact/lists/human\.train\.parquet"):
        find_file("scifact/lists/nothing.parquet")


def test_shipped_scifact_is_beirs():
    digests = {}
    for name in ("corpus.jsonl", "queries.jsonl"):
        with open_text(SHIPPED / "scifact" / f"{name}.gz") as file:
            digests[name] = hashlib.sha256(file.read().encode()).hexdigest()[:8]
    assert digests == {"corpus.jsonl": "dec31c81", "queries.jsonl": "8ff84a7c"}
    assert len(load_corpus(SHIPPED / "scifact")) == 5183 and len(load_queries(SHIPPED / "scifact")) == 1109
    assert len(load_evaluation_set("scifact").queries) == 300
    assert "CC BY 4.0" in (SHIPPED / "scifact" / "ATTRIBUTION.md").read_text()
