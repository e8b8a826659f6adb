"""Corpora, queries and qrels: what is read and what is refused; and the data that ships."""

import gzip
import hashlib
import json

import pyarrow as pa
import pytest

from datamodules.corpus import SHIPPED, find_dataset, find_file, load_corpus, load_evaluation_set, load_queries
from datamodules.storage import input_hashes
from datamodules.storage.files import open_text
from datamodules.storage.input_hashes import input_sha256
from datamodules.storage.string_index import StringIndex
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


def test_a_file_that_is_written_again_in_place_has_another_hash_at_once(tmp_path, monkeypatch):
    path, state = tmp_path / "file", input_hashes._state

    def coarse(path):  # as on FAT, whose times are whole two seconds
        *times, size, number, device = state(path)
        return *(time - time % 2_000_000_000 for time in times), size, number, device

    monkeypatch.setattr(input_hashes, "_state", coarse)
    for number in range(300):
        content = f"{number:03d}".encode()
        path.write_bytes(content)
        assert input_sha256(path) == hashlib.sha256(content).hexdigest()


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
    with pytest.raises(InputError, match=r"Names are arguana, .* cranfield, .* Did you mean 'scifact'\?"):
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


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
def test_mapped_corpus_equals_the_one_in_memory(tmp_path, monkeypatch, ending):
    monkeypatch.setattr("datamodules.corpus.corpus._BLOCK", 2)
    records = [
        {"_id": "d1", "title": " T ", "text": "one"},
        {"_id": "d2", "text": "é 漢字 🙂 "},
        {"_id": "3", "text": ""},
    ]
    folder_with(tmp_path, corpus=[*records, {"_id": "d4", "title": "only", "text": ""}, {"_id": "d5", "text": "five"}])
    if ending == "jsonl.gz":
        (tmp_path / "corpus.jsonl.gz").write_bytes(gzip.compress((tmp_path / "corpus.jsonl").read_bytes()))
        (tmp_path / "corpus.jsonl").unlink()
    memory = load_corpus(tmp_path, "c", "keep")
    mapped = load_corpus(tmp_path, "c", "keep", cache_dir=tmp_path / "cache")
    assert (mapped.name, len(mapped)) == ("c", 5)
    for name in ("ids", "titles", "texts", "passages"):
        assert getattr(mapped, name).to_pylist() == getattr(memory, name).to_pylist()
    assert mapped.passages.take([4, 0]).to_pylist() == ["five", "T  one"]
    assert mapped.passages[1:3].to_pylist() == ["é 漢字 🙂", ""]
    assert mapped.ids_sha256 == memory.ids_sha256
    asked = ["d5", "zz", "3", "d5", "d1"]
    assert mapped.rows(asked).tolist() == memory.rows(pa.array(asked)).tolist() == [4, -1, 2, 4, 0]


def test_mapped_corpus_is_read_once_and_follows_its_file(tmp_path):
    folder_with(tmp_path)

    def stamps():
        return {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").glob("corpora/*/*")}

    load_evaluation_set(str(tmp_path), cache_dir=tmp_path / "cache")
    first = stamps()
    assert len(load_corpus(tmp_path, cache_dir=tmp_path / "cache")) == 2 and stamps() == first != {}
    with open(tmp_path / "corpus.jsonl", "a") as file:
        file.write(json.dumps({"_id": "d3", "text": "three"}) + "\n")
    assert load_corpus(tmp_path, cache_dir=tmp_path / "cache").ids.to_pylist() == ["d1", "d2", "d3"]
    assert len(stamps()) == 2 * len(first)


@pytest.mark.parametrize(
    "corpus",
    [
        [{"_id": "d1", "text": "x"}, {"_id": "d2", "text": "y"}, {"_id": "d1", "text": "z"}],
        [{"_id": "d1", "text": "x"}, {"text": "x"}],
        [{"_id": "d1", "text": "x"}, {"_id": "d2", "text": " "}],
        [{"_id": "d1", "title": 3, "text": "x"}],
        [],
    ],
)
def test_mapped_corpus_is_refused_in_the_same_words_and_leaves_nothing(tmp_path, monkeypatch, corpus):
    monkeypatch.setattr("datamodules.corpus.corpus._BLOCK", 1)
    folder_with(tmp_path, corpus=corpus)
    messages = []
    for options in ({}, {"cache_dir": tmp_path / "cache"}, {"cache_dir": tmp_path / "cache"}):
        with pytest.raises(InputError) as caught:
            load_corpus(tmp_path, **options)
        messages.append(str(caught.value))
    assert len(set(messages)) == 1 and "corpus.jsonl" in messages[0]
    assert [p.suffix for p in (tmp_path / "cache" / "corpora").iterdir()] == [".lock"]


def test_index_tells_apart_strings_of_one_hash(monkeypatch):
    monkeypatch.setattr("datamodules.storage.string_index.hash", len, raising=False)
    monkeypatch.setattr("datamodules.storage.string_index._BLOCK", 2)
    index = StringIndex(pa.array(["aa", "b", "cc", "aa", "dd"]))
    asked = ["dd", "aa", "cc", "ee", "b", "fff"]
    assert index.find_all(asked).tolist() == [index.find(value) for value in asked] == [4, 0, 2, -1, 1, -1]
    assert index.find_all([]).tolist() == StringIndex(pa.array([], pa.string())).find_all([]).tolist() == []
