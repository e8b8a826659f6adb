"""What a run leaves for Weights & Biases: offline files that hold every promised key, and no secret."""

import json
from pathlib import Path

import pytest
import wandb

from callbacks.evaluation.metrics import Metrics
from callbacks.evaluation.per_query import read_per_query
from datamodules.corpus import load_queries
from experiments import dashboard
from experiments.cli.redact import redact, redact_arguments
from experiments.cli.wandb_run import module_file, source_files
from experiments.training.train import run_experiment
from helpers.kills import killed_at
from helpers.processes import finish, start
from helpers.runs import config_of
from helpers.wandb_files import history, key, offline_records, summary
from retriever.errors import InputError

pytestmark = pytest.mark.slow

SECRET = "9f8e7d6c5b4a39281706f5e4d3c2b1a09f8e7d6c"


@pytest.fixture(scope="module")
def offline(run_options):
    """Overrides for a run of seconds that is logged offline."""
    return [option for option in run_options if option != "logger=csv"] + ["logger.wandb.offline=true", "export=false"]


@pytest.fixture
def to_wandb(offline, tmp_path):
    """The same, into a folder of the test."""
    return [*offline, f"output_dir={tmp_path}"]


@pytest.fixture(scope="module")
def recorded(offline, tmp_path_factory):
    """A run's folder, its results and the records of its offline file."""
    place = tmp_path_factory.mktemp("recorded")
    own = ["group=ablation", "logger.wandb.per_query_rows=6", f"output_dir={place}"]
    results = run_experiment(config_of(*offline, *own), place / "run")
    [folder] = (place / "run" / "wandb").glob("offline-run-*")
    return folder, results, offline_records(folder)


def test_offline_file_holds_every_promised_key(recorded):
    _, results, records = recorded
    run = next(r.run for r in records if r.HasField("run"))
    assert (run.run_group, run.job_type, run.display_name) == ("ablation", "small", "small-seed1")
    config = {key(i) for r in records for i in [*r.run.config.update, *r.config.update]}
    assert {"module", "data", "encoder", "evaluation", "trainer", "seed"} <= config

    rows, base = history(records), results["datasets"]["small"]["ndcg@10"]["base"]
    curve = {row["trainer/global_step"]: row for row in rows if "val/small/ndcg@10" in row}
    assert sorted(curve) == [0, *map(int, results["criterion_by_step"])] == [0, 4, 8]
    assert {row["trainer/global_step"] for row in rows if "dev/loss" in row} == {0, 4, 8}
    assert [row["val/small/ndcg@10_base"] for row in curve.values()] == pytest.approx([base] * 3)
    assert {row["trainer/global_step"] for row in rows if "train/loss" in row} == set(range(8))
    metrics = [r.metric for r in records if r.HasField("metric")]
    assert all(m.step_metric == "trainer/global_step" for m in metrics if m.name.startswith(("val/", "dev/", "train/")))

    values = summary(records)
    for point, step in results["steps"].items():
        assert values[f"{point}/step"] == step and f"{point}/dev/loss" in values and f"{point}/dev/kl" in values
        for metric in Metrics().names:
            assert values[f"{point}/small/{metric}"] == results["datasets"]["small"][metric][point]
    assert {"wall_time_s", "peak_memory_bytes"} <= values.keys()
    assert not [name for name in values if name.startswith(("val/", "dev/"))]  # which step would that be?

    shown = {k for panels in dashboard.sections(["small"]).values() for panel in panels for k in panel.keys}
    shown |= set(dashboard.columns(["small"]))
    logged = values.keys() | {name for row in rows for name in row}
    assert not [
        k for k in shown if not any(name == k or name.startswith(f"{k}/_") for name in logged)
    ]  # a table's parts


def test_code_settings_and_queries_lie_in_the_run_folder(recorded, small_scifact):
    folder, results, records = recorded
    artifacts = {r.artifact.type: r.artifact for r in records if r.HasField("artifact")}
    code = {entry.path for entry in artifacts["code"].manifest.contents}
    assert {"retriever/losses/listwise.py", "experiments/run.py", "experiments/conf/module/combined.yaml"} <= code
    for artifact in artifacts.values():
        for entry in artifact.manifest.contents:
            assert folder.parent in Path(entry.local_path).parents and Path(entry.local_path).is_file()
    for name in ("config.yaml", "environment.json"):
        copy = folder / "files" / "experiment" / name
        assert copy.read_bytes() == (folder.parents[1] / name).read_bytes() and not copy.is_symlink()
    saved = {file.path for r in records for file in r.files.files}
    assert {"experiment/config.yaml", "experiment/environment.json"} <= saved

    queries = load_queries(small_scifact)
    values = folder.parents[1] / "per_query" / "small"
    base, best = (read_per_query(values / f"step-{results['steps'][point]:06d}.json") for point in ("base", "best"))
    differences = {query: best[query] - base[query] for query in best}
    [file] = (folder / "files" / "media" / "table").rglob("*.table.json")
    table = json.loads(file.read_text())
    assert table["columns"] == ["query_id", "query", "base", "best", "difference"] and len(table["data"]) == 6
    for query, text, before, after, difference in table["data"]:
        assert (text, before, after) == (queries[query], base[query], best[query])
        assert difference == differences[query]
    ordered = sorted(differences.values())
    assert [row[-1] for row in table["data"]] == ordered[:3] + ordered[-3:]
    assert artifacts["run_table"].name.startswith("run-")


def test_a_resumed_run_leaves_one_history_under_its_id(to_wandb, tmp_path):
    with killed_at(6):
        run_experiment(config_of(*to_wandb), tmp_path / "run")
    assert wandb.run is None  # the next job of a sweep begins one of its own
    results = run_experiment(config_of(*to_wandb, f"resume={tmp_path}/run"), tmp_path / "run")
    # what `wandb sync RUN/wandb/offline-run-*` sends is one file, which holds all of the run once
    [last] = (tmp_path / "run" / "wandb").glob("offline-run-*")
    [first] = (tmp_path / "run" / "wandb" / "before_resume").glob("offline-run-*")
    before, whole = offline_records(first), offline_records(last)
    assert [next(r.exit.exit_code for r in part if r.HasField("exit")) for part in (before, whole)] == [1, 0]
    ids = {r.run.run_id for part in (before, whole) for r in part if r.HasField("run")}
    assert ids == {(tmp_path / "run" / "wandb_id.txt").read_text().strip()}
    run_experiment(config_of(*to_wandb), tmp_path / "uncut")
    [folder] = (tmp_path / "uncut" / "wandb").glob("offline-run-*")
    uncut = history(offline_records(folder))
    steps = [row["_step"] for row in history(whole)]
    assert steps == sorted(set(steps)), "one history"
    for name in ("val/small/ndcg@10", "dev/loss", "train/loss", "lr-AdamW"):
        curves = [
            [(row["trainer/global_step"], row[name]) for row in rows if name in row] for rows in (history(whole), uncut)
        ]
        assert curves[0] == [(step, pytest.approx(value, rel=1e-6)) for step, value in curves[1]] and curves[1], name
    assert {row["trainer/global_step"] for row in history(before) if "train/loss" in row} == set(range(6))
    assert summary(whole)["base/dev/loss"] == next(row["dev/loss"] for row in history(before) if "dev/loss" in row)
    assert summary(whole)["base/small/ndcg@10"] == results["datasets"]["small"]["ndcg@10"]["base"]
    run_experiment(config_of(*to_wandb, "trainer.max_steps=1"), tmp_path / "run")  # anew in the old folder
    assert (tmp_path / "run" / "wandb_id.txt").read_text().strip() not in ids


def test_server_out_of_reach_stops_no_run_and_secrets_stay_here(to_wandb, tmp_path):
    folder = tmp_path / "run"
    options = [o for o in to_wandb if not o.startswith("logger.")] + [
        "trainer.max_steps=1",
        "logger.wandb.init_timeout=2",
    ]
    options += [f"+logger.hub.token={SECRET[::-1]}", "+logger.hub.password=${oc.env:MY_PASSWORD}"]
    options += ["hydra.output_subdir=null", f"hydra.run.dir={folder}"]
    secrets = {"WANDB_API_KEY": SECRET, "MY_PASSWORD": "correct horse battery"}
    finish(folder, start(folder, *options, WANDB_BASE_URL="http://127.0.0.1:9", WANDB_MODE="online", **secrets))
    assert (folder / "results.json").is_file()
    assert len(list((folder / "wandb").glob("offline-run-*"))) == 1
    for secret in (SECRET, SECRET[::-1], secrets["MY_PASSWORD"]):
        assert not [p for p in tmp_path.rglob("*") if p.is_file() and secret.encode() in p.read_bytes()]
    assert "password: ${oc.env:MY_PASSWORD}" in (folder / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("api_key", "abc", "***"),
        ("HF_TOKEN", "abc", "***"),
        ("password", "", ""),
        ("token_budget", "abc", "abc"),
        ("max_tokens", 5, 5),
        ("base_url", "http://me:pass@host/v1", "http://***@host/v1"),
        ("note", f"use {SECRET}", "use ${oc.env:SOME_API_KEY}"),
        ("token", SECRET, "${oc.env:SOME_API_KEY}"),
        ("servers", [{"secret": "abc", "port": 1}], [{"secret": "***", "port": 1}]),
    ],
)
def test_secrets_are_told_by_name_or_by_the_environment(monkeypatch, name, value, shown):
    monkeypatch.setenv("SOME_API_KEY", SECRET)
    monkeypatch.setenv("SOME_TOKEN", "short")
    assert redact({name: value}) == {name: shown}


def test_command_line_is_told_without_secrets():
    given = ["-m", "+hub.token=abc", "module.token_budget=5", "encoder.model=a=b"]
    assert redact_arguments(given) == ["-m", "+hub.token=***", "module.token_budget=5", "encoder.model=a=b"]


def test_code_is_the_projects_and_the_users_own(tmp_path, monkeypatch):
    assert not [
        name for name in source_files() if not name.startswith(("retriever", "datamodules", "callbacks", "exp"))
    ]
    assert all(path.suffix in (".py", ".yaml") for path in source_files().values())
    (tmp_path / "my_own_losses.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert module_file("my_own_losses.Mine") == {"own/my_own_losses.py": tmp_path / "my_own_losses.py"}
    assert module_file("retriever.objectives.InfoNCE") == {}


def test_negative_number_of_rows_is_refused(to_wandb, tmp_path):
    with pytest.raises(InputError, match="per_query_rows is -1"):
        run_experiment(config_of(*to_wandb, "logger.wandb.per_query_rows=-1"), tmp_path / "run")


def test_dashboard_shows_its_panels_without_a_server(capsys):
    dashboard.main(["--print", "--dataset", "a", "--dataset", "b"])
    printed = capsys.readouterr().out
    assert "line   b: val/b/ndcg@10, val/b/ndcg@10_base" in printed and "table  a: per_query/a" in printed
    with pytest.raises(SystemExit):
        dashboard.main(["--dataset", "a"])
    assert "--entity" in capsys.readouterr().err


def test_workspace_is_built_offline():
    pytest.importorskip("wandb_workspaces", reason="the extra 'dashboard'")
    view = json.loads(dashboard.workspace("me", "mine", ["small"])._to_model().model_dump_json(by_alias=True))
    text = json.dumps(view)
    for panels in dashboard.sections(["small"]).values():
        assert all(name in text for panel in panels for name in panel.keys)
    assert "jobType" in text and "summary:best/small/ndcg@10" in text
