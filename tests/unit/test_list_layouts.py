"""Other tools' layouts of query lists: round trips on real lists, what the tools themselves take, and bad lines."""

import json
import random
import struct
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import load_dataset
from sentence_transformers import (
    CrossEncoder,
    MultiVectorEncoder,
    MultiVectorEncoderTrainer,
    MultiVectorEncoderTrainingArguments,
    SentenceTransformer,
    SparseEncoder,
    SparseEncoderTrainer,
    SparseEncoderTrainingArguments,
)
from sentence_transformers.cross_encoder.data_collator import CrossEncoderDataCollator
from sentence_transformers.cross_encoder.losses import LambdaLoss, ListNetLoss
from sentence_transformers.multi_vector_encoder.losses import MultiVectorDistillKLDivLoss
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss, MarginMSELoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from sentence_transformers.sparse_encoder.losses import SparseDistillKLDivLoss, SpladeLoss
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel

from datamodules.corpus import SHIPPED, Corpus, load_corpus
from datamodules.formats.passages import CorpusPassages, new_corpus
from datamodules.formats.transfer import export_lists, import_lists
from datamodules.query_lists import QueryList, open_query_lists, read_query_lists, write_query_lists
from retriever.errors import InputError

SMALL = Corpus(
    "small", pa.array(list("abcde")), pa.array(["T", "", "", "", ""]), pa.array([f"text {c}" for c in "abcde"])
)
GOOD = QueryList("q1", "what is a", "human", "small", ["a"], ["c", "a", "b"], [0.25, 3.0, -1.5])
OTHER = QueryList("q2", "é 漢字 🙂", "title", "small", [], ["a", "b"], [1.0, 2.0])
A_HALF = {"docid": "a", "score": 0.5}
LOSSLESS = [
    ("cadet", {}),
    ("cadet", {"score_key": "rankt5_score"}),
    ("flag_embedding", {}),
    ("tevatron", {}),
    ("pylate", {}),
    ("trec", {}),
]


@pytest.fixture(scope="module")
def passages(scifact):
    """The shipped corpus, looked up."""
    return CorpusPassages(scifact[0])


@pytest.fixture(scope="module")
def real_lists():
    """Shipped lists of two types, cut to many lengths, half of them shuffled: no order can be taken as given."""
    draw = random.Random(7)
    lists = [*read_query_lists(SHIPPED / "scifact/lists/human.dev.parquet")]
    lists += list(read_query_lists(SHIPPED / "scifact/lists/claim.dev.parquet"))[:150]
    changed = []
    for number, query_list in enumerate(lists):
        pairs = list(zip(query_list.passage_ids, query_list.teacher_scores, strict=True))[: draw.randint(2, 30)]
        if number % 2:
            draw.shuffle(pairs)
        ids, scores = map(list, zip(*pairs, strict=True))
        changed.append(replace(query_list, passage_ids=ids, teacher_scores=scores))
    return changed


def bits(query_list):
    """The scores as the bytes of float32."""
    return struct.pack(f"<{len(query_list.teacher_scores)}f", *query_list.teacher_scores)


def lines_of(path):
    """The objects of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "options"), LOSSLESS)
def test_round_trip_of_real_lists_loses_nothing(tmp_path, passages, real_lists, layout, options):
    assert any(not set(q.positive_ids) & set(q.passage_ids) for q in real_lists)  # positives without a score, too
    assert export_lists(real_lists, tmp_path / "x.jsonl", layout, passages, **options) == len(real_lists)
    back = list(import_lists(tmp_path / "x.jsonl", layout, passages, **options))
    assert back == real_lists
    assert [bits(q) for q in back] == [bits(q) for q in real_lists]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize("form", ["columns", "lists"])
def test_sentence_transformers_keeps_queries_passages_and_scores(tmp_path, passages, real_lists, form, ending):
    lists = [q for q in real_lists if len(q.passage_ids) >= 10] if form == "columns" else real_lists
    options = {"form": form, "list_length": 10 if form == "columns" else None}
    path = tmp_path / f"x.{ending}"
    assert export_lists(lists, path, "sentence_transformers", passages, **options) == len(lists)
    back = list(import_lists(path, "sentence_transformers", passages, query_type="any"))
    for number, (found, query_list) in enumerate(zip(back, lists, strict=True), 1):
        order = range(len(query_list.passage_ids))
        if form == "columns":  # the ten best, in the list's order
            order = sorted(sorted(order, key=lambda at, q=query_list: -q.teacher_scores[at])[:10])
        kept = replace(
            query_list,
            query_id=f"x-{number}",
            query_type="any",
            positive_ids=[],
            passage_ids=[query_list.passage_ids[at] for at in order],
            teacher_scores=[query_list.teacher_scores[at] for at in order],
        )
        assert found == kept and bits(found) == bits(kept)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["cadet", "flag_embedding", "tevatron", "pylate", "sentence_transformers"])
def test_without_a_corpus_one_is_written_that_trains(tmp_path, passages, real_lists, layout):
    # positives outside their list have no text in these files
    lists = [replace(q, positive_ids=[p for p in q.positive_ids if p in q.passage_ids]) for q in real_lists]
    options = {"form": "lists"} if layout == "sentence_transformers" else {}
    export_lists(lists, tmp_path / "x.jsonl", layout, passages, **options)
    with new_corpus(tmp_path / "texts") as gathered:
        write_query_lists(tmp_path / "l.parquet", import_lists(tmp_path / "x.jsonl", layout, gathered), {})
    corpus = load_corpus(tmp_path / "texts")
    opened, dropped = open_query_lists(tmp_path / "l.parquet", corpus, tmp_path / "cache")
    assert (len(opened), dropped) == (len(lists), {})
    found = list(read_query_lists(tmp_path / "l.parquet"))
    texts = CorpusPassages(corpus)
    for one, original in zip(found, lists, strict=True):
        assert one.corpus == "texts"
        assert [texts.text(p, "") for p in one.passage_ids] == [passages.text(p, "") for p in original.passage_ids]
        assert bits(one) == bits(original)
    assert len(corpus) == len({p for q in lists for p in q.passage_ids})  # each text once
    # the same file again into the same folder adds nothing
    with new_corpus(tmp_path / "texts") as gathered:
        assert list(import_lists(tmp_path / "x.jsonl", layout, gathered)) == found
    assert load_corpus(tmp_path / "texts").ids.equals(corpus.ids)


def test_sentence_transformers_trains_on_the_columns(tmp_path, tiny_model, passages, real_lists):
    lists = [q for q in real_lists if len(q.passage_ids) >= 4][:6]
    export_lists(lists, tmp_path / "x.parquet", "sentence_transformers", passages, list_length=4)
    data = load_dataset("parquet", data_files=str(tmp_path / "x.parquet"), cache_dir=str(tmp_path), split="train")
    assert data.column_names == ["query", "passage_1", "passage_2", "passage_3", "passage_4", "label"]
    transformer = Transformer(str(tiny_model), max_seq_length=32)
    pooling = Pooling(transformer.get_embedding_dimension())
    model = SentenceTransformer(modules=[transformer, pooling], device="cpu")
    batch = SentenceTransformerDataCollator(preprocess_fn=model.preprocess)([data[n] for n in range(6)])
    labels = batch.pop("label")
    assert labels.shape == (6, 4) and labels.dtype == torch.float32
    features = []
    for column in data.column_names[:-1]:
        prefix = f"{column}_"
        features.append({k.removeprefix(prefix): v for k, v in batch.items() if k.startswith(prefix)})
    for loss in (DistillKLDivLoss(model), MarginMSELoss(model)):
        model.zero_grad()
        loss(features, labels).backward()
        assert sum(p.grad.abs().sum() for p in model.parameters() if p.grad is not None) > 0


@pytest.mark.slow
def test_sparse_and_multi_vector_models_train_on_the_columns(tmp_path, tiny_model, passages, real_lists):
    lists = [q for q in real_lists if len(q.passage_ids) >= 4][:3]
    export_lists(lists, tmp_path / "x.parquet", "sentence_transformers", passages, list_length=4)
    data = load_dataset("parquet", data_files=str(tmp_path / "x.parquet"), cache_dir=str(tmp_path), split="train")
    config = BertConfig.from_pretrained(tiny_model)
    for name, kind in {"masked": BertForMaskedLM, "plain": BertModel}.items():
        kind(config).save_pretrained(tmp_path / name)
        AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / name)
    sparse = SparseEncoder(str(tmp_path / "masked"), device="cpu")
    many = MultiVectorEncoder(str(tmp_path / "plain"), device="cpu")
    losses = {
        sparse: SpladeLoss(sparse, SparseDistillKLDivLoss(sparse), document_regularizer_weight=1e-3),
        many: MultiVectorDistillKLDivLoss(many),
    }
    trainers = {
        sparse: (SparseEncoderTrainer, SparseEncoderTrainingArguments),
        many: (MultiVectorEncoderTrainer, MultiVectorEncoderTrainingArguments),
    }
    options = {
        "max_steps": 1,
        "per_device_train_batch_size": 3,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
    }
    for model, loss in losses.items():
        before = {name: value.clone() for name, value in model.named_parameters()}
        trainer, arguments = trainers[model]
        told = arguments(output_dir=str(tmp_path / "out"), **options)
        trainer(model=model, args=told, train_dataset=data, loss=loss).train()
        assert any((value != before[name]).any() for name, value in model.named_parameters())


@pytest.mark.slow
def test_pylate_reads_what_is_written(tmp_path, passages, real_lists):
    export_lists(real_lists, tmp_path / "x.jsonl", "pylate", passages)
    data = {
        name: load_dataset("json", data_files=str(tmp_path / file), cache_dir=str(tmp_path), split="train")
        for name, file in {"train": "x.jsonl", "queries": "x.queries.jsonl", "documents": "x.documents.jsonl"}.items()
    }
    assert data["train"].column_names == ["query_id", "document_ids", "scores"]
    assert len(set(data["documents"]["document_id"])) == len(data["documents"])
    utils = pytest.importorskip("pylate.utils", reason="PyLate, which pins other versions of sentence-transformers")
    data["train"].set_transform(utils.KDProcessing(data["queries"], data["documents"], n_ways=3).transform)
    for row, query_list in zip(data["train"], real_lists, strict=True):
        assert row["query"] == query_list.query and row["scores"] == query_list.teacher_scores[:3]
        assert row["documents"] == [passages.text(found, "") for found in query_list.passage_ids[:3]]


def test_lightning_ir_reads_what_is_written_without_another_file(tmp_path, passages, real_lists):
    assert export_lists(real_lists, tmp_path / "x.jsonl", "lightning_ir", passages) == len(real_lists)
    back = list(import_lists(tmp_path / "x.jsonl", "lightning_ir", passages))
    for found, query_list in zip(back, real_lists, strict=True):
        assert found.query == query_list.query and found.query_id == query_list.query_id
        pairs = zip(query_list.passage_ids, query_list.teacher_scores, strict=True)
        assert dict(zip(found.passage_ids, found.teacher_scores, strict=True)) == dict(pairs)
        assert found.teacher_scores == sorted(found.teacher_scores, reverse=True)
        assert set(found.positive_ids) == set(query_list.positive_ids) & set(query_list.passage_ids)
    data = pytest.importorskip("lightning_ir").RunDataset(tmp_path / "x.jsonl", depth=30, targets="score")
    samples = {sample.query_id: sample for sample in (data[n] for n in range(len(data)))}
    for query_list in real_lists:
        sample = samples[query_list.query_id]
        scores = dict(zip(query_list.passage_ids, query_list.teacher_scores, strict=True))
        assert sample.query == query_list.query and set(sample.doc_ids) == set(scores)
        expected = torch.tensor([scores[found] for found in sample.doc_ids])
        torch.testing.assert_close(sample.targets.flatten(), expected)
        assert list(sample.docs) == [passages.text(found, "") for found in sample.doc_ids]


@pytest.mark.slow
def test_cross_encoder_losses_train_on_the_lists(tmp_path, tiny_model, passages, real_lists):
    export_lists(real_lists[:5], tmp_path / "x.jsonl", "sentence_transformers", passages, form="lists")
    data = load_dataset("json", data_files=str(tmp_path / "x.jsonl"), cache_dir=str(tmp_path), split="train")
    assert data.column_names == ["query", "docs", "labels"]
    config = BertConfig.from_pretrained(tiny_model, num_labels=1)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "model")
    model = CrossEncoder(str(tmp_path / "model"), device="cpu", max_length=64)
    batch = CrossEncoderDataCollator(preprocess_fn=model.preprocess)([data[n] for n in range(5)])
    labels = batch.pop("label")
    assert [len(label) for label in labels] == [len(q.passage_ids) for q in real_lists[:5]]
    for loss in (LambdaLoss(model), ListNetLoss(model)):
        value = loss([batch["query"], batch["docs"]], labels)
        assert torch.isfinite(value) and value > 0


def test_flag_embedding_file_has_what_its_loader_reads(tmp_path, passages, real_lists):
    export_lists(real_lists, tmp_path / "x.jsonl", "flag_embedding", passages)
    data = load_dataset("json", data_files=str(tmp_path / "x.jsonl"), cache_dir=str(tmp_path), split="train")
    assert not {"prompt", "type", "batch_size"} & set(data.column_names)  # these would change its training
    for row, query_list in zip(data, real_lists, strict=True):
        assert row["pos"] and row["neg"] and not set(row["pos"]) & set(row["neg"])
        assert (len(row["pos"]), len(row["neg"])) == (len(row["pos_scores"]), len(row["neg_scores"]))
        labelled = [p for p in query_list.passage_ids if p in query_list.positive_ids]
        best = max(zip(query_list.teacher_scores, query_list.passage_ids, strict=True), key=lambda pair: pair[0])
        assert row["pos"] == [passages.text(p, "") for p in labelled or [best[1]]]


def write(path, *records):
    """Write JSON Lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_the_papers_lists_are_named_after_their_source_passages(tmp_path):
    scored = [{"docid": "b", "text": "text b", "rankt5_score": 1.0}, {"docid": "a", "rankt5_score": 0.25}]
    lines = [{"query": query, "qid": "b", "passages": scored} for query in ("what", "why")]
    path = write(tmp_path / "beir.bge.small.jsonl", *lines, lines[0] | {"query": "who", "positive_ids": ["e"]})
    options = {"score_key": "rankt5_score", "query_type": "synthetic"}
    assert list(import_lists(path, "cadet", CorpusPassages(SMALL), source_ids=True, **options)) == [
        QueryList("b-1", "what", "synthetic", "small", ["b"], ["b", "a"], [1.0, 0.25]),
        QueryList("b-2", "why", "synthetic", "small", ["b"], ["b", "a"], [1.0, 0.25]),
        QueryList("b-3", "who", "synthetic", "small", ["e"], ["b", "a"], [1.0, 0.25]),
    ]
    with pytest.raises(InputError, match=r"small\.jsonl:2: the query id 'b' is already"):
        list(import_lists(path, "cadet", CorpusPassages(SMALL), **options))
    path = write(tmp_path / "none.jsonl", {"query": "what", "passages": scored})
    with pytest.raises(InputError, match=r"none\.jsonl:1: 'qid' has a null where an id is expected"):
        list(import_lists(path, "cadet", CorpusPassages(SMALL), source_ids=True, **options))


def test_lines_as_other_tools_write_them(tmp_path):
    known = CorpusPassages(SMALL)
    path = write(
        tmp_path / "cadet.jsonl",
        {"query": "what", "qid": 7, "type": "claim", "passages": [{"docid": "b", "score": 1}, A_HALF]},
        {"query": "who", "positive_docid": "e", "passages": [
            {"docid": "a", "title": "T", "text": "text a", "score": 2.0},
            {"docid": "d", "text": "text d", "score": -3}]},
    )  # fmt: skip
    assert list(import_lists(path, "cadet", known, query_type="web")) == [
        QueryList("7", "what", "claim", "small", [], ["b", "a"], [1.0, 0.5]),
        QueryList("cadet-2", "who", "web", "small", ["e"], ["a", "d"], [2.0, -3.0]),
    ]
    path = write(
        tmp_path / "st.jsonl",
        {
            "anchor": "what",
            "positive": "T text a",
            "negative_1": "text b",
            "negative_2": " text c ",
            "label": [3, 2, 1],
        },
        {"query": "who", "query_id": 4, "documents": ["text b", "text a"], "scores": [0.5, 1.5]},
        {"query": "when", "passage_1": "text b", "passage_2": "text d", "passage_3": None, "labels": [0.5, 1.5]},
    )
    assert list(import_lists(path, "sentence_transformers", known)) == [
        QueryList("st-1", "what", "human", "small", ["a"], ["a", "b", "c"], [3.0, 2.0, 1.0]),
        QueryList("4", "who", "human", "small", [], ["b", "a"], [0.5, 1.5]),
        QueryList("st-3", "when", "human", "small", [], ["b", "d"], [0.5, 1.5]),
    ]
    path = write(
        tmp_path / "flag.jsonl",
        {"query": "what", "pos": ["text b"], "neg": ["text a", "text c"], "pos_scores": [1.0], "neg_scores": [2, 0],
         "prompt": "Search: ", "type": "normal"},
        {"query": "who", "pos": ["text b"], "neg": ["text a", "text c"], "pos_scores": [1.0], "neg_scores": [2, 0],
         "pos_ids": ["b"]},
    )  # fmt: skip
    assert list(import_lists(path, "flag_embedding", known)) == [
        QueryList("flag-1", "what", "human", "small", ["b"], ["b", "a", "c"], [1.0, 2.0, 0.0]),
        QueryList("flag-2", "who", "human", "small", ["b"], ["b", "a", "c"], [1.0, 2.0, 0.0]),
    ]
    run = tmp_path / "bm25.run"
    run.write_text("1 Q0 b 1 9.5 bm25\n1\tQ0\ta\t2\t-1e-3\tbm25\n\n2 Q0 c 1 2 x\n2 Q0 d 2 1 x\n")
    queries = write(tmp_path / "queries.jsonl", {"_id": 1, "text": "what"}, {"_id": "2", "text": "who"})
    (tmp_path / "qrels.txt").write_text("1 0 a 2\n1 0 b 0\n9 0 zz 1\n")
    assert list(import_lists(run, "trec", known, queries=queries, qrels=tmp_path / "qrels.txt")) == [
        QueryList("1", "what", "human", "small", ["a"], ["b", "a"], [9.5, -0.001]),
        QueryList("2", "who", "human", "small", [], ["c", "d"], [2.0, 1.0]),
    ]


def compress(path):
    """The same file as a Zstandard archive, by the ending ``.zst``."""
    packed = path.with_name(f"{path.name}.zst")
    with pa.CompressedOutputStream(str(packed), "zstd") as file:
        file.write(path.read_bytes())
    path.unlink()
    return packed


PAIRS = [("1", "b", 9.5), ("1", "a", -0.5), ("2", "c", 2.0), ("2", "d", 1.0)]
RUNS = {
    "TREC's, of Pyserini": "".join(f"{q} Q0 {p} 1 {s:.6f} Anserini\n" for q, p, s in PAIRS),
    "TREC's, of Lightning IR": "".join(f"{q}\t0\t{p}\t1\t{s}\tBiEncoderModel\n" for q, p, s in PAIRS),
    "columns that are named": "qid\tdocid\tscore\n" + "".join(f"{q}\t{p}\t{s}\n" for q, p, s in PAIRS),
    "four columns, of ColBERT": "".join(f"{q}\t{p}\t1\t{s}\n" for q, p, s in PAIRS),
    "JSON Lines": "".join(json.dumps({"query_id": q, "doc_id": p, "score": s, "rank": 1}) + "\n" for q, p, s in PAIRS),
    "other names": "".join(json.dumps({"qid": int(q), "docno": p, "score": s}) + "\n" for q, p, s in PAIRS),
    "candidates": "".join(
        json.dumps(
            {
                "query": {"qid": number, "text": query},
                "candidates": [
                    {"docid": p, "score": s, "doc": {"contents": f"text {p}"}} for q, p, s in PAIRS if q == number
                ],
            }
        )
        + "\n"
        for number, query in {"1": "what", "2": "who"}.items()
    ),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("queries", ["queries.tsv", "queries.jsonl", "named.tsv"])
@pytest.mark.parametrize("kind", RUNS)
def test_runs_as_other_tools_write_them(tmp_path, kind, queries, packed):
    run = tmp_path / "x.run"
    run.write_text(RUNS[kind])
    texts = tmp_path / queries
    if texts.suffix == ".tsv":
        texts.write_text("2\twho\n1\twhat\n")
    else:
        write(texts, {"_id": "2", "text": "who"}, {"_id": 1, "text": "what"})
    if packed:
        run, texts = compress(run), compress(texts)
    options = {"queries": texts} if queries == "named.tsv" else {}
    wanted = [
        QueryList("1", "what", "human", "small", [], ["b", "a"], [9.5, -0.5]),
        QueryList("2", "who", "human", "small", [], ["c", "d"], [2.0, 1.0]),
    ]
    for layout in ("trec", "lightning_ir", "pyserini"):
        assert list(import_lists(run, layout, CorpusPassages(SMALL), **options)) == wanted


def test_a_run_that_holds_queries_texts_and_judgements_needs_no_other_file(tmp_path):
    rows = [
        {"query_id": q, "query": f"query {q}", "doc_id": p, "text": f"text {p}", "score": s, "relevance": int(p == "a")}
        for q, p, s in PAIRS
    ]
    lists = []
    for number, name in enumerate(("run.jsonl", "run.parquet", "run.arrow")):
        path = tmp_path / str(number) / name
        path.parent.mkdir()
        table = pa.Table.from_pylist(rows)
        if name == "run.jsonl":
            write(path, *rows)
        elif name == "run.parquet":
            pq.write_table(table, path)
        else:
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table)
        with new_corpus(path.parent / "new") as gathered:
            lists.append(list(import_lists(path, "lightning_ir", gathered)))
        assert load_corpus(path.parent / "new").texts.to_pylist() == [f"text {p}" for _, p, _ in PAIRS]
    assert (
        lists
        == [
            [
                QueryList("1", "query 1", "human", "new", ["a"], ["b", "a"], [9.5, -0.5]),
                QueryList("2", "query 2", "human", "new", [], ["c", "d"], [2.0, 1.0]),
            ]
        ]
        * 3
    )


def test_lines_of_a_query_state_one_text(tmp_path, passages):
    ids = passages.corpus.ids.to_pylist()[:3]
    rows = [{"query_id": "1", "query": "what", "doc_id": p, "score": n} for n, p in enumerate(ids)]
    rows[1].pop("query")  # once is enough
    path = tmp_path / "run.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    [found] = import_lists(path, "trec", passages)
    assert found.query == "what" and len(found.passage_ids) == 3
    rows[2]["query"] = "who"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"run\.jsonl:3: the query is 'who' here, and 'what' before"):
        list(import_lists(path, "trec", passages))


def test_a_run_of_ranks_alone_says_so_and_takes_them_when_asked(tmp_path):
    run = tmp_path / "run.tsv"
    run.write_text("1\tb\t1\n1\ta\t2\n")
    (tmp_path / "queries.tsv").write_text("1\twhat\n")
    with pytest.raises(InputError, match=r"run\.tsv:1: no score\. .*six columns.*scores=ranks"):
        list(import_lists(run, "pyserini", CorpusPassages(SMALL)))
    [found] = import_lists(run, "pyserini", CorpusPassages(SMALL), scores="ranks")
    assert (found.passage_ids, found.teacher_scores) == (["b", "a"], [-1.0, -2.0])


@pytest.mark.parametrize("layout", ["flag_embedding", "tevatron"])
def test_labels_are_scores_when_asked(tmp_path, layout):
    bare = {
        "flag_embedding": flag(pos_scores=None, neg_scores=None),
        "tevatron": tevatron(positive_passages=[{"docid": "a", "title": "T", "text": "text a"}],
                             negative_passages=[{"docid": "b", "title": "", "text": "text b"}]),
    }[layout]  # fmt: skip
    path = write(tmp_path / "x.jsonl", bare)
    with pytest.raises(InputError, match="scores=labels"):
        list(import_lists(path, layout, CorpusPassages(SMALL)))
    [found] = import_lists(path, layout, CorpusPassages(SMALL), scores="labels")
    assert (found.positive_ids, found.passage_ids, found.teacher_scores) == (["a"], ["a", "b"], [1.0, 0.0])


def test_equal_repeats_with_equal_scores_are_one(tmp_path):
    repeated = {"query": "a b", "pos": ["text a"], "neg": ["text b", "text c", "text b"], "pos_scores": [3]}
    path = write(tmp_path / "x.jsonl", repeated | {"neg_scores": [1, 2, 1]})
    [found] = import_lists(path, "flag_embedding", CorpusPassages(SMALL))
    assert (found.passage_ids, found.teacher_scores) == (["a", "b", "c"], [3.0, 1.0, 2.0])
    path = write(tmp_path / "x.jsonl", repeated | {"neg_scores": [1, 2, 1 + 1e-9]})  # equal in float32
    assert list(import_lists(path, "flag_embedding", CorpusPassages(SMALL))) == [found]
    path = write(tmp_path / "y.jsonl", repeated | {"neg_scores": [1, 2, 3]})
    with new_corpus(tmp_path / "new") as gathered:
        message = r"y\.jsonl:1: the passage 'text b' is twice in this list, with the scores 1 and 3\."
        with pytest.raises(InputError, match=message):
            list(import_lists(path, "flag_embedding", gathered))
        list(import_lists(tmp_path / "x.jsonl", "flag_embedding", gathered))


@pytest.mark.parametrize("layout", ["tevatron", "cadet", "lightning_ir"])
def test_a_passage_with_an_id_may_be_empty(tmp_path, layout):
    line = {
        "tevatron": tevatron(negative_passages=[{"docid": "b", "title": "B", "text": "", "score": 0.5}]),
        "cadet": cadet(passages=[{"docid": "a", "text": "text a", "score": 1.0}, B | {"title": "B", "text": ""}]),
        "lightning_ir": {
            "query": {"qid": "1", "text": "what"},
            "candidates": [{"docid": "a", "score": 1.0, "doc": "text a"}, B | {"doc": {"title": "B", "text": ""}}],
        },
    }[layout]
    with new_corpus(tmp_path / "new") as gathered:
        [found] = import_lists(write(tmp_path / "x.jsonl", line), layout, gathered)
    assert found.passage_ids == ["a", "b"] and load_corpus(tmp_path / "new").passages[1].as_py() == "B"


@pytest.mark.slow
def test_tevatron_trains_on_what_is_written(tmp_path, passages, real_lists):
    export_lists(real_lists, tmp_path / "x.jsonl", "tevatron", passages)
    data = load_dataset("json", data_files=str(tmp_path / "x.jsonl"), cache_dir=str(tmp_path), split="train")
    for row, query_list in zip(data, real_lists, strict=True):
        assert (row["query_id"], row["query"]) == (query_list.query_id, query_list.query)
        for side in ("positive_passages", "negative_passages"):
            assert row[side]
            for entry in row[side]:
                assert f"{entry['title']} {entry['text']}".strip() == passages.text(entry["docid"], "")


def cadet(**changes):
    """A good CADET line with changes."""
    entries = [{"docid": "a", "score": 1.0}, {"docid": "b", "score": 0.5}]
    return {"query": "what", "passages": entries} | changes


def flag(**changes):
    """A good FlagEmbedding line with changes."""
    return {"query": "w", "pos": ["text a"], "neg": ["text b"], "pos_scores": [1.0], "neg_scores": [0.5]} | changes


def tevatron(**changes):
    """A good line of Tevatron with changes."""
    sides = {
        "positive_passages": [{"docid": "a", "title": "T", "text": "text a", "score": 1.0}],
        "negative_passages": [{"docid": "b", "title": "", "text": "text b", "score": 0.5}],
    }
    return {"query_id": "17", "query": "what", **sides} | changes


def table(**changes):
    """A good sentence-transformers row with changes."""
    return {"query": "what", "positive": "text a", "negative": "text b", "label": [1.0, 0.5]} | changes


B = {"docid": "b", "score": 0.5}
BAD = [
    ("cadet", cadet(query=" "), "'query' is ' '"),
    ("cadet", {"query": "what"}, "no 'passages'; this line has 'query'"),
    ("cadet", cadet(passages="abc"), "'passages' is 'abc'; expected a list"),
    ("cadet", cadet(passages=[B, "b"]), "'b' in 'passages'"),
    ("cadet", cadet(passages=[B, {"docid": "a", "rankt5_score": 1}]), "a passage without 'score'.*score_key"),
    ("cadet", cadet(passages=[B, {"score": 1}]), "'docid' has a null"),
    ("cadet", cadet(passages=[B, B]), r"1 passage\(s\)"),
    ("cadet", cadet(passages=[A_HALF, B, B | {"score": 1}]), "passage 'b' is twice.*the scores 0.5 and 1"),
    ("cadet", cadet(passages=[B]), r"1 passage\(s\)"),
    ("cadet", cadet(passages=[B, {"docid": "zz", "score": 1}]), "'zz' is not in the corpus 'small'"),
    ("cadet", cadet(passages=[B, {"docid": "a", "score": float("nan")}]), "the score nan"),
    ("cadet", cadet(passages=[B, {"docid": "a", "score": 1e39}]), r"the score 1e\+39"),
    ("cadet", cadet(passages=[B, {"docid": "a", "score": 10**400}]), "finite in 32 bits"),
    ("cadet", cadet(passages=[B, {"docid": "a", "score": "1.5"}]), "the score '1.5'"),
    ("cadet", cadet(passages=[B, {"docid": "a", "text": "text c", "score": 1}]), "begins 'text c'.*begins 'T text a'"),
    ("cadet", cadet(positive_ids=["yy"]), "'yy' is not in the corpus"),
    ("cadet", cadet(corpus="nq"), "corpus 'nq', but the corpus given is 'small'"),
    ("cadet", cadet(qid="first"), r"query id 'first' is already at .*x\.jsonl:1"),
    ("flag_embedding", flag(pos_scores=None), "no 'pos_scores'.*score the pairs"),
    ("flag_embedding", flag(neg_scores=[1, 2]), "1 texts in 'neg' but 2 in 'neg_scores'"),
    ("flag_embedding", flag(neg=["text z"]), "no passage of the corpus 'small' has the text 'text z'"),
    ("flag_embedding", flag(neg=["T text a"]), "passage 'a' 'T text a' is twice.*the scores 1 and 0.5"),
    ("flag_embedding", flag(neg=[3]), "3 in 'neg'; expected a text"),
    ("flag_embedding", flag(pos_ids=["a"], neg_ids=["b"], passage_ids=["a", "c"]), "'passage_ids' are not those"),
    # the negative has no id: an order of the others alone must not drop it
    ("flag_embedding", flag(pos=["text a", "text c"], pos_scores=[1, 2], pos_ids=["a", "c"], passage_ids=["c", "a"]),
     "'passage_ids' are not those"),
    ("flag_embedding", flag(neg_scores=[float("inf")]), "the score inf"),
    ("flag_embedding", flag(neg=["text b", "text c", "text b"], neg_scores=[1, 2, 3]),
     "passage 'b' 'text b' is twice.*the scores 1 and 3"),
    ("tevatron", tevatron(query=None), "no 'query' or 'query_text'"),
    ("tevatron", tevatron(negative_passages=[{"docid": "b", "text": "text b"}]),
     "a passage without 'score' in 'negative_passages'; it has 'docid', 'text'.*scores=labels"),
    ("tevatron", tevatron(negative_passages=[{"score": 1}]), "a passage without 'docid' and 'text'"),
    ("tevatron", tevatron(negative_passages=["text b"]), "'text b' in 'negative_passages'; expected an object"),
    ("tevatron", tevatron(negative_passages=None), "no 'negative_passages'"),
    ("tevatron", tevatron(negative_passages=[{"docid": "b", "title": 3, "score": 1}]), "'title' is 3"),
    ("tevatron", tevatron(negative_passages=[{"docid": "a", "score": 9}]), "is twice.*the scores 1 and 9"),
    ("sentence_transformers", table(label=[0.5]), "'label' is a list of 1 for 2 passages.*margins"),
    ("sentence_transformers", table(label=0.5), "'label' is 0.5 for 2 passages"),
    ("sentence_transformers", table(label=None), "none of 'label', 'labels'"),
    ("sentence_transformers", table(label=[1, 2, 3]), "2 passages but 3 scores"),
    ("sentence_transformers", table(negative="text  b"), "has the text 'text  b'"),
    ("sentence_transformers", table(query=None), "no 'query' or 'anchor'"),
    ("sentence_transformers", {"query": "q", "document_ids": ["a"], "label": [1]}, "no column of passage.*resolve_ids"),
]  # fmt: skip


@pytest.mark.parametrize(("layout", "bad", "message"), BAD)
def test_bad_line_is_named_or_left_out(tmp_path, caplog, layout, bad, message):
    good = {
        "cadet": cadet(qid="first"),
        "flag_embedding": flag(),
        "tevatron": tevatron(),
        "sentence_transformers": table(),
    }[layout]
    path = write(tmp_path / "x.jsonl", good, bad)
    known = CorpusPassages(SMALL)
    with pytest.raises(InputError, match=message) as caught:
        list(import_lists(path, layout, known))
    assert str(caught.value).startswith(f"{path}:2: ") and "on_bad_list=drop" in str(caught.value)
    assert len(list(import_lists(path, layout, known, on_bad_list="drop"))) == 1
    assert "1 list(s) left out, 1 kept" in caplog.text and f"{path}:2" in caplog.text
    with pytest.raises(InputError, match=r"no list in it, but 1 that fail a check"):
        list(import_lists(write(tmp_path / "y.jsonl", good | bad | {"query": ""}), layout, known, on_bad_list="drop"))


@pytest.mark.parametrize(
    ("line", "where", "message"),
    [
        ("1 Q0 c 3 high x", 3, "the score 'high' is no number"),
        ("1 Q0 c 3 inf x", 3, "the score inf"),
        ("1 Q0 c 3 0.5", 3, "has 5 columns"),
        ("1 Q0 a 3 0.5 x", 3, "the passage 'a' is twice"),
        ("1 Q0 zz 3 0.5 x", 3, "'zz' is not in the corpus"),
        ("8 Q0 a 1 0.5 x\n8 Q0 b 2 0.4 x", 3, "the query '8' is not in the file of queries"),
        ("2 Q0 a 1 0.5 x\n2 Q0 b 2 0.4 x\n1 Q0 c 9 0.1 x", 5, "after those from line 1 on.*sort --stable"),
    ],
)
def test_bad_line_of_a_run_is_named(tmp_path, line, where, message):
    path = tmp_path / "x.run"
    path.write_text(f"1 Q0 a 1 2.5 x\n1 Q0 b 2 1.5 x\n{line}\n")
    write(tmp_path / "x.run.queries.jsonl", {"_id": "1", "text": "what"}, {"_id": "2", "text": "who"})
    with pytest.raises(InputError, match=message) as caught:
        list(import_lists(path, "trec", CorpusPassages(SMALL)))
    assert str(caught.value).startswith(f"{path}:{where}: ")


def test_files_beside_a_run_are_checked(tmp_path):
    path = tmp_path / "x.run"
    path.write_text("1 Q0 a 1 2.5 x\n1 Q0 b 2 1.5 x\n")
    known = CorpusPassages(SMALL)
    with pytest.raises(InputError, match=r"x\.run\.queries\.jsonl: no such file"):
        list(import_lists(path, "trec", known))
    write(tmp_path / "x.run.queries.jsonl", {"_id": "1", "text": "what"})
    qrels = tmp_path / "x.run.qrels.tsv"
    for text, message in {
        "query-id\tcorpus-id\tscore\n1\tzz\t1\n": r"qrels\.tsv:2: the passage 'zz'",
        "query-id\tcorpus-id\tscore\n1\ta\tyes\n": r"qrels\.tsv:2: '1\\ta\\tyes' is not 'query-id <tab> corpus-id",
    }.items():
        qrels.write_text(text)
        with pytest.raises(InputError, match=message):
            list(import_lists(path, "trec", known))


@pytest.mark.parametrize(
    ("layout", "options", "bad", "message"),
    [
        ("cadet", {}, replace(OTHER, passage_ids=["a", "zz"]), "'zz' is not in the corpus"),
        ("cadet", {}, replace(OTHER, corpus="nq"), "corpus 'nq'"),
        ("cadet", {}, GOOD, "the query id 'q1' is already at list 1"),
        ("trec", {}, replace(OTHER, query_id="q 2"), "the id 'q 2' has a space"),
        ("flag_embedding", {}, replace(OTHER, positive_ids=["a", "b"]), "needs a negative"),
        ("sentence_transformers", {"list_length": 3}, OTHER, "2 passages, fewer than list_length=3"),
    ],
)  # fmt: skip
def test_list_that_cannot_be_exported_is_named_or_left_out(tmp_path, layout, options, bad, message):
    path = tmp_path / "out.jsonl"
    path.write_text("what was there")
    with pytest.raises(InputError, match=message) as caught:
        export_lists([GOOD, bad], path, layout, CorpusPassages(SMALL), **options)
    assert "list 2 (query " in str(caught.value)
    assert path.read_text() == "what was there" and [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]
    assert export_lists([GOOD, bad], path, layout, CorpusPassages(SMALL), on_bad_list="drop", **options) == 1
    assert path.read_text().count("\n") == (3 if layout == "trec" else 1)


def test_lists_of_several_lengths_need_a_length_or_the_other_form(tmp_path):
    lists = [GOOD, OTHER]
    known = CorpusPassages(SMALL)
    with pytest.raises(InputError, match=r"has 2 passages, the first query 3.*list_length.*form=lists"):
        export_lists(lists, tmp_path / "x.parquet", "sentence_transformers", known)
    assert export_lists(lists, tmp_path / "x.parquet", "sentence_transformers", known, list_length=2) == 2
    back = list(import_lists(tmp_path / "x.parquet", "sentence_transformers", known))
    assert [q.passage_ids for q in back] == [["c", "a"], ["a", "b"]]


def test_texts_are_compared_with_the_corpus_unless_asked_not_to(tmp_path, passages, real_lists):
    export_lists(real_lists[:20], tmp_path / "x.jsonl", "cadet", passages)
    records = lines_of(tmp_path / "x.jsonl")
    for record in records:
        for entry in record["passages"]:
            entry["text"] = "  ".join(entry["text"][:200].split())  # cut and spaced otherwise, as pipelines do
    assert list(import_lists(write(tmp_path / "y.jsonl", *records), "cadet", passages)) == real_lists[:20]
    records[4]["passages"][1]["text"] = "of another corpus"
    with pytest.raises(InputError, match=r"z\.jsonl:5: the text of passage .* begins 'of another corpus'"):
        list(import_lists(write(tmp_path / "z.jsonl", *records), "cadet", passages))
    loose = CorpusPassages(passages.corpus, check_texts=False)
    assert list(import_lists(tmp_path / "z.jsonl", "cadet", loose)) == real_lists[:20]


def test_new_corpus_refuses_ids_without_a_text_or_with_two(tmp_path):
    one, two = {"docid": "a", "text": "x", "score": 1}, {"docid": "b", "text": "y", "score": 2}
    cases = {
        "comes without its text": cadet(passages=[one, {"docid": "c", "score": 2}]),
        "has the text 'z' here and another": cadet(passages=[one, two | {"text": "z"}]),
    }
    for message, bad in cases.items():
        path = write(tmp_path / "x.jsonl", cadet(passages=[one, two]), bad)
        with pytest.raises(InputError, match=message) as caught, new_corpus(tmp_path / "new") as gathered:
            list(import_lists(path, "cadet", gathered))
        assert str(caught.value).startswith(f"{path}:2: ")
        assert not list((tmp_path / "new").iterdir())  # nothing half-written
    (tmp_path / "new" / "corpus.jsonl.gz").write_bytes(b"")
    with pytest.raises(InputError, match="there is a corpus already"), new_corpus(tmp_path / "new"):
        pass


def test_wrong_layout_option_and_torn_table_are_named(tmp_path):
    known = CorpusPassages(SMALL)
    with pytest.raises(InputError, match=r"'cadett'.*Did you mean 'cadet'"):
        import_lists("x", "cadett", known)
    with pytest.raises(InputError, match="'trec' is 'score_key'; valid values are 'queries', 'qrels'"):
        import_lists("x", "trec", known, score_key="s")
    with pytest.raises(InputError, match="the form is 'rows'"):
        export_lists([GOOD], tmp_path / "x", "sentence_transformers", known, form="rows")
    with pytest.raises(InputError, match="There is no list to write"):
        export_lists([], tmp_path / "x.parquet", "sentence_transformers", known)
    export_lists([GOOD], tmp_path / "x.parquet", "sentence_transformers", known)
    (tmp_path / "torn.parquet").write_bytes((tmp_path / "x.parquet").read_bytes()[:-9])
    for name, message in {"torn.parquet": "not a whole Parquet file", "none.parquet": "no such file"}.items():
        with pytest.raises(InputError, match=message):
            list(import_lists(tmp_path / name, "sentence_transformers", known))
