"""Two commands in one folder: the second says so, and spoils nothing."""

import json
import os
import shutil
import signal
import sys
import time

import pytest
import torch

from experiments import run as run_module
from experiments.cli.alone import FolderInUse, alone_in
from experiments.cli.sweep import ERROR_FILE
from experiments.training.train import run_experiment
from helpers.processes import PATIENCE, begin, finish, run_in, start
from helpers.runs import config_of, weights

pytestmark = pytest.mark.slow


def hold(folder, until):
    with alone_in(folder):
        (folder / "held").touch()
        while not until.exists():
            time.sleep(0.01)


def wait_for(path, process):
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)


def test_a_folder_is_one_process_s_until_it_ends_or_is_killed(tmp_path, monkeypatch):
    process, _ = begin(hold, tmp_path, tmp_path / "end")
    wait_for(tmp_path / "held", process)
    with (
        pytest.raises(FolderInUse, match=rf"{tmp_path}: another process is at work there. Wait until it ends"),
        alone_in(tmp_path),
    ):
        pytest.fail("it is held")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with alone_in(tmp_path):
        pass  # a rank of one run, whose first rank holds it
    monkeypatch.delenv("LOCAL_RANK")
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with alone_in(tmp_path):
        assert (tmp_path / ".lock").exists()
    assert not (tmp_path / ".lock").exists()
    with alone_in(tmp_path / "missing"):
        assert not (tmp_path / "missing").exists()


def test_a_second_run_in_a_folder_says_so_and_the_first_one_ends_as_if_alone(small_run, tmp_path):
    line = [*small_run, "export=false", "trainer.max_epochs=4", f"hydra.run.dir={tmp_path}/run"]
    process = start(tmp_path / "run", *line)
    wait_for(tmp_path / "run" / "checkpoints" / "last.ckpt", process)
    os.kill(process.pid, signal.SIGSTOP)  # it would be done before the second one has looked
    status, said = run_in(tmp_path, "experiments.run", *line)
    assert status == 2 and f"error: {tmp_path}/run: another process is at work there." in said
    status, said = run_in(tmp_path, "experiments.run", *line, f"resume={tmp_path}/run")
    assert status == 2 and "another process is at work there" in said
    os.kill(process.pid, signal.SIGCONT)
    finish(tmp_path / "run", process)
    whole = run_experiment(config_of(*small_run, "export=false", "trainer.max_epochs=4"), tmp_path / "whole")
    assert json.loads((tmp_path / "run" / "results.json").read_text())["datasets"] == whole["datasets"]
    assert all(torch.equal(weight, weights(tmp_path / "run")[n]) for n, weight in weights(tmp_path / "whole").items())


def test_a_second_sweep_leaves_a_run_to_the_first_one(small_run, tmp_path, monkeypatch, capsys):
    line = ["run.py", "-m", *small_run, "export=false", "seed=1,2", f"hydra.sweep.dir={tmp_path}/sweep"]
    monkeypatch.setattr(sys, "argv", line)
    run_module.main()
    first, second = sorted((tmp_path / "sweep").glob("0*"))
    before = (second / "results.json").stat().st_mtime_ns
    shutil.rmtree(first)
    first.mkdir()
    with alone_in(first):
        monkeypatch.setattr(sys, "argv", line)
        run_module.main()
        assert {path.name for path in first.iterdir()} <= {".lock", ".hydra", "run.log"}, "nothing of a run"
    said = capsys.readouterr().out
    assert f"{first}: another process is at work there" in said and "This sweep leaves the run to it." in said
    assert not (first / ERROR_FILE).exists() and (second / "results.json").stat().st_mtime_ns == before
    monkeypatch.setattr(sys, "argv", line)
    run_module.main()
    assert (first / "results.json").is_file()
