"""Whole runs on a real slice of SciFact with a tiny real model."""

from __future__ import annotations

import json
import shlex
import sys

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from sentence_transformers import SentenceTransformer

from datamodules.caches import embed
from datamodules.corpus import load_evaluation_set
from experiments import run as run_module
from experiments.training.train import run_experiment
from helpers.plain_evaluation import ndcg_of
from helpers.runs import CONF, config_of, error_of, metrics, weights
from retriever.encoder.text_encoder import TextEncoder
from retriever.errors import InputError
from retriever.losses.listwise import listwise_distillation
from retriever.module import RetrieverModule

SLOW_MODULES = ("infonce_conventional", "infonce", "distillation")
MODULES = [*(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_MODULES), "combined"]


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES)
def test_run_folder_tells_the_whole_story(small_run, small_scifact, tiny_encoder, tmp_path, module):
    folder = tmp_path / "run"
    results = run_experiment(config_of(f"module={module}", *small_run), folder)
    assert results == json.loads((folder / "results.json").read_text())
    data = load_evaluation_set(str(small_scifact))
    figures = results["datasets"]["small"]["ndcg@10"]
    assert figures["base"] == pytest.approx(ndcg_of(tiny_encoder, tiny_encoder, data), abs=2e-5)
    exported = TextEncoder.from_pretrained(str(folder / "model"), passage_max_length=64)
    assert figures["best"] == pytest.approx(ndcg_of(exported, exported, data), abs=2e-5)
    assert results["seed"] == 1 and results["wall_time_s"] > 0 and results["peak_memory_bytes"] > 1e8
    assert results["optimiser_steps"] == 8 and results["steps"]["last"] == 8
    assert OmegaConf.load(folder / "config.yaml").module.learning_rate == 1e-3
    assert json.loads((folder / "environment.json").read_text())["packages"]["torch"] == torch.__version__
    for step in (0, 4, 8):
        per_query = json.loads((folder / "per_query" / "small" / f"step-{step:06d}.json").read_text())
        assert per_query["ndcg@10"].keys() == data.queries.keys()
        lines = (folder / "trec_runs" / "small" / f"step-{step:06d}.trec").read_text().splitlines()
        assert len(lines) == 20 * 100 and lines[0].split()[1::2][:2] == ["Q0", "1"]
    rows = metrics(folder)
    logged = {column for row in rows for column, value in row.items() if value}
    assert {"train/loss", "dev/loss", "dev/kl", "dev/top1_agreement", "dev/teacher_ndcg@10", "lr-AdamW"} <= logged
    assert {"val/small/ndcg@10", "val/small/recall@100", "val/small/mrr@10", "val/small/ndcg@10_delta"} <= logged
    steps = [int(row["step"]) for row in rows if row["val/small/ndcg@10"]]
    assert steps == [0, 4, 8] == [int(row["step"]) for row in rows if row["dev/loss"]]
    assert all(row["epoch"] for row in rows if row["dev/loss"])
    losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    assert len(losses) == 8 and losses[0] > 0
    card = (folder / "model" / "README.md").read_text()
    assert str(results["data"]["train_lists"]) in card and f"{figures['best']:.4f}" in card
    theirs = SentenceTransformer(str(folder / "model"), device="cpu").encode_query(["cells divide"])
    np.testing.assert_allclose(embed(exported.tokenize(["cells divide"], "query"), exported, 99), theirs, atol=1e-6)


@pytest.mark.slow
def test_same_seed_same_weights_other_seed_others(small_run, tmp_path):
    for name, seed in {"a": 1, "b": 1, "c": 2}.items():
        run_experiment(config_of(*small_run, f"seed={seed}", "export=false", "encoder.dropout=0.1"), tmp_path / name)
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert any(not torch.equal(a[key], c[key]) for key in a)


@pytest.mark.slow
def test_distillation_learns_the_teachers_order(small_run, tmp_path):
    run_experiment(
        config_of("module=distillation", *small_run, "trainer.max_epochs=15", "export=false"), tmp_path / "run"
    )
    rows = [r for r in metrics(tmp_path / "run") if r["dev/kl"]]
    losses = [float(r["train/loss"]) for r in metrics(tmp_path / "run") if r["train/loss"]]
    assert np.mean(losses[-4:]) < 0.5 * np.mean(losses[:4])
    assert len(rows) == 16


@pytest.mark.slow
def test_index_preserving_run_keeps_the_passages(small_run, small_scifact, tiny_encoder, tmp_path):
    folder = tmp_path / "run"
    # the last step's weights: dev lists of so few would keep the base model
    typed = ["module.train_passage_encoder=false", "save_checkpoints=false"]
    results = run_experiment(config_of(*small_run, *typed), folder)
    exported = TextEncoder.from_pretrained(str(folder / "model"), passage_max_length=64)
    data = load_evaluation_set(str(small_scifact))
    best = results["datasets"]["small"]["ndcg@10"]["best"]
    assert best == pytest.approx(ndcg_of(exported, tiny_encoder, data), abs=2e-5)
    assert results["steps"]["best"] == 8 and exported.fingerprint() != tiny_encoder.fingerprint()
    assert "passages must be encoded with the unchanged" in (folder / "model" / "README.md").read_text()


@pytest.mark.slow
def test_last_steps_are_evaluated_where_training_ends_between_validations(small_run, small_scifact, tmp_path):
    results = run_experiment(config_of(*small_run, "trainer.max_steps=3", "save_checkpoints=false"), tmp_path / "run")
    assert results["steps"] == {"base": 0, "best": 3, "last": 3} and not (tmp_path / "run" / "checkpoints").exists()
    exported = TextEncoder.from_pretrained(str(tmp_path / "run" / "model"), passage_max_length=64)
    figure = results["datasets"]["small"]["ndcg@10"]["last"]
    assert figure == pytest.approx(ndcg_of(exported, exported, load_evaluation_set(str(small_scifact))), abs=2e-5)


@pytest.mark.slow
def test_dev_figures_are_float32_under_bfloat16(small_run, tmp_path, monkeypatch):
    seen = []

    def watched(scores, *rest):
        seen.append(scores)
        return listwise_distillation(scores, *rest)

    monkeypatch.setattr("retriever.agreement.listwise_distillation", watched)
    options = ["module=infonce", "trainer.precision=bf16-mixed", "trainer.max_epochs=1", "export=false"]
    run_experiment(config_of(*small_run, *options), tmp_path / "run")
    assert seen and all(scores.dtype == torch.float32 for scores in seen)
    assert all((scores.bfloat16().float() != scores).any() for scores in seen)


@pytest.mark.slow
def test_bfloat16_trains_to_nearly_the_same_losses_which_are_float32(small_run, tmp_path, monkeypatch):
    losses, types = {}, set()
    step = RetrieverModule.training_step

    def watched(self, batch, batch_idx):
        loss = step(self, batch, batch_idx)
        types.add((torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None, loss.dtype))
        return loss

    monkeypatch.setattr(RetrieverModule, "training_step", watched)
    for precision in ("32-true", "bf16-mixed"):
        run_experiment(config_of(*small_run, f"trainer.precision={precision}", "export=false"), tmp_path / precision)
        losses[precision] = [float(row["train/loss"]) for row in metrics(tmp_path / precision) if row["train/loss"]]
    assert types == {(None, torch.float32), (torch.bfloat16, torch.float32)}
    assert losses["bf16-mixed"] != losses["32-true"]
    assert losses["bf16-mixed"] == pytest.approx(losses["32-true"], rel=0.1)


@pytest.mark.slow
def test_nan_loss_stops_the_run_and_names_the_queries(small_run, tmp_path):
    with pytest.raises(InputError, match=r"loss is nan at step [1-8], on the queries \d+, \d+"):
        run_experiment(config_of(*small_run, "module.learning_rate=1e30", "scheduler.warmup_steps=1"), tmp_path / "run")


@pytest.mark.slow
def test_early_stopping_waits_for_all_metrics_and_the_best_step_is_chosen(small_run, tmp_path):
    options = ["trainer.max_epochs=40", "early_stopping.patience=2", "module.learning_rate=1e-2", "export=false"]
    results = run_experiment(config_of("module=distillation", *small_run, *options), tmp_path / "run")
    rows = [r for r in metrics(tmp_path / "run") if r["dev/loss"]]
    kl, loss = ([float(r[f"dev/{name}"]) for r in rows] for name in ("kl", "loss"))
    assert 4 < len(rows) < 40
    assert min(kl[:-2]) <= min(kl[-2:]) and min(loss[:-2]) <= min(loss[-2:])
    assert results["steps"]["best"] == 4 * int(np.argmin(loss)) > 0


@pytest.mark.slow
@pytest.mark.parametrize("group", ["encoder", "module", "data", "evaluation", "trainer", "logger", "pruner"])
def test_every_option_composes(group):
    for path in (CONF / group).glob("[!_]*.yaml"):
        config = config_of(f"{group}={path.stem}")
        assert config[group] is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("module.temprature=1", "Did you mean 'temperature'?"),
        ("trainer.max_epoch=1", "Did you mean 'max_epochs'?"),
        ("no_such_key=1", "There is no 'no_such_key' in the configuration; it has allow_test_selection"),
        ("module=infonse", "There is no 'infonse' in module; it has approx_ndcg, combined, distillation, "),
        ("+exp=scifact/combind", "Did you mean 'scifact/combined'?"),
        ("module.temperature=0", "error: module.temperature is 0"),
        ("module.positive=teachr", "valid values are 'teacher', 'labelled'. Did you mean 'teacher'?"),
        ("+module.foo=3", "unexpected keyword argument 'foo'"),
        ("criterion=val/small/ndcg@10", "the queries that are reported would choose the checkpoint"),
        ("criterion_mode=least", "must be 'min' or 'max'"),
        ("resume=nothing", "nothing/checkpoints/last.ckpt: no such checkpoint"),
        ("criterion=dev/los", "Did you mean 'dev/loss'?"),
        ("early_stopping={patience: 2, monitors: [val/small/ndcg@10]}", "would choose the checkpoint"),
        ("data.normalization=minmax", "it must be 'percentile' or 'list_minmax' or 'none'"),
        ("diagnostics.every_n_steps=0", "diagnostics.every_n_steps is 0; it must be a finite number above 0"),
        ("evaluation.datasets=[{path: nowhere}]", "There is no data set 'nowhere'"),
    ],
)
def test_wrong_configuration_is_one_helpful_sentence(small_run, monkeypatch, capsys, tmp_path, argument, message):
    error = error_of(run_module, monkeypatch, capsys, *small_run, f"hydra.run.dir={tmp_path}/run", argument)
    assert message in error and "Traceback" not in error and "error: " in error
    assert "Error executing job" not in error and not (tmp_path / "run").exists()  # what was refused leaves nothing


@pytest.mark.slow
def test_a_run_without_evaluation_sets_ends_well(small_run, monkeypatch, capsys, tmp_path):
    folder = tmp_path / "run"
    typed = [*small_run, f"hydra.run.dir={folder}", "trainer.max_epochs=1", "evaluation.datasets=[]"]
    monkeypatch.setattr(sys, "argv", ["run.py", *typed])
    run_module.main()
    assert (folder / "model").is_dir() and "error" not in "".join(capsys.readouterr())


@pytest.mark.slow
def test_sweep_trains_every_arm_and_ends_with_a_table(small_run, monkeypatch, capsys, tmp_path):
    options = [o for o in small_run if not o.startswith("name=")]
    sweep = [
        "-m",
        "module=infonce,distillation",
        "seed=1,2",
        f"hydra.sweep.dir={tmp_path}/sweep",
        "trainer.max_epochs=1",
    ]
    monkeypatch.setattr(sys, "argv", ["run.py", *sweep, *options])
    run_module.main()
    table = (tmp_path / "sweep" / "comparison.md").read_text()
    assert "| infonce | 1, 2 |" in table and "| distillation | 1, 2 |" in table and "| base |" in table
    assert len(list((tmp_path / "sweep").glob("*/results.json"))) == 4
    assert "difference to base" in capsys.readouterr().out


def test_the_next_steps_can_be_typed(tmp_path, capsys):
    folder = tmp_path / "a run"
    run_module.print_next_steps(folder)
    assert capsys.readouterr().out == f"Beside another run: python -m experiments.compare '{folder}' RUN\n"
    (folder / "model").mkdir(parents=True)
    run_module.print_next_steps(folder)
    first, second, _ = capsys.readouterr().out.splitlines()
    assert first == f"The model: {folder / 'model'}"
    assert shlex.split(second.partition(": ")[2])[1:] == ["-m", "experiments.evaluate", str(folder), "sets=cranfield"]
