"""Corpora, queries, judgements and lists as other tools write them: every format gives what JSON Lines gives."""

import bz2
import gzip
import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from datamodules.corpus import corpus_sha256, load_corpus, load_evaluation_set, load_qrels, load_queries
from datamodules.query_lists import QueryList, open_query_lists, read_metadata, read_query_lists, write_query_lists
from retriever.errors import InputError

PASSAGES = [
    {"_id": f"d{number}", "title": "A title" if number % 2 else "", "text": f'passage {number}, é 漢字 and "quotes"'}
    for number in range(5)
]
QUERIES = [{"_id": "q1", "text": "what is é"}, {"_id": "q2", "text": 'who, "then"'}]
TABLE = pa.Table.from_pylist(PASSAGES)
FRAME = pd.DataFrame(PASSAGES)


def zst(data: bytes) -> bytes:
    stream = pa.BufferOutputStream()
    with pa.CompressedOutputStream(stream, "zstd") as file:
        file.write(data)
    return stream.getvalue().to_pybytes()


def arrow(path, table, new=pa.ipc.new_stream):
    with pa.OSFile(str(path), "wb") as file, new(file, table.schema) as writer:
        writer.write_table(table)


def lines_of(records) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def renamed(**names):
    """The passages under other keys."""
    return lines_of({names.get(key, key): value for key, value in each.items()} for each in PASSAGES)


def tsv(*names, header=True):
    rows = [names] if header else []
    keys = {"id": "_id", "docid": "_id"}
    rows += [[each[keys.get(name, name)] for name in names] for each in PASSAGES]
    return "".join("\t".join(row) + "\n" for row in rows).encode()


def packed_parts(folder):
    folder.mkdir()
    for number, part in enumerate((PASSAGES[:2], PASSAGES[2:])):
        (folder / f"{number}.jsonl.gz").write_bytes(gzip.compress(lines_of(part)))


CORPORA = {
    "gzip": lambda folder: (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(lines_of(PASSAGES))),
    "bzip2": lambda folder: (folder / "corpus.jsonl.bz2").write_bytes(bz2.compress(lines_of(PASSAGES))),
    "Zstandard": lambda folder: (folder / "corpus.jsonl.zst").write_bytes(zst(lines_of(PASSAGES))),
    "two Zstandard frames": lambda folder: (folder / "corpus.jsonl.zst").write_bytes(
        zst(lines_of(PASSAGES[:2])) + zst(lines_of(PASSAGES[2:]))
    ),
    "Parquet": lambda folder: pq.write_table(TABLE, folder / "corpus.parquet"),
    "an Arrow file": lambda folder: arrow(folder / "corpus.arrow", TABLE, pa.ipc.new_file),
    "an Arrow stream": lambda folder: arrow(folder / "corpus.arrow", TABLE),
    "Feather": lambda folder: FRAME.to_feather(folder / "corpus.feather"),
    "datasets": lambda folder: Dataset.from_list(PASSAGES).save_to_disk(folder / "corpus"),
    "datasets in two parts": lambda folder: Dataset.from_list(PASSAGES).save_to_disk(folder / "corpus", num_shards=2),
    "packed parts": lambda folder: packed_parts(folder / "corpus"),
    "datasets as Parquet": lambda folder: Dataset.from_list(PASSAGES).to_parquet(folder / "corpus.parquet"),
    "pandas, a named index": lambda folder: FRAME.set_index("_id").to_parquet(folder / "corpus.parquet"),
    "pandas, an index without a name": lambda folder: (
        FRAME.set_index("_id").rename_axis(None).to_parquet(folder / "corpus.parquet")
    ),
    "pandas, rows taken out": lambda folder: pd.concat([FRAME, FRAME])[:5].to_parquet(folder / "corpus.parquet"),
    "CSV": lambda folder: FRAME.to_csv(folder / "corpus.csv", index=False),
    "CSV with an index": lambda folder: FRAME.set_index("_id").rename_axis(None).to_csv(folder / "corpus.csv"),
    "TSV": lambda folder: (folder / "corpus.tsv").write_bytes(tsv("_id", "title", "text")),
    "TSV, as DPR's": lambda folder: (folder / "corpus.tsv").write_bytes(tsv("id", "text", "title")),
    "TSV, packed": lambda folder: (folder / "corpus.tsv.zst").write_bytes(zst(tsv("docid", "title", "text"))),
    "Pyserini's contents": lambda folder: (folder / "corpus.jsonl").write_bytes(renamed(_id="id", text="contents")),
    "_id and contents": lambda folder: (folder / "corpus.jsonl").write_bytes(renamed(text="contents")),
    "docid and segment": lambda folder: (folder / "corpus.jsonl").write_bytes(renamed(_id="docid", text="segment")),
}


@pytest.mark.parametrize("kind", CORPORA)
def test_a_corpus_in_any_format_is_the_same(tmp_path, kind):
    CORPORA[kind](tmp_path)
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        corpus = load_corpus(tmp_path, cache_dir=cache)
        columns = (column.to_pylist() for column in (corpus.ids, corpus.titles, corpus.texts))
        assert list(zip(*columns, strict=True)) == [tuple(each.values()) for each in PASSAGES]
    assert len(corpus_sha256(tmp_path)) == 64


def test_msmarcos_collection_needs_no_header(tmp_path):
    (tmp_path / "corpus.tsv").write_text('0\tThe "presence" of it\n1\tid and text\n')
    corpus = load_corpus(tmp_path)
    assert corpus.ids.to_pylist() == ["0", "1"] and corpus.texts.to_pylist() == ['The "presence" of it', "id and text"]


@pytest.mark.parametrize("packed", ["", ".gz", ".zst", ".bz2"])
@pytest.mark.parametrize("form", ["jsonl", "tsv", "csv"])
def test_queries_and_judgements_of_any_packing(tmp_path, form, packed):
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zst, ".bz2": bz2.compress}[packed]
    content = {
        "jsonl": lines_of(QUERIES),
        "tsv": "".join("\t".join(each.values()) + "\n" for each in QUERIES).encode(),
        "csv": pd.DataFrame(QUERIES).rename(columns={"_id": "qid", "text": "query"}).to_csv(index=False).encode(),
    }[form]
    (tmp_path / f"queries.{form}{packed}").write_bytes(pack(content))
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / f"test.tsv{packed}").write_bytes(pack(b"q1 0 d1 1\nq2 0 d3 2\n"))
    (tmp_path / "corpus.jsonl").write_bytes(lines_of(PASSAGES))
    assert load_queries(tmp_path) == {each["_id"]: each["text"] for each in QUERIES}
    assert load_evaluation_set(str(tmp_path)).qrels == {"q1": {"d1": 1}, "q2": {"d3": 2}}
    with pytest.raises(InputError, match=r"qrels/dev\.tsv: no such file. The splits of .* are test\."):
        load_qrels(tmp_path, "dev")


LISTS = [
    QueryList("a", "what", "human", "c", ["d1"], ["d1", "d0"], [2.0, 1.0]),
    QueryList("b", "漢字", "web", "c", [], ["d3", "d2", "d4"], [0.5, 0.25, -1.0]),
]


@pytest.mark.parametrize("ending", ["jsonl.gz", "jsonl.zst", "jsonl.bz2", "arrow", "feather"])
def test_lists_of_any_format_are_the_same(tmp_path, ending):
    write_query_lists(tmp_path / "x.parquet", LISTS, {"teacher": "made up"})
    path = tmp_path / f"lists.{ending}"
    if ending.startswith("jsonl"):
        pack = {"gz": gzip.compress, "zst": zst, "bz2": bz2.compress}[ending[6:]]
        path.write_bytes(pack(lines_of(vars(each) for each in LISTS)))
    else:
        arrow(path, pq.read_table(tmp_path / "x.parquet"), pa.ipc.new_stream if ending == "arrow" else pa.ipc.new_file)
        assert read_metadata(path) == {"teacher": "made up"}
    assert list(read_query_lists(path)) == LISTS
    (tmp_path / "corpus.jsonl").write_bytes(lines_of(PASSAGES))
    corpus = load_corpus(tmp_path, name="c")
    lists, dropped = open_query_lists(path, corpus, tmp_path / "cache")
    assert (len(lists), dropped, lists.rows.tolist()) == (2, {}, [1, 0, 3, 2, 4])


WRONG = [
    ("corpus.jsonl", lambda: zst(lines_of(PASSAGES)), r"corpus\.jsonl:1: this is a Zstandard archive.*end in \.zst"),
    ("corpus.jsonl", lambda: gzip.compress(b"{}"), r"this is a gzip file.*end in \.gz"),
    ("corpus.jsonl", lambda: bz2.compress(b"{}"), r"this is a bzip2 file.*end in \.bz2"),
    ("corpus.jsonl", lambda: b"\xfd7zXZ\0junk", "this is an xz file.*xz --decompress"),
    ("corpus.jsonl", lambda: b"PK\3\4junk", "a zip archive"),
    ("corpus.jsonl", lambda: b"\x80\x04junk", "a pickle, which is never read"),
    ("corpus.jsonl", lambda: parquet_bytes(), r"this is a Parquet file.*end in \.parquet"),
    ("corpus.jsonl.zst", lambda: gzip.compress(b"{}"), r"cannot be decompressed.*gzip file.*end in \.gz"),
    ("corpus.jsonl.zst", lambda: zst(lines_of(PASSAGES))[:-3], "cannot be decompressed further.*incomplete or not zst"),
    ("corpus.jsonl.zst", lambda: lines_of(PASSAGES), "incomplete or not zst"),
    ("corpus.jsonl", lambda: b"\xc3\x28\0\0\1\2" * 9, "not UTF-8.*seems to be no text"),
    ("corpus.jsonl", lambda: "{é".encode("latin-1"), "not UTF-8.*iconv -f LATIN1"),
    (
        "corpus.jsonl",
        lambda: renamed(text="abstract"),
        r"jsonl:1: passage 'd0' has no 'text', but 'abstract': 'passage 0",
    ),
    ("corpus.csv", lambda: b"1,one\n2,two\n", "is no line of columns' names"),
    ("corpus.csv", lambda: b"_id,text\n1,one, two\n", r"corpus\.csv:2: 3 columns, where 2 are expected"),
    ("corpus.csv", lambda: b'_id,text\n1,"one\n', r"corpus\.csv:3?2?: not CSV"),
    ("corpus.tsv", lambda: b"1\ta\tb\n", "3 columns, and nothing says what is in them.*_id and text"),
    ("corpus.tsv", lambda: b"id\ttext\n1\ta\tb\n", r"tsv:2: 3 columns, where 2"),
    ("collection.tsv", lambda: b"1\ta\n", r"neither corpus\.jsonl nor .* In it: collection\.tsv\."),
]


def parquet_bytes() -> bytes:
    stream = pa.BufferOutputStream()
    pq.write_table(TABLE, stream)
    return stream.getvalue().to_pybytes()


@pytest.mark.parametrize(("name", "content", "message"), WRONG)
def test_what_cannot_be_read_is_called_by_its_name(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content())
    for empty in ("error", "keep"):
        with pytest.raises(InputError, match=message) as caught:
            load_corpus(tmp_path, empty_passages=empty)
        assert "keep" not in str(caught.value) and ("iconv" in str(caught.value)) == ("iconv" in message)


def test_arrow_files_without_their_end_are_torn(tmp_path):
    for name, new in {"stream": pa.ipc.new_stream, "file": pa.ipc.new_file}.items():
        folder = tmp_path / name
        folder.mkdir()
        arrow(folder / "corpus.arrow", TABLE, new)
        data = (folder / "corpus.arrow").read_bytes()
        for cut in (8, 16, 100, len(data) - 4):
            (folder / "corpus.arrow").write_bytes(data[:-cut])
            with pytest.raises(InputError, match=r"corpus\.arrow: not a whole Arrow file"):
                load_corpus(folder)
    (tmp_path / "stream" / "corpus.arrow").write_bytes(arrow_bytes() * 2)
    with pytest.raises(InputError, match="more behind its end"):
        load_corpus(tmp_path / "stream")


def arrow_bytes() -> bytes:
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, TABLE.schema) as writer:
        writer.write_table(TABLE)
    return stream.getvalue().to_pybytes()


def test_empty_passages_stay_with_a_warning_that_counts_them(tmp_path, caplog):
    (tmp_path / "corpus.jsonl").write_bytes(
        lines_of([*PASSAGES, {"_id": "471", "text": ""}, {"_id": "995", "title": ""}])
    )
    with pytest.raises(InputError, match=r"corpus\.jsonl:6: passage '471' has neither.*empty_passages=keep"):
        load_corpus(tmp_path)
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        corpus = load_corpus(tmp_path, empty_passages="keep", cache_dir=cache)
        assert corpus.ids.to_pylist()[-2:] == ["471", "995"]
    assert caplog.text.count("2 of 7 passages have neither title nor text") == 1
    with pytest.raises(InputError, match=r"corpus\.jsonl:6: passage '471' has neither.*empty_passages=keep"):
        load_corpus(tmp_path, cache_dir=tmp_path / "cache")


def test_two_parts_do_not_share_an_id(tmp_path):
    (tmp_path / "corpus").mkdir()
    for part in "ab":
        (tmp_path / "corpus" / f"{part}.jsonl").write_bytes(lines_of(PASSAGES))
    with pytest.raises(InputError, match=r"b\.jsonl:1: the _id 'd0' is already in line 1 of this part or one before"):
        load_corpus(tmp_path, cache_dir=tmp_path / "cache")
