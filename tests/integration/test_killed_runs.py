"""A run that is killed, at any moment, goes on to the bits that an undisturbed one ends with."""

from __future__ import annotations

import csv
import json
import random
import signal
import time

import pytest
import torch

from callbacks import AtomicCheckpoints
from experiments.comparison.tables import compare
from experiments.training.train import run_experiment
from helpers.kills import killed_at
from helpers.processes import begin, end, finish, start
from helpers.runs import config_of, metrics, weights

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("frozen", "validate_every"), [(False, 1.0), (True, 1.0), (False, 0.5)])
def test_killed_run_resumes_to_the_same_weights_and_figures(
    small_run, tiny_model_with_dense, tmp_path, frozen, validate_every
):
    options = [
        *small_run,
        f"encoder.model={tiny_model_with_dense}",
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
    assert "encoder.head.0.linear.weight" in expected
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    assert resumed["datasets"] == whole["datasets"] and resumed["steps"] == whole["steps"]
    with open(tmp_path / "cut" / "metrics-part1.csv") as file:
        assert list(csv.DictReader(file)) == before
    assert compare([tmp_path / "cut"])["small"][1].ndcg == pytest.approx(compare([tmp_path / "whole"])["small"][1].ndcg)


def test_killed_process_resumes_to_the_same_bits(small_run, tmp_path):
    options = [*small_run, "trainer.max_epochs=6", "trainer.val_check_interval=2", "encoder.dropout=0.1"]
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
    assert 0 < torch.load(last, weights_only=True)["global_step"] < 24
    finish(folder, start(folder, *options, *resume))
    expected, got = (
        torch.load(tmp_path / run / "checkpoints" / "last.ckpt", weights_only=True) for run in ("whole", "cut")
    )
    assert expected["global_step"] == 24  # though the best step was long before
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
        assert len(files) == 13
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


def test_checkpoint_is_whole_whenever_the_process_is_killed(tmp_path):
    path, moments = tmp_path / "last.ckpt", random.Random(3)
    for _ in range(10):
        process, _ = begin(save_again_and_again, path)
        while not path.is_file():
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.1))
        end(process)
        assert torch.load(path, weights_only=True)["weights"].shape == (2_000_000,)
