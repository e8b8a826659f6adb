"""A second round of lists, with the hits of a model that was tuned on the first: real MiniLM on a cut of Cranfield."""

import json
import re
import shlex
import shutil

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from datamodules.corpus import SHIPPED, load_corpus
from datamodules.query_lists import read_metadata, read_query_lists
from datamodules.small_corpus import cut_data_set
from experiments import prepare as prepare_module
from experiments.preparation.pipeline import Pipeline
from experiments.training.train import run_experiment
from helpers.processes import run_in
from helpers.runs import config_of, error_of, prepare, prepare_config_of
from retriever.encoder.encoding import encode
from retriever.encoder.text_encoder import TextEncoder

pytestmark = pytest.mark.slow

GROUPS, PARTS = ("title", "sentence"), ("train", "dev")
LENGTH = 8


@pytest.fixture(scope="module")
def rounds(tmp_path_factory):
    """A folder with a corpus of 60 abstracts, lists of titles and sentences, and a run whose query side learned."""
    folder = tmp_path_factory.mktemp("rounds")
    cut_data_set(SHIPPED / "cranfield", folder / "small", 60, empty_passages="keep")
    prepare(
        [
            *("+data=cranfield_free", f"corpus={folder / 'small'}", f"output_dir={folder}", "mine.depth=12"),
            *(f"output={folder / 'lists'}", "+queries.sentence.limit=60", f"mine.candidates={LENGTH}"),
            *("filter.min_length=2", "split.dev_fraction=0.2", "split.evaluation=[]"),
        ]
    )
    # so fast that the model forgets what it knew, and finds other passages
    config = config_of(
        *("+exp=cranfield/objectives", f"query_lists={folder / 'lists'}", "name=first", "logger=csv"),
        *("module=infonce_conventional", "module.learning_rate=1e-3", "data.batch_size=16", "data.leak_guard=off"),
        *("trainer.max_steps=4", "trainer.val_check_interval=4", "scheduler.warmup_steps=1", "save_checkpoints=false"),
        *(f"evaluation.datasets=[{{path: {folder}/small}}]", f"output_dir={folder}", "diagnostics.every_n_steps=null"),
    )
    for file in (*config.data.train, *config.data.dev):
        file.corpus = str(folder / "small")
    run_experiment(config, folder / "run")
    return folder


@pytest.fixture(scope="module")
def second(rounds):
    """What the command said that made the second lists, and the bytes of the first ones before it."""
    before = content(rounds / "lists")
    words = ["--from", rounds / "lists", f"tuned={rounds / 'run'}", f"output={rounds / 'second'}"]
    status, said = run_in(rounds, "experiments.prepare", *map(str, words))
    assert status == 0, said
    return said, before


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lists_of(folder):
    """Group, part and id → each list."""
    names = [f"{group}.{part}" for group in GROUPS for part in PARTS]
    return {(name, q.query_id): q for name in names for q in read_query_lists(folder / f"{name}.parquet")}


def test_the_tuned_models_hits_stand_beside_the_old_under_the_same_teacher(rounds, second):
    said, before = second
    assert content(rounds / "lists") == before
    for stage in ("deduplicate", "queries"):
        assert f"{stage}: unchanged" in said
    old, new = lists_of(rounds / "lists"), lists_of(rounds / "second")
    assert list(new) == list(old)
    corpus = load_corpus(rounds / "small", empty_passages="keep")
    tuned, base = TextEncoder.from_pretrained(str(rounds / "run" / "model")), instantiate(config_of("name=x").encoder)
    queries = [q.query for q in new.values()]
    with torch.inference_mode():
        embedded = encode(tuned, tuned.tokenize(queries, "query")).numpy()
        passages = encode(base, base.tokenize(corpus.passages.to_pylist(), "passage")).numpy()
    best = corpus.ids.take(np.argmax(embedded @ passages.T, 1)).to_pylist()
    others = 0
    for (key, made), first in zip(new.items(), best, strict=True):
        known, scored = (dict(zip(q.passage_ids, q.teacher_scores, strict=True)) for q in (old[key], made))
        assert (made.query, made.positive_ids) == (old[key].query, old[key].positive_ids)
        assert len(scored) == LENGTH and first in scored
        assert {p: scored[p] for p in scored.keys() & known.keys()} == {
            p: known[p] for p in scored.keys() & known.keys()
        }
        others += len(scored.keys() - known.keys())
    assert 0 < others < LENGTH * len(new) / 2 + 1
    about = read_metadata(rounds / "second" / "title.train.parquet")
    assert about["mined"]["retrievers"]["tuned"] == str(rounds / "run")
    assert about["teacher"]["teacher"]["weights"] == {"bm25": 0.5, "dense": 0.5}


def test_the_command_that_it_names_trains_on_them(rounds, second):
    line = re.search(r"python -m experiments.run (--from .*)", second[0])[1]
    small = ["trainer.max_steps=1", f"hydra.run.dir={rounds / 'again'}"]
    status, said = run_in(rounds, "experiments.run", *shlex.split(line), *small)
    assert status == 0, said
    data = OmegaConf.load(rounds / "again" / "config.yaml").data
    for part in PARTS:
        assert [f.path for f in data[part]] == [str(rounds / "second" / f"{group}.{part}.parquet") for group in GROUPS]
        assert {f.corpus for f in data[part]} == {str(rounds / "small")}
    assert json.loads((rounds / "again" / "results.json").read_text())["optimiser_steps"] == 1


def test_it_goes_on_where_it_was_cut_off_and_takes_the_place_of_no_other_lists(rounds, second, monkeypatch, capsys):
    typed = ["--from", str(rounds / "second")]
    shutil.copytree(rounds / "run", rounds / "copy", dirs_exist_ok=True)
    status, said = run_in(rounds, "experiments.prepare", *typed)
    assert status == 0 and "mine: unchanged" in said and "split: unchanged" in said
    assert not (rounds / "prepare.log").exists()
    for words, message in {
        ("--from", str(rounds / "lists"), f"tuned={rounds / 'run'}"): "lists that were made before; they stay",
        (*typed, f"tuned={rounds / 'copy'}"): f"lists that were made with {rounds / 'run'}; they stay",
        (*typed, f"tuned={rounds / 'lists'}"): "so this run is not finished",
    }.items():
        assert message in error_of(prepare_module, monkeypatch, capsys, *words)


def test_where_both_sides_learned_the_tuned_model_reads_passages_too(rounds, small_run, small_prepare, tmp_path):
    run_experiment(config_of(*small_run, "trainer.max_epochs=1"), tmp_path / "run")
    typed = [*small_prepare, f"tuned={tmp_path / 'run'}", "mine.weights={bm25: 1, dense: 2}"]
    pipeline = Pipeline(prepare_config_of(*typed))
    tuned = pipeline._retrievers["tuned"]
    assert tuned.passage_encoder is None and tuned.encoder.spec.passage_max_length == 64
    assert tuned.encoder.fingerprint() != pipeline._encoder.fingerprint()
    assert pipeline.config.mine.weights == {"bm25": 1, "dense": 2, "tuned": 3}
    assert pipeline.config.filter.consistency_retrievers == ["bm25", "dense"]
    assert pipeline._teacher.weights == {"bm25": 0.5, "dense": 0.5}


def test_lists_say_what_they_were_made_with_and_no_secrets(small_prepare, tmp_path, monkeypatch):
    monkeypatch.setenv("OWN_API_KEY", "a-key-of-mine")
    prepare([*small_prepare, "generate.system=a-key-of-mine"])
    text = (tmp_path / "lists" / "config.yaml").read_text()
    assert "a-key-of-mine" not in text and "generator" in text
