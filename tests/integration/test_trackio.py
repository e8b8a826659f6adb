"""What a run leaves in trackio's local files: the keys that W&B gets, one history after a resume, and its page."""

import json
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec

import pytest

from callbacks.evaluation.metrics import Metrics
from experiments import dashboard
from experiments.settings.checks import check
from experiments.training.train import run_experiment
from helpers.kills import killed_at
from helpers.runs import config_of
from helpers.wandb_files import history, offline_records, summary
from retriever.errors import InputError

pytestmark = pytest.mark.slow
needs_trackio = pytest.mark.skipif(not find_spec("trackio"), reason="the extra 'trackio'")
PROJECT = "retriever-distillation"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """trackio looks for its folder once in a process."""
    return tmp_path_factory.mktemp("trackio")


@pytest.fixture
def to_trackio(run_options, place):
    """Overrides for a run of seconds."""
    options = [option for option in run_options if option != "logger=csv"]
    return [*options, "logger=trackio", f"logger.trackio.folder={place}", "export=false"]


def logged(place, name):
    """Rows of a run, in their order, and its configuration."""
    with sqlite3.connect(place / f"{PROJECT}.db") as database:
        rows = database.execute("SELECT step, metrics FROM metrics WHERE run_name = ? ORDER BY id", (name,)).fetchall()
        [[config]] = database.execute("SELECT config FROM configs WHERE run_name = ?", (name,)).fetchall()
    return [{"step": step, **json.loads(metrics)} for step, metrics in rows], json.loads(config)


@needs_trackio
def test_trackio_holds_what_wandb_gets(to_trackio, run_options, place, tmp_path):
    results = run_experiment(config_of(*to_trackio, "name=keys", "group=ablation"), tmp_path / "run")
    rows, config = logged(place, "keys-seed1")
    options = [option for option in run_options if option != "logger=csv"]
    run_experiment(config_of(*options, "logger.wandb.offline=true", "export=false"), tmp_path / "wandb")
    [folder] = (tmp_path / "wandb" / "wandb").glob("offline-run-*")
    records = offline_records(folder)
    theirs = {name for row in history(records) for name in row} | summary(records).keys()
    theirs = {name for name in theirs if not name.startswith("_") and "per_query" not in name}
    ours = {name for row in rows for name in row}
    assert theirs - ours == set() and ours - theirs == {"step", "per_query/small"}
    for name in ("val/small/ndcg@10", "dev/loss", "train/loss"):
        curve = [(row["trainer/global_step"], row[name]) for row in rows if name in row]
        of_wandb = [(row["trainer/global_step"], row[name]) for row in history(records) if name in row]
        assert curve == [(step, pytest.approx(value)) for step, value in of_wandb]
        assert all(row["step"] == row["trainer/global_step"] for row in rows)
    for point in results["steps"]:
        for metric in Metrics().names:
            assert rows[-1][f"{point}/small/{metric}"] == results["datasets"]["small"][metric][point]
    table = rows[-1]["per_query/small"]
    assert {"query", "base", "best", "difference"} <= table["_value"][0].keys() and len(table["_value"]) == 20
    assert config["seed"] == 1 and config["job_type"] == "keys" and config["_Group"] == "ablation"
    shown = {k for panels in dashboard.sections(["small"]).values() for panel in panels for k in panel.keys}
    assert not shown - ours


@needs_trackio
def test_a_resumed_run_leaves_one_history(to_trackio, place, tmp_path):
    options = [*to_trackio, "name=cut"]
    with killed_at(6):
        run_experiment(config_of(*options), tmp_path / "run")
    before = logged(place, "cut-seed1")[0]
    assert [row["step"] for row in before if "train/loss" in row] == list(range(6))
    run_experiment(config_of(*options, f"resume={tmp_path}/run"), tmp_path / "run")
    rows = logged(place, "cut-seed1")[0]
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(8))
    assert [row["step"] for row in rows if "val/small/ndcg@10" in row] == [0, 4, 8]
    assert [row["base/dev/loss"] for row in rows if "base/dev/loss" in row] == [before[0]["dev/loss"]]


@needs_trackio
def test_the_dashboard_command_serves_local_runs(to_trackio, place, tmp_path):
    run_experiment(config_of(*to_trackio, "name=shown", "trainer.max_steps=1"), tmp_path / "run")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "experiments.dashboard", "--trackio", str(place), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            page, deadline = "", time.time() + 120
            while not page and time.time() < deadline and process.poll() is None:
                time.sleep(0.5)
                try:
                    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).read().decode()
                except OSError:
                    continue
            assert "trackio" in page.lower(), process.stdout.read() if process.poll() is not None else ""
        finally:
            process.kill()


def test_what_is_wrong_is_told_before_anything_is_loaded(to_trackio, place, monkeypatch, capsys):
    with pytest.raises(InputError, match=r"per_query_rows"):
        check(config_of(*to_trackio, "+logger.trackio.per_query_row=1"))
    monkeypatch.setattr("experiments.settings.run_settings.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs the package trackio: pip install -e '\.\[trackio\]'"):
        check(config_of(*to_trackio))
    with pytest.raises(SystemExit) as ended:
        dashboard.main(["--trackio", str(place), "--project", "none"])
    assert "no runs of project 'none' in it" in str(ended.value)
