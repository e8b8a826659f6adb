"""Sweeps and stages as Ray tasks on this machine."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import sys
import time

import pytest
import torch

from experiments.training.train import run_experiment
from helpers.processes import PATIENCE, finish
from helpers.ray_sweeps import ray_worker, start_on_ray
from helpers.runs import config_of, lists_in, prepare, weights

KILLS = int(os.environ.get("FAULT_KILLS", 1))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec("hydra_plugins.hydra_ray_launcher"), reason="the extra 'cluster'"),
    pytest.mark.skipif(sys.platform != "linux", reason="processes are looked for in /proc"),
]


@pytest.mark.timeout(420 * KILLS)
def test_sweep_on_ray_whose_worker_is_killed_keeps_what_is_finished_and_goes_on(small_run, tmp_path):
    """``FAULT_KILLS=n``: n workers are killed."""
    kills, moments, sweep = KILLS, random.Random(1), tmp_path / "sweep"
    # Ray's workers are not told what tests take for auto
    options = [*small_run, "trainer.precision=32-true", "trainer.max_epochs=4", "trainer.val_check_interval=2"]
    options.append("export=false")
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


def test_a_stage_on_a_local_ray_with_two_workers_leaves_the_same_lists(small_prepare, whole_lists, tmp_path):
    prepare([*small_prepare, "until=mine"])
    two = ["hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2"]
    arguments = ["-m", *small_prepare, "stage=score", "shard=0,1", *two]
    finish(tmp_path / "score", start_on_ray(tmp_path / "score", *arguments, module="experiments.prepare"))
    assert not list((tmp_path / "prepare").glob("score-*/blocks"))  # the last of the two has merged
    prepare(small_prepare)
    assert lists_in(tmp_path / "lists") == whole_lists
