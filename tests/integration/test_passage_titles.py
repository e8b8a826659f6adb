"""encoder.passage_titles=false: a passage is read as its text alone, in training, mining, evaluation and export."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
from hydra import compose, initialize_config_dir
from sentence_transformers import SentenceTransformer

from datamodules.corpus import load_corpus
from datamodules.pipeline.stages.mine import Dense
from experiments.evaluate import evaluate
from experiments.evaluation.typed import as_overrides
from experiments.training.train import run_experiment
from helpers.runs import CONF, config_of
from retriever.encoder.text_encoder import TextEncoder
from retriever.errors import InputError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def untitled(small_scifact, tmp_path_factory):
    """The same data set, without any title."""
    folder = shutil.copytree(small_scifact, tmp_path_factory.mktemp("untitled") / "small")
    lines = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    assert all(line["title"] for line in lines)
    (folder / "corpus.jsonl").write_text("".join(json.dumps(line | {"title": ""}) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def run(small_scifact, untitled, run_options, tmp_path_factory):
    """The folder of a run that leaves titles out, and of the same run where there are none."""
    place = tmp_path_factory.mktemp("runs")
    common = [*run_options, f"output_dir={place}", "export=true", "trainer.max_steps=2"]
    run_experiment(config_of(*common, "encoder.passage_titles=false"), place / "out" / "run")
    without = [option.replace(str(small_scifact), str(untitled)) for option in common]
    run_experiment(config_of(*without), place / "without" / "run")
    return place / "out" / "run", place / "without" / "run"


def results(folder):
    return json.loads((folder / "results.json").read_text())["datasets"]


def test_a_run_without_titles_is_that_of_a_corpus_without_them(run, run_options, tmp_path):
    out, without = run
    assert results(out) == results(without)
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in run]
    assert weights[0] == weights[1]
    run_experiment(config_of(*run_options, f"output_dir={tmp_path}", "trainer.max_steps=2"), tmp_path / "run")
    assert results(tmp_path / "run") != results(out), "titles make a difference"
    assert "text alone, without its title" in (out / "model" / "README.md").read_text()
    assert "title, a space, text" in (without / "model" / "README.md").read_text()


def test_the_exported_model_says_so_and_is_read_so(run, small_scifact, untitled, run_options, tmp_path):
    out, without = run
    assert json.loads((out / "model" / "config_sentence_transformers.json").read_text())["passage_titles"] is False
    assert not TextEncoder.from_pretrained(str(out / "model")).spec.passage_titles
    assert TextEncoder.from_pretrained(str(without / "model")).spec.passage_titles
    texts = ["A fish.", "Cold water."]
    there, here = (
        SentenceTransformer(str(folder / "model"), device="cpu").encode_document(texts) for folder in (out, without)
    )
    np.testing.assert_array_equal(there, here)
    for model in (out, out / "model"):
        typed = [str(model), f"sets={small_scifact}", f"output_dir={tmp_path}", "trainer.accelerator=cpu"]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            [found] = evaluate(compose("evaluate", as_overrides(typed)), tmp_path / model.name)
        assert results(found)["small"]["ndcg@10"]["best"] == results(out)["small"]["ndcg@10"]["best"]
    options = [option for option in run_options if not option.startswith("encoder.model=")]
    further = [f"encoder.model={out / 'model'}", "encoder.passage_titles=true", f"output_dir={tmp_path}"]
    with pytest.raises(InputError, match=r"passage_titles is True, and .* was trained with False"):
        run_experiment(config_of(*options, *further), tmp_path / "further")


def test_miners_read_what_their_encoder_reads(tiny_model, small_scifact, untitled, tmp_path):
    with_titles, texts = (load_corpus(folder) for folder in (small_scifact, untitled))
    queries = pa.array(["a fish in cold water", "the cell"])
    found = {}
    for name, corpus, titles in (("out", with_titles, False), ("without", texts, True), ("titles", with_titles, True)):
        encoder = TextEncoder.from_pretrained(str(tiny_model), passage_max_length=64, passage_titles=titles)
        dense = Dense(encoder, tmp_path)
        [hits] = dense.search(corpus, range(len(corpus)), queries, 10)
        found[name] = hits.rows.tolist(), dense.settings()
        assert ("without its title" in dense.describe()) == (not titles)
    assert found["out"][0] == found["without"][0] != found["titles"][0]
    assert found["out"][1] != found["without"][1] == found["titles"][1]
