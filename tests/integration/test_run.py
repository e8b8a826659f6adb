"""Whole runs on a real slice of SciFact with a tiny real model."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import random
import signal
import sys
import time

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from sentence_transformers import SentenceTransformer

from callbacks import AtomicCheckpoints
from datamodules.caches import embed
from datamodules.corpus import load_evaluation_set
from experiments import run as run_module
from experiments.comparison.tables import compare
from experiments.run import run_experiment
from experiments.training.train import _slurm
from helpers.kills import killed_at
from helpers.plain_evaluation import ndcg_of
from helpers.processes import PATIENCE, begin, end, finish, free_port, start
from helpers.ray_sweeps import ray_worker, start_on_ray
from helpers.runs import CONF, config_of, error_of, metrics, weights
from retriever.encoder.text_encoder import TextEncoder
from retriever.errors import InputError
from retriever.losses.listwise import listwise_distillation
from retriever.module import RetrieverModule

KILLS = int(os.environ.get("FAULT_KILLS", 1))
SLOW_MODULES = ("infonce_conventional", "infonce", "distillation")
MODULES = [*(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_MODULES), "combined"]


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
    results = run_experiment(config_of(*small_run, "module.train_passage_encoder=false"), folder)
    exported = TextEncoder.from_pretrained(str(folder / "model"), passage_max_length=64)
    data = load_evaluation_set(str(small_scifact))
    best = results["datasets"]["small"]["ndcg@10"]["best"]
    assert best == pytest.approx(ndcg_of(exported, tiny_encoder, data), abs=2e-5)
    assert exported.fingerprint() != tiny_encoder.fingerprint()
    assert "passages must be encoded with the unchanged" in (folder / "model" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("frozen", "validate_every"), [(False, 1.0), (True, 1.0), (False, 0.5)])
def test_killed_run_resumes_to_the_same_weights_and_figures(small_run, tmp_path, frozen, validate_every):
    options = [
        *small_run,
        "trainer.max_epochs=4",
        f"trainer.val_check_interval={validate_every}",
        f"module.train_passage_encoder={not frozen}",
        "encoder.dropout=0.1",
    ]
    whole = run_experiment(config_of(*options), tmp_path / "whole")
    with killed_at(11):  # the last checkpoint is at 8 of 4 steps an epoch, or (in mid-epoch) at 10
        run_experiment(config_of(*options), tmp_path / "cut")
    before = metrics(tmp_path / "cut")
    resumed = run_experiment(config_of(*options, f"resume={tmp_path}/cut"), tmp_path / "cut")
    expected, got = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    assert resumed["datasets"] == whole["datasets"] and resumed["steps"] == whole["steps"]
    with open(tmp_path / "cut" / "metrics-part1.csv") as file:
        assert list(csv.DictReader(file)) == before
    assert compare([tmp_path / "cut"])["small"][1].ndcg == pytest.approx(compare([tmp_path / "whole"])["small"][1].ndcg)


@pytest.mark.slow
def test_last_steps_are_evaluated_where_training_ends_between_validations(small_run, small_scifact, tmp_path):
    results = run_experiment(config_of(*small_run, "trainer.max_steps=3"), tmp_path / "run")
    assert results["steps"] == {"base": 0, "best": 3, "last": 3}
    exported = TextEncoder.from_pretrained(str(tmp_path / "run" / "model"), passage_max_length=64)
    figure = results["datasets"]["small"]["ndcg@10"]["last"]
    assert figure == pytest.approx(ndcg_of(exported, exported, load_evaluation_set(str(small_scifact))), abs=2e-5)
    kept = run_experiment(config_of(*small_run, "save_checkpoints=false"), tmp_path / "kept")
    assert kept["steps"]["best"] == 8 and not (tmp_path / "kept" / "checkpoints").exists()


@pytest.mark.slow
def test_killed_process_resumes_to_the_same_bits(small_run, tmp_path):
    options = [*small_run, "trainer.max_epochs=10", "trainer.val_check_interval=2", "encoder.dropout=0.1"]
    options.append("export=false")
    whole = run_experiment(config_of(*options), tmp_path / "whole")
    folder = tmp_path / "cut"
    last = folder / "checkpoints" / "last.ckpt"
    moments, seen, resume = random.Random(7), 0, []
    for _ in range(2):
        process = start(folder, *options, f"hydra.run.dir={folder}", *resume)
        deadline = time.monotonic() + 120
        while (not last.is_file() or last.stat().st_mtime_ns == seen) and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.3))
        end(process)
        assert process.exitcode == -signal.SIGKILL
        seen, resume = last.stat().st_mtime_ns, [f"resume={folder}"]
    assert 0 < torch.load(last, weights_only=True)["global_step"] < 40
    finish(folder, start(folder, *options, *resume))
    expected, got = (
        torch.load(tmp_path / run / "checkpoints" / "last.ckpt", weights_only=True) for run in ("whole", "cut")
    )
    assert expected["global_step"] == 40  # though the best step was long before
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step"):
        torch.testing.assert_close(got[part], expected[part], rtol=0, atol=0)
    assert rows_by_step(folder) == rows_by_step(tmp_path / "whole")
    differing = {"wall_time_s", "peak_memory_bytes"}
    resumed = json.loads((folder / "results.json").read_text())
    assert {k: v for k, v in resumed.items() if k not in differing} == {
        k: v for k, v in whole.items() if k not in differing
    }
    for kind in ("trec_runs", "per_query"):
        files = sorted(p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole" / kind).rglob("step-*"))
        assert len(files) == 21
        assert all((folder / file).read_bytes() == (tmp_path / "whole" / file).read_bytes() for file in files)


def rows_by_step(folder):
    """(step, columns) → the row of the last part that has one."""
    parts = [*sorted(folder.glob("metrics-part*.csv"), key=lambda p: int(p.stem[12:])), folder / "metrics.csv"]
    rows = {}
    for part in parts:
        with open(part) as file:
            for row in csv.DictReader(file):
                row.pop("diagnostics/tokens_per_second", None)  # a time
                filled = {column: value for column, value in row.items() if value}
                rows[row["step"], frozenset(filled)] = filled
    return rows


def save_again_and_again(path):
    weights = torch.zeros(2_000_000)
    for number in range(10_000):
        AtomicCheckpoints().save_checkpoint({"weights": weights, "number": torch.tensor(number)}, path)


@pytest.mark.slow
def test_checkpoint_is_whole_whenever_the_process_is_killed(tmp_path):
    path, moments = tmp_path / "last.ckpt", random.Random(3)
    for _ in range(10):
        process, _ = begin(save_again_and_again, path)
        while not path.is_file():
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.1))
        end(process)
        assert torch.load(path, weights_only=True)["weights"].shape == (2_000_000,)


@pytest.mark.slow
def test_two_processes_give_the_figures_of_one_however_they_are_started(small_run, tmp_path):
    options = [*small_run, "encoder.dropout=0", "export=false"]
    folder = tmp_path / "one"
    record = run_experiment(config_of(*options), folder)
    one, figure = weights(folder), record["datasets"]["small"]["ndcg@10"]
    folder = tmp_path / "lightning"
    finish(folder, start(folder, *options, "trainer.devices=2", f"hydra.run.dir={folder}"))
    of_two = json.loads((folder / "results.json").read_text())
    two, figures = weights(folder), of_two["datasets"]
    # each query once an epoch; but passages that both ranks need are encoded by both
    for found in (record, of_two):
        assert found["texts_encoded"] - found["passages_encoded"] == 2 * found["data"]["train_lists"]
    assert record["passages_encoded"] < of_two["passages_encoded"] < 2 * record["passages_encoded"]
    assert record["tokens_encoded"] < of_two["tokens_encoded"]
    # Adam divides by the root of the squared gradient: where that is nearly 0, rounding moves a weight by up to lr
    close = torch.cat([((one[key] - two[key]).abs() < 1e-4).float().flatten() for key in one])
    assert close.mean() > 0.999
    assert figures["small"]["ndcg@10"]["base"] == figure["base"]
    assert figures["small"]["ndcg@10"]["last"] == pytest.approx(figure["last"], abs=0.03)

    def two_nodes(folder, rank):
        torchrun = ["--nnodes=2", f"--node_rank={rank}", f"--rdzv_endpoint=127.0.0.1:{port}", "--rdzv_backend=c10d"]
        torchrun += ["--rdzv_id=test", "-m", "experiments.run"]
        return start(folder, *torchrun, *named, "trainer.num_nodes=2", module="torch.distributed.run")

    def slurm_tasks(folder, rank):
        variables = {"NTASKS": 2, "NTASKS_PER_NODE": 2, "NNODES": 1, "PROCID": rank, "LOCALID": rank, "NODEID": 0}
        variables |= {"JOB_ID": port - 15000, "JOB_NAME": "train", "NODELIST": "127.0.0.1"}
        environment = {f"SLURM_{name}": str(value) for name, value in variables.items()}
        return start(folder, *named, "trainer.devices=2", MASTER_PORT=str(port), **environment)

    for launch in (two_nodes, slurm_tasks):
        folder = tmp_path / launch.__name__
        named = [*options, f"hydra.run.dir={folder}/${{now:%S}}"]
        port = free_port()
        first = launch(folder, 0)
        time.sleep(1.1)  # the ranks would name their folders differently
        finish(folder, first, launch(folder, 1))
        [run] = folder.iterdir()
        assert json.loads((run / "results.json").read_text())["datasets"] == figures
        torch.testing.assert_close(weights(run), two, rtol=0, atol=0)
        assert not list(run.glob("metrics-part*"))  # one rank kept the record


@pytest.mark.slow
def test_dev_figures_are_float32_under_bfloat16(small_run, tmp_path, monkeypatch):
    seen = []

    def watched(scores, *rest):
        seen.append(scores)
        return listwise_distillation(scores, *rest)

    monkeypatch.setattr("retriever.module.listwise_distillation", watched)
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


def test_nan_loss_stops_the_run_and_names_the_queries(small_run, tmp_path):
    with pytest.raises(InputError, match=r"loss is nan at step [1-8], on the queries \d+, \d+"):
        run_experiment(config_of(*small_run, "module.learning_rate=1e30", "scheduler.warmup_steps=1"), tmp_path / "run")


@pytest.mark.slow
def test_early_stopping_waits_for_all_metrics_and_the_best_step_is_chosen(small_run, tmp_path):
    options = ["trainer.max_epochs=40", "early_stopping.patience=2", "module.learning_rate=3e-2", "export=false"]
    results = run_experiment(config_of("module=distillation", *small_run, *options), tmp_path / "run")
    rows = [r for r in metrics(tmp_path / "run") if r["dev/loss"]][1:]
    kl, loss = ([float(r[f"dev/{name}"]) for r in rows] for name in ("kl", "loss"))
    assert len(rows) < 40
    assert min(kl[:-2]) <= min(kl[-2:]) and min(loss[:-2]) <= min(loss[-2:])
    assert results["steps"]["best"] == 4 * (1 + int(np.argmin(loss)))


@pytest.mark.slow
@pytest.mark.parametrize("group", ["encoder", "module", "data", "evaluation", "trainer", "logger", "pruner"])
def test_every_option_composes(group):
    for path in (CONF / group).glob("[!_]*.yaml"):
        config = config_of(f"{group}={path.stem}")
        assert config[group] is not None


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("module.temprature=1", "Did you mean 'temperature'?"),
        ("trainer.max_epoch=1", "Did you mean 'max_epochs'?"),
        ("no_such_key=1", "There is no 'no_such_key' in the configuration; it has allow_test_selection"),
        ("module=infonse", "There is no 'infonse' in module; it has approx_ndcg, combined, distillation, "),
        ("+exp=scifact/combind", "Did you mean 'scifact/combined'?"),
        ("module.temperature=0", "temperature is 0"),
        ("module.positive=teachr", "valid values are 'teacher', 'labelled'. Did you mean 'teacher'?"),
        ("+module.foo=3", "unexpected keyword argument 'foo'"),
        ("criterion=val/small/ndcg@10", "the queries that are reported would choose the checkpoint"),
        ("criterion_mode=least", "must be 'min' or 'max'"),
        ("resume=nothing", "nothing/checkpoints/last.ckpt: no such checkpoint"),
        ("criterion=dev/los", "Did you mean 'dev/loss'?"),
        ("early_stopping={patience: 2, monitors: [val/small/ndcg@10]}", "would choose the checkpoint"),
        ("data.normalization=minmax", "valid values are 'percentile'"),
        ("diagnostics.every_n_steps=0", "diagnostics.every_n_steps is 0; it must be a finite number above 0"),
        ("evaluation.datasets=[{path: nowhere}]", "There is no data set 'nowhere'"),
    ],
)
def test_wrong_configuration_is_one_helpful_sentence(small_run, monkeypatch, capsys, tmp_path, argument, message):
    error = error_of(run_module, monkeypatch, capsys, *small_run, f"hydra.run.dir={tmp_path}/run", argument)
    assert message in error and "Traceback" not in error and "error: " in error


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


LAUNCHERS = sorted(path.stem for path in (CONF / "hydra" / "launcher").glob("*.yaml"))


@pytest.mark.skipif(not importlib.util.find_spec("submitit"), reason="the extra 'cluster'")
@pytest.mark.parametrize("name", LAUNCHERS)
def test_every_launcher_composes(name):
    options = ["trainer=gpu", "trainer.devices=4", "trainer.num_nodes=2", f"hydra/launcher={name}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        launcher = compose("run", options, return_hydra_config=True).hydra.launcher
    assert launcher._target_.startswith("hydra_plugins.")
    if name == "slurm_gpu":
        assert (launcher.nodes, launcher.tasks_per_node, launcher.gpus_per_node) == (2, 4, 4)


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("submitit"), reason="the extra 'cluster'")
def test_sweep_on_other_processes_ends_with_the_table(small_run, tmp_path):
    options = ["trainer.max_epochs=1", "seed=1,2", "export=false", f"hydra.sweep.dir={tmp_path}/sweep"]
    finish(tmp_path / "sweep", start(tmp_path / "sweep", "-m", *small_run, *options, "hydra/launcher=local_processes"))
    assert "| small | 1, 2 |" in (tmp_path / "sweep" / "comparison.md").read_text()


@pytest.mark.slow
@pytest.mark.timeout(420 * KILLS)
@pytest.mark.skipif(not importlib.util.find_spec("hydra_plugins.hydra_ray_launcher"), reason="the extra 'cluster'")
@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked for in /proc")
def test_sweep_on_ray_whose_worker_is_killed_keeps_what_is_finished_and_goes_on(small_run, tmp_path):
    """``FAULT_KILLS=n``: n workers are killed."""
    kills, moments, sweep = KILLS, random.Random(1), tmp_path / "sweep"
    options = [*small_run, "trainer.max_epochs=4", "trainer.val_check_interval=2", "export=false"]
    line = ["-m", *options, "seed=1,2", f"hydra.sweep.dir={sweep}", "hydra/launcher=ray_cpu"]
    line += ["+hydra.launcher.ray.init.num_cpus=1", "+hydra.launcher.ray.remote.max_retries=0"]
    for number in range(kills):
        process = start_on_ray(sweep, *line)
        while not list(sweep.glob("001_*/checkpoints/last.ckpt")) or ray_worker(process.pid) is None:
            assert process.is_alive(), "it must not end before it is struck"
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.5) if number else 0)
        os.kill(ray_worker(process.pid), signal.SIGKILL)
        process.join(timeout=PATIENCE)
        assert process.exitcode == 1
        log = sorted(tmp_path.glob("sweep.*.log"))[-1].read_text()
        assert "error: Ray lost a job's process (The worker died unexpectedly" in log and "Traceback" not in log
    before = {path: path.stat().st_mtime_ns for path in sweep.glob("*/results.json")}
    assert [path.parent.name[:4] for path in before] == ["000_"]
    finish(sweep, start_on_ray(sweep, *line))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "| small | 1, 2 |" in (sweep / "comparison.md").read_text()
    struck = next(sweep.glob("001_*"))
    whole = run_experiment(config_of(*options, "seed=2"), tmp_path / "whole")
    assert json.loads((struck / "results.json").read_text())["datasets"] == whole["datasets"]
    assert all(torch.equal(weight, weights(struck)[name]) for name, weight in weights(tmp_path / "whole").items())


def test_lightning_does_not_requeue_beside_slurm(monkeypatch):
    """Its own checkpoint would be loaded where the base model is to be measured."""
    assert _slurm() == []
    for name in ("NTASKS", "JOB_ID", "PROCID", "LOCALID", "NODEID", "JOB_NAME"):
        monkeypatch.setenv(f"SLURM_{name}", "train" if name == "JOB_NAME" else "1")
    assert [environment.auto_requeue for environment in _slurm()] == [False]
