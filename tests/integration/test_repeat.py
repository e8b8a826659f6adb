"""A run folder run again: the same figures, also from a moved copy; what has changed since; what must be said anew."""

import json
import shutil
import sys

import pytest
import torch
from omegaconf import OmegaConf

from datamodules.query_lists import read_query_lists, write_query_lists
from datamodules.storage import input_hashes
from experiments import run as run_module
from experiments.cli.rerun import changes, follows, read_run
from experiments.training.train import run_experiment
from helpers.processes import finish, start
from helpers.runs import config_of, metrics, weights
from retriever.errors import InputError
from retriever.hashing import file_sha256

pytestmark = pytest.mark.slow

TIMES = {"wall_time_s", "peak_memory_bytes"}


@pytest.fixture(scope="module")
def original(run_options, tmp_path_factory):
    """A finished run with dropout and two workers, and what came out."""
    folder = tmp_path_factory.mktemp("original")
    options = ["encoder.dropout=0.1", "data.num_workers=2", "module=distillation", "export=false"]
    return folder / "run", run_experiment(config_of(*run_options, *options, f"output_dir={folder}"), folder / "run")


def again(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["run.py", *map(str, arguments)])
    run_module.main()


def logged(folder):
    """What Hydra's log of a run says."""
    return "".join(path.read_text() for path in folder.glob("*.log"))


def without_times(results):
    return {key: value for key, value in results.items() if key not in TIMES}


def test_a_moved_config_alone_gives_the_same_figures(original, monkeypatch, tmp_path):
    folder, results = original
    moved = tmp_path / "elsewhere" / "copy"
    moved.mkdir(parents=True)
    shutil.copy(folder / "config.yaml", moved)
    again(monkeypatch, "--from", moved, f"hydra.run.dir={tmp_path}/again")
    repeated = json.loads((tmp_path / "again" / "results.json").read_text())
    assert without_times(repeated) == without_times(results)
    first, second = weights(folder), weights(tmp_path / "again")
    assert all(torch.equal(first[key], second[key]) for key in first)
    drop = "diagnostics/tokens_per_second"
    rows = [[{k: v for k, v in r.items() if k != drop} for r in metrics(f)] for f in (folder, tmp_path / "again")]
    assert rows[0] == rows[1]
    for kind in ("trec_runs", "per_query"):
        for path in (folder / kind).rglob("step-*"):
            assert path.read_bytes() == (tmp_path / "again" / path.relative_to(folder)).read_bytes()
    assert "nothing is known of the code and the data of that run" in logged(tmp_path / "again")


def test_overrides_reach_what_follows_them(original, monkeypatch, tmp_path):
    folder, results = original
    assert follows(config_of("module=distillation"))["module.temperature"] == "${temperatures.student}"
    again(
        monkeypatch,
        f"--from={folder}",
        "seed=2",
        "temperatures.student=0.1",
        "trainer.max_epochs=1",
        f"hydra.run.dir={tmp_path}/again",
    )
    config = OmegaConf.load(tmp_path / "again" / "config.yaml")
    assert (config.seed, config.data.seed, config.module.temperature) == (2, 2, 0.1)
    assert config.repeats == str(folder) and config.name == "small"
    assert json.loads((tmp_path / "again" / "results.json").read_text())["optimiser_steps"] == 4
    assert json.loads((folder / "results.json").read_text()) == results, "the first run stays as it is"


def test_a_repeated_run_sweeps(original, monkeypatch, tmp_path):
    folder, results = original
    again(monkeypatch, "-m", "--from", folder, "seed=1,2", f"hydra.sweep.dir={tmp_path}/sweep")
    found = {r["seed"]: r for r in (json.loads(p.read_text()) for p in (tmp_path / "sweep").glob("*/results.json"))}
    assert set(found) == {1, 2} and found[1]["datasets"] == results["datasets"]
    assert OmegaConf.load(next((tmp_path / "sweep").glob("*seed2*/config.yaml"))).data.seed == 2


def test_other_ranks_repeat_it_too(small_run, tmp_path):
    options = [*small_run, "encoder.dropout=0", "export=false", "trainer.max_epochs=1"]
    run_experiment(config_of(*options), tmp_path / "one")
    folder = tmp_path / "two"
    arguments = ["--from", str(tmp_path / "one"), "trainer.devices=2", f"hydra.run.dir={folder}"]
    finish(folder, start(folder, *arguments))  # Lightning starts the other rank with what was typed
    assert json.loads((folder / "environment.json").read_text())["ranks"] == 2
    assert json.loads((folder / "results.json").read_text())["optimiser_steps"] == 4


def test_what_has_changed_since_is_said(small_run, small_lists, tmp_path, monkeypatch):
    lists = tmp_path / "lists.parquet"
    found = list(read_query_lists(small_lists))
    write_query_lists(lists, found, {"teacher": "made for tests"})
    options = [o.replace(str(small_lists), str(lists)) for o in small_run] + ["trainer.max_epochs=1", "export=false"]
    read = []
    monkeypatch.setattr(input_hashes, "file_sha256", lambda path: read.append(str(path)) or file_sha256(path))
    monkeypatch.setattr(input_hashes, "_COARSEST_NS", 0)
    monkeypatch.setattr(input_hashes, "_known", {})
    run_experiment(config_of(*options), tmp_path / "run")
    assert str(lists) in read and any(path.endswith("corpus.jsonl") for path in read)
    assert sorted(read) == sorted(set(read)), "each file is read once"
    facts = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert str(lists) in facts["inputs"] and len(facts["inputs"]) >= 4 and "threads" in facts["same_figures"]
    facts["packages"]["torch"], facts["git"] = "1.0", "abc"
    (tmp_path / "run" / "environment.json").write_text(json.dumps(facts))
    write_query_lists(lists, found[:-1], {"teacher": "made for tests"})
    again(monkeypatch, "--from", tmp_path / "run", f"hydra.run.dir={tmp_path}/again")
    said = [line for line in logged(tmp_path / "again").splitlines() if "Since run was started" in line]
    assert len(said) == 3
    assert "git revision abc → " in said[0]
    assert "torch 1.0 → " in said[1] and said[2].endswith(f"these files have changed: {lists}")


def test_changes_are_told_apart():
    facts = {"git": "a", "torch_threads": 2, "packages": {"x": "1"}, "inputs": {"f": "1", "g": "1"}, "weights": "w"}
    assert changes(facts, facts) == []
    now = {"git": "a", "torch_threads": 1, "packages": {}, "inputs": {"f": "2"}, "weights": "v"}
    assert changes(facts, now) == [
        "the machine has changed: torch_threads 2 → 1",
        "packages have changed: x 1 → none",
        "these files have changed: f",
        "the weights of encoder.model have changed",
    ]
    assert "may have changed" in changes({"git": "a-dirty"}, {"git": "a-dirty"})[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file. --from takes the folder of a run"),
        ("a: [1", "not a configuration"),
        ("- 1", "which is a mapping"),
        ("hydra: {callbacks: {x: {_target_: os.system}}}", "has 'hydra', which the configuration of a finished run"),
        ("defaults: [evil]", "has 'defaults'"),
        ("hub: {token: '***'}", "give hub.token=… on the command line"),
        ("encoder: {trust_remote_code: true}", "give encoder.trust_remote_code=… on the command line"),
        ("allowed_targets: [evil]", "give allowed_targets=… on the command line"),
    ],
)
def test_a_folder_decides_nothing_that_is_dangerous(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(InputError, match=message.replace("*", r"\*")):
        read_run(tmp_path)


def test_what_follows_what_switches_on_no_foreign_code(tmp_path):
    (tmp_path / "config.yaml").write_text("encoder: {trust_remote_code: false}\nallow_test_selection: false\n")
    (tmp_path / "follows.yaml").write_text('encoder.trust_remote_code: "${allow_test_selection}"\n')
    config = read_run(tmp_path)
    config.allow_test_selection = True
    assert config.encoder.trust_remote_code is False


def test_what_is_typed_is_believed(tmp_path):
    (tmp_path / "config.yaml").write_text("encoder: {trust_remote_code: true}\nhub: {token: '***'}\n")
    config = read_run(tmp_path, {"encoder.trust_remote_code", "hub.token"})
    assert config.encoder.trust_remote_code is True and config.repeats == str(tmp_path)
