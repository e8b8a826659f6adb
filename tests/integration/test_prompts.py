"""Prompts by query type, evaluation set and corpus: in training, mining, evaluation, the export and its card."""

import numpy as np
import pyarrow as pa
import pytest
from sentence_transformers import SentenceTransformer

from callbacks.evaluation.per_query import read_per_query
from datamodules.corpus import load_corpus, load_evaluation_set
from datamodules.pipeline.stages.mine import Dense
from datamodules.prompted import passage_tokens, query_tokens
from datamodules.query_lists import open_query_lists
from experiments.training.train import run_experiment
from helpers.runs import config_of
from retriever.encoder import TextEncoder
from retriever.encoder.encoding import encode, evaluating
from retriever.encoder.spec import EncoderSpec
from retriever.errors import InputError

PROMPTS = {"default": "query: ", "question": "a question: ", "small": "of the small one: "}


@pytest.fixture
def prompted(tiny_model):
    return TextEncoder.from_pretrained(str(tiny_model), query_prompt=PROMPTS, passage_prompt={"small": "passage: "})


def texts_of(encoder, tokens):
    return [encoder.tokenizer.decode(tokens.ids[a:b]) for a, b in zip(tokens.offsets, tokens.offsets[1:], strict=False)]


def plain(encoder, text, prompt):
    return encoder.tokenizer.decode(encoder.tokenizer(prompt + text, truncation=True, max_length=64)["input_ids"])


def test_the_most_particular_name_decides():
    spec = EncoderSpec(query_prompt=PROMPTS)
    assert spec.prompt("query") == spec.prompted_for("other", None).query_prompt == "query: "
    assert spec.prompted_for("question", "small").query_prompt == "a question: "
    assert spec.prompted_for("title", "small").query_prompt == "of the small one: "
    assert EncoderSpec(query_prompt={"a": "x"}).prompted_for("b").query_prompt == ""
    assert spec.prompted_names == {"question", "small"} and EncoderSpec().prompted_for("a") == EncoderSpec()
    with pytest.raises(InputError, match="expected a name and its prompt"):
        EncoderSpec(query_prompt={"a": None})


def test_each_list_is_read_behind_the_prompt_of_its_type(prompted, small_scifact, typed_lists, tmp_path):
    corpus = load_corpus(small_scifact)
    lists, _ = open_query_lists(typed_lists / "train.parquet", corpus, tmp_path)
    assert len(set(lists.query_types.to_pylist())) > 1
    found = texts_of(prompted, query_tokens(lists.queries, prompted, tmp_path, [corpus.name], lists.query_types))
    for text, kind, seen in zip(lists.queries.to_pylist(), lists.query_types.to_pylist(), found, strict=True):
        assert seen == plain(prompted, text, PROMPTS.get(kind, PROMPTS["small"]))
    [first, *_] = texts_of(prompted, passage_tokens(corpus, prompted, tmp_path))
    assert first.startswith(plain(prompted, "", "passage: ").removesuffix("[SEP]").rstrip())


@pytest.mark.slow
def test_a_run_trains_evaluates_and_exports_by_them(tiny_model, small_scifact, typed_lists, tmp_path):
    def ran(name, prompt, *more):
        options = [f"encoder.model={tiny_model}", "encoder.pooling=mean", f"encoder.query_prompt={prompt}"]
        options += [f"data.train=[{{path: {typed_lists}/train.parquet, corpus: {small_scifact}}}]"]
        options += [f"data.dev=[{{path: {typed_lists}/dev.parquet, corpus: {small_scifact}}}]", "data.leak_guard=off"]
        options += [
            f"evaluation.datasets=[{{path: {small_scifact}}}]",
            "trainer.max_steps=2",
            "trainer.accelerator=cpu",
        ]
        options += ["logger=csv", f"name={name}", "export=true", f"cache_dir={tmp_path}/cache", *more]
        record = run_experiment(config_of(*options), tmp_path / name)
        return record, read_per_query(tmp_path / name / "per_query" / "small" / "step-000002.json")

    several, values = ran("several", "{default: 'zzz: ', small: 'a set: '}")
    one, same = ran("one", "'a set: '")
    assert several["datasets"] == one["datasets"] and values == same  # all that is there belongs to that corpus
    other, _ = ran("other", "{default: 'a set: ', small: 'quite another: '}")
    assert other["datasets"]["small"]["ndcg@10"] != one["datasets"]["small"]["ndcg@10"]
    folder = tmp_path / "several" / "model"
    assert TextEncoder.from_pretrained(str(folder)).spec.query_prompt == {"default": "zzz: ", "small": "a set: "}
    exported = SentenceTransformer(str(folder), device="cpu")
    assert exported.prompts["query"] == "zzz: " and exported.prompts["query:small"] == "a set: "
    queries = list(load_evaluation_set(small_scifact, "test").queries.values())[:4]
    ours = TextEncoder.from_pretrained(str(folder)).prompted_for("small")
    tokens = ours.tokenize(queries, "query")
    with evaluating(ours):
        mine = encode(ours, tokens).detach().numpy()
    np.testing.assert_allclose(exported.encode(queries, prompt_name="query:small"), mine, atol=1e-5)
    card = (folder / "README.md").read_text()
    assert "small: `'a set: '`" in card and "default: `'zzz: '`" in card


@pytest.mark.slow
def test_prompts_for_what_is_not_there_are_said(tiny_model, small_scifact, small_lists, tmp_path, caplog):
    options = [f"encoder.model={tiny_model}", "encoder.pooling=mean", "trainer.max_steps=1", "trainer.accelerator=cpu"]
    options += [f"data.{part}=[{{path: {small_lists}, corpus: {small_scifact}}}]" for part in ("train", "dev")]
    options += [f"evaluation.datasets=[{{path: {small_scifact}}}]", "data.leak_guard=off", "logger=csv", "name=x"]
    run_experiment(config_of(*options, "encoder.query_prompt={default: 'q: ', smal: 'x: '}"), tmp_path / "run")
    assert "a prompt for 'smal', which is no query type, evaluation set or corpus here" in caplog.text
    assert "Did you mean 'small'?" in caplog.text


@pytest.mark.slow
def test_mining_asks_by_them(tiny_model, small_scifact, tmp_path):
    corpus = load_corpus(small_scifact)
    queries = load_evaluation_set(small_scifact, "test").queries
    texts = pa.array(list(queries.values()))
    kinds = pa.array(["question" if n % 2 else "title" for n in range(len(texts))])

    def hits(prompts, types):
        encoder = TextEncoder.from_pretrained(str(tiny_model), query_prompt=prompts)
        [found] = Dense(encoder, tmp_path).search(corpus, range(len(corpus)), texts, 5, types)
        return found.scores

    both = hits({"default": "query: ", "question": "quite another thing: "}, kinds)
    np.testing.assert_allclose(both[::2], hits("query: ", kinds)[::2], atol=1e-5)
    np.testing.assert_allclose(both[1::2], hits("quite another thing: ", None)[1::2], atol=1e-5)
    assert not np.allclose(both[1::2], hits("query: ", None)[1::2], atol=1e-3)
