"""A tiny real BERT with its tokenizer, and a real slice of SciFact, made once per test session."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from datamodules.corpus import SHIPPED, load_corpus, load_qrels, load_queries
from datamodules.query_lists import QueryList, read_query_lists, write_query_lists
from helpers.teacher_models import save_model, unigrams
from helpers.tiny_tokenizers import word_piece
from retriever.encoder.dense import Dense
from retriever.encoder.text_encoder import TextEncoder

torch.set_num_threads(1)  # tiny models are slower on two


@pytest.fixture(scope="session")
def scifact():
    """The shipped corpus, queries and train qrels."""
    folder = SHIPPED / "scifact"
    return load_corpus(folder), load_queries(folder), load_qrels(folder, "train")[1]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, scifact) -> Path:
    """A folder with a random two-layer BERT that pools by mean, and a WordPiece tokenizer of SciFact's claims."""
    folder = tmp_path_factory.mktemp("tiny_model")
    tokenizer = word_piece(scifact[1].values(), vocab_size=6000)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    kinds = {"": "Transformer", "1_Pooling": "Pooling"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"embedding_dimension": 32, "pooling_mode": "mean"}))
    return folder


@pytest.fixture(scope="session")
def tiny_model_with_dense(tmp_path_factory, tiny_model) -> Path:
    """A folder with the same BERT, and a random Dense module after its pooling."""
    plain = TextEncoder.from_pretrained(str(tiny_model))
    torch.manual_seed(0)
    whole = TextEncoder(plain.backbone, plain.tokenizer, plain.spec, head=[Dense(plain.dimension, 16)])
    return whole.save(tmp_path_factory.mktemp("with_dense"))


@pytest.fixture(scope="session")
def tiny_chat_model(tmp_path_factory, scifact) -> Path:
    """A folder with a random two-layer Llama, a byte-level tokenizer trained on SciFact's claims, a chat template."""
    folder = tmp_path_factory.mktemp("tiny_chat_model")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|start|>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(scifact[1].values(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|start|>", eos_token="<|end|>", pad_token="<|end|>"
    )
    fast.chat_template = (
        "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def texts(scifact) -> list[str]:
    """300 of SciFact's claims."""
    return list(scifact[1].values())[:300]


@pytest.fixture(scope="session")
def t5(tmp_path_factory, texts) -> str:
    """A folder with a random T5 of two layers, encoder and decoder."""
    folder = tmp_path_factory.mktemp("t5")
    vocabulary = len(unigrams(folder, texts)) + 7  # like the real ones, with rows that no token has
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
    return save_model(
        folder, "T5ForConditionalGeneration", "T5Config", 2.0, **sizes, vocab_size=vocabulary, dropout_rate=0.1
    )


@pytest.fixture
def tiny_encoder(tiny_model) -> TextEncoder:
    """A fresh encoder on the tiny model."""
    return TextEncoder.from_pretrained(str(tiny_model), pooling="mean", query_max_length=64, passage_max_length=64)


@pytest.fixture(scope="session")
def small_scifact(tmp_path_factory, scifact) -> Path:
    """120 real passages with 40 train and 20 test queries, in BEIR's layout."""
    corpus, queries, qrels = scifact
    folder = tmp_path_factory.mktemp("beir") / "small"
    (folder / "qrels").mkdir(parents=True)
    chosen = [q for q, judged in qrels.items() if len(judged) == 1][:60]
    relevant = {p for q in chosen for p in qrels[q]}
    ids = corpus.ids.to_pylist()
    rest = [p for p in ids if p not in relevant][: 120 - len(relevant)]
    keep = sorted(relevant | set(rest))
    rows = {p: i for i, p in enumerate(ids)}
    with open(folder / "corpus.jsonl", "w") as file:
        for p in keep:
            record = {"_id": p, "title": corpus.titles[rows[p]].as_py(), "text": corpus.texts[rows[p]].as_py()}
            file.write(json.dumps(record) + "\n")
    with open(folder / "queries.jsonl", "w") as file:
        for q in chosen:
            file.write(json.dumps({"_id": q, "text": queries[q]}) + "\n")
    for split, members in {"train": chosen[:40], "test": chosen[40:]}.items():
        with open(folder / "qrels" / f"{split}.tsv", "w") as file:
            file.write("query-id\tcorpus-id\tscore\n")
            file.writelines(f"{q}\t{p}\t{grade}\n" for q in members for p, (grade, _) in qrels[q].items())
    return folder


@pytest.fixture(scope="session")
def small_lists(small_scifact) -> Path:
    """Lists of 4 to 8 candidates for the slice's train queries; passages are shared between lists."""
    queries = load_queries(small_scifact)
    ids = load_corpus(small_scifact).ids.to_pylist()
    _, qrels = load_qrels(small_scifact, "train")
    lists = []
    for number, (query, judged) in enumerate(qrels.items()):
        positive = next(iter(judged))
        others = [ids[(7 * number + 3 * k) % 40] for k in range(3 + number % 5)]
        candidates = list(dict.fromkeys([positive, *others]))
        scores = [1.0 - 0.1 * k - 0.001 * number for k in range(len(candidates))]
        lists.append(QueryList(query, queries[query], "human", "small", [positive], candidates, scores))
    path = small_scifact / "lists" / "human.parquet"
    write_query_lists(path, lists, {"teacher": "made for tests"})
    return path


@pytest.fixture(scope="session")
def typed_lists(small_lists, tmp_path_factory) -> Path:
    """Train, dev and held-out lists of five query types, on the small slice of SciFact."""
    types = ("question", "keywords", "web", "title", "claim")
    lists = [QueryList(**{**vars(q), "query_type": types[i % 5]}) for i, q in enumerate(read_query_lists(small_lists))]
    folder = tmp_path_factory.mktemp("typed")
    for name, part in {"train": lists[:25], "dev": lists[25:32], "held_out": lists[32:]}.items():
        write_query_lists(folder / f"{name}.parquet", part, {"teacher": "made for tests"})
    return folder


@pytest.fixture(scope="session")
def run_options(tiny_model, small_scifact, small_lists):
    """Overrides for a run of seconds."""
    return [
        "name=small",
        f"encoder.model={tiny_model}",
        "encoder.passage_max_length=64",
        f"data.train=[{{path: {small_lists}, corpus: {small_scifact}}}]",
        "data.dev=null",
        "data.dev_fraction=0.25",
        "data.batch_size=8",
        f"evaluation.datasets=[{{path: {small_scifact}}}]",
        "module.learning_rate=1e-3",
        "trainer.max_epochs=2",
        "trainer.accelerator=cpu",
        "early_stopping.patience=null",
        "logger=csv",
    ]


@pytest.fixture
def small_run(run_options, tmp_path):
    """The same, with what is cached in a folder of the test."""
    return [*run_options, f"output_dir={tmp_path}"]


@pytest.fixture(scope="session")
def pipeline_options(tiny_model, tiny_chat_model, small_scifact):
    """Overrides for a whole pipeline of seconds: a random chat model whose scraps of words pass for queries."""
    return [
        f"corpus={small_scifact}",
        "queries={human: {source: judged, filter: false}, synthetic: {source: generated}}",
        f"encoder.model={tiny_model}",
        "encoder.passage_max_length=64",
        "generator.engine=transformers",
        f"generator.model={tiny_chat_model}",
        "generator.sampling={temperature: 0.8, max_tokens: 24, stop: [s, t]}",
        "sample.size=24",
        "generate.types=[question, keywords]",
        "generate.block_size=5",
        "generate.max_characters=200",
        "generate.language=null",
        "mine.depth=30",
        "mine.chunk=50",
        "score.block_size=16",
        "filter={consistency_rank: null, teacher_first: false, min_length: 10, min_top_quantile: 0.1, keep: 10}",
        "split.dev_fraction=0.3",
    ]


@pytest.fixture
def small_prepare(pipeline_options, tmp_path):
    """The same, into a folder of the test."""
    return [*pipeline_options, f"output_dir={tmp_path}"]


@pytest.fixture(scope="session")
def whole_lists(pipeline_options, tmp_path_factory):
    """The lists of one undisturbed run of it."""
    from helpers.runs import lists_in, prepare  # with all that a run needs, which a unit has no need of

    folder = tmp_path_factory.mktemp("whole")
    prepare([*pipeline_options, f"output_dir={folder}"])
    return lists_in(folder / "lists")


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_model, small_scifact, small_lists):
    """Small data and models, by which what a configuration does is observed."""
    from helpers.observed_settings import opened_world

    with opened_world(tmp_path_factory.mktemp("world"), tiny_model, small_scifact, small_lists) as opened:
        yield opened


@pytest.fixture
def said():
    """Every warning of a logger, as it is told."""
    from helpers.observed_settings import warnings_told

    with warnings_told() as lines:
        yield lines


@pytest.fixture
def no_hub(monkeypatch, tmp_path) -> Path:
    """A machine without a network, whose cache of the hub is empty: the folder of that cache."""

    def connect(_, address):
        raise AssertionError(f"{address} was asked")

    monkeypatch.setattr("socket.socket.connect", connect)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"
