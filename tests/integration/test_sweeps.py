"""A sweep goes on where it stopped, repeats nothing, survives a failing run; a search; pruning."""

import importlib.util
import json
import shutil
import sys

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from experiments import run as run_module
from experiments.cli import sweep as sweeps
from experiments.cli.sweep import ERROR_FILE, NameArms, arm_name, first_difference
from helpers.runs import CONF
from retriever.module import RetrieverModule

pytestmark = pytest.mark.slow

needs_optuna = pytest.mark.skipif(not importlib.util.find_spec("optuna"), reason="the extra 'sweep'")


@pytest.fixture
def sweep(small_run, monkeypatch, tmp_path):
    """Run a sweep in one folder; what it exits with, or None."""

    def run(*arguments, folder="sweep"):
        options = [o for o in small_run if not o.startswith("name=")]
        line = ["run.py", "-m", *options, "export=false", f"hydra.sweep.dir={tmp_path}/{folder}", *arguments]
        monkeypatch.setattr(sys, "argv", line)
        try:
            run_module.main()
        except SystemExit as stopped:
            return stopped.code
        return None

    run.folder = tmp_path / "sweep"
    return run


@pytest.fixture
def steps(monkeypatch):
    """Every training step made: its number within its run."""
    made, step = [], RetrieverModule.training_step

    def counted(self, batch, batch_idx):
        made.append(self.global_step)
        if counted.dies_at is not None and self.global_step == counted.dies_at:
            raise RuntimeError("out of\nmemory")
        return step(self, batch, batch_idx)

    counted.dies_at = None
    monkeypatch.setattr(RetrieverModule, "training_step", counted)
    return made, counted


def results_of(folder):
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("*/results.json"))}


def figures(results):
    return {name: {k: v for k, v in r.items() if k not in ("wall_time_s", "peak_memory_bytes")} for name, r in results}


def test_a_sweep_goes_on_where_it_stopped(sweep, steps, tmp_path):
    made, counted = steps
    arms = ["module=distillation", "module.temperature=0.05,0.1"]
    assert sweep(*arms, folder="whole") is None
    whole = results_of(tmp_path / "whole")
    assert len(whole) == 2 and made == [*range(8), *range(8)]
    made.clear()
    counted.dies_at = 6  # behind the checkpoint of step 4
    message = sweep(*arms)
    assert message.startswith(f"error: 2 runs of {sweep.folder} failed.") and "RuntimeError: out of memory" in message
    errors = sorted(sweep.folder.glob(f"*/{ERROR_FILE}"))
    assert len(errors) == 2 and "Traceback" in errors[0].read_text() and not results_of(sweep.folder)
    made.clear()
    counted.dies_at = None
    assert sweep(*arms) is None and not list(sweep.folder.glob(f"*/{ERROR_FILE}"))
    assert made == [*range(4, 8), *range(4, 8)], "both go on from their checkpoints"
    assert figures(results_of(sweep.folder).items()) == figures(whole.items())
    weights = [
        torch.load(next(tmp_path.glob(f"{place}/000_*/checkpoints/last.ckpt")), weights_only=True)["state_dict"]
        for place in ("whole", "sweep")
    ]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    made.clear()
    stamps = {path: path.stat().st_mtime_ns for path in sweep.folder.glob("*/results.json")}
    assert sweep("module=distillation", "module.temperature=0.02,0.05,0.1") is None  # the grid has grown
    assert made == [*range(8)], "the two that were finished are not repeated"
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps and len(results_of(sweep.folder)) == 3
    table = (sweep.folder / "comparison.md").read_text()
    assert all(f"temperature={temperature}" in table for temperature in (0.02, 0.05, 0.1))


def test_a_failing_run_stops_no_other_and_is_listed(sweep):
    message = sweep("module=distillation", "module.temperature=0,0.05", "trainer.max_epochs=1")
    assert "One run of" in message and "temperature is 0" in message and "Traceback" not in message
    [good] = results_of(sweep.folder)
    assert good.startswith("001_distillation_seed1_")
    assert "| distillation | 1 |" in (sweep.folder / "comparison.md").read_text()
    assert sweep("module=distillation", "module.temperature=0,0.05", "trainer.max_epochs=1") == message, "as before"


def test_a_folder_with_another_configuration_is_refused(sweep, capsys):
    arms = ["module=distillation", "trainer.max_epochs=1"]
    assert sweep(*arms) is None
    [name] = results_of(sweep.folder)
    path = sweep.folder / name / "config.yaml"
    config = OmegaConf.load(path)
    config.module.temperature, config.cache_dir = 0.5, "elsewhere"  # where things are cached makes no other run
    OmegaConf.save(config, path)
    before = path.read_bytes()
    assert sweep(*arms) == 2
    error = capsys.readouterr().err
    assert f"{name} holds a run with module.temperature=0.5, and this sweep asks for module.temperature=0.05" in error
    assert path.read_bytes() == before and not (path.parent / ERROR_FILE).exists()
    path.unlink()
    message = sweep(*arms)
    assert "One run of" in message and f"{name} holds results and no config.yaml" in message


def test_differences_are_found_wherever_they_are():
    old = {"a": {"b": [1, {"c": 2}], "resume": 1}, "logger": 1, "new": None}
    assert first_difference(old, {"a": {"b": [1, {"c": 2}]}, "logger": 2}) is None
    assert first_difference(old, {"a": {"b": [1, {"c": 3}]}}) == ("a.b", [1, {"c": 2}], [1, {"c": 3}])
    assert first_difference({"a": {"b": 1}}, {"a": {}}) == ("a.b", 1, None)


@needs_optuna
def test_a_search_goes_on_and_looks_at_dev_alone(sweep, steps, tmp_path):
    made, _ = steps
    space = ["hydra/sweeper=search", "module=distillation", "trainer.max_epochs=1", "criterion=dev/kl"]
    space.append("module.learning_rate=tag(log, interval(1e-4, 1e-2))")
    assert sweep(*space, "hydra.sweeper.n_trials=2", folder="whole") is None
    rates = {r.name: OmegaConf.load(r / "config.yaml").module.learning_rate for r in (tmp_path / "whole").glob("0*")}
    assert len(set(rates.values())) == 2 and all(1e-4 <= rate <= 1e-2 for rate in rates.values())
    best = OmegaConf.load(tmp_path / "whole" / "best.yaml").value
    values = {name: r["criterion_value"] for name, r in results_of(tmp_path / "whole").items()}
    assert best == pytest.approx(min(values.values())) and len(set(values.values())) == 2
    assert sweep(*space, "hydra.sweeper.n_trials=1") is None
    made.clear()
    assert sweep(*space, "hydra.sweeper.n_trials=2") is None
    assert len(made) == 4, "one run answers from its folder"
    again = {r.name: OmegaConf.load(r / "config.yaml").module.learning_rate for r in sweep.folder.glob("0*")}
    assert again == rates, "and the search asks for what it would have asked for"


@needs_optuna
def test_a_search_for_the_highest_value_keeps_its_sign(sweep):
    space = ["hydra/sweeper=search", "module=distillation", "trainer.max_epochs=1", "criterion=dev/top1_agreement"]
    space += ["criterion_mode=max", "module.learning_rate=interval(1e-4, 1e-2)", "hydra.sweeper.n_trials=2"]
    assert sweep(*space) is None
    values = [r["criterion_value"] for r in results_of(sweep.folder).values()]
    assert OmegaConf.load(sweep.folder / "best.yaml").value == pytest.approx(max(values)) and max(values) > 0


@needs_optuna
def test_a_run_that_is_behind_is_pruned_and_recorded(sweep, steps):
    made, _ = steps
    options = ["module=distillation", "pruner=median", "pruner.n_startup_trials=1", "criterion=dev/kl"]
    assert sweep(*options, "module.learning_rate=1e-2,1e-9") is None
    good, pruned = results_of(sweep.folder).values()
    assert not good["pruned"] and good["optimiser_steps"] == 8 and list(good["criterion_by_step"]) == ["4", "8"]
    assert pruned["pruned"] and pruned["optimiser_steps"] == 4 and pruned["steps"]["best"] == 4
    assert good["criterion_value"] == min(good["criterion_by_step"].values()) < pruned["criterion_value"]
    [folder] = sweep.folder.glob("001_*")
    (folder / "results.json").unlink()  # killed behind its pruning
    made.clear()
    assert sweep(*options, "module.learning_rate=1e-2,1e-9") is None
    again = json.loads((folder / "results.json").read_text())
    assert made == [] and figures([("", again)]) == figures([("", pruned)]), "it is not trained on"
    assert "| 1† |" in (sweep.folder / "comparison.md").read_text()
    shutil.rmtree(sweep.folder)
    assert sweep(*options, "module.learning_rate=1e-9,1e-2") is None
    assert [r["pruned"] for r in results_of(sweep.folder).values()] == [False, False], "the better one is not"


def named_arms(*arguments):
    """The name that each run of a sweep gets."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        # as Hydra's own process has it: what is swept is no setting yet
        plain = [o for o in arguments if not OverridesParser.create().parse_override(o).is_sweep_override()]
        whole = compose("run", plain, return_hydra_config=True)
        whole.hydra.overrides.task = list(arguments)
        NameArms().on_multirun_start(whole)
        given = OverridesParser.create().parse_overrides([*map("=".join, space(whole)), *arguments])
        names = []
        for overrides in BasicSweeper.split_arguments(given, None)[0]:
            own = [*overrides, *(o for o in whole.hydra.overrides.hydra if o.startswith("hydra.callbacks"))]
            config = compose("run", own, return_hydra_config=True)
            HydraConfig.instance().set_config(config)
            names.append(arm_name(config.name, config.hydra))
    return names


def space(config):
    return [(key, str(value)) for key, value in (config.hydra.sweeper.get("params") or {}).items()]


def test_arms_of_a_sweep_never_share_a_name(monkeypatch):
    modules = "module=distillation,margin_mse"
    grid = named_arms(modules, "module.temperature=0.02,0.05", "seed=1,2")
    arms = [f"{m} (module.temperature={t})" for m in ("distillation", "margin_mse") for t in (0.02, 0.05)]
    assert grid == [arm for arm in arms for _ in (1, 2)]
    assert named_arms(modules, "seed=1") == ["distillation", "margin_mse"]
    assert named_arms("seed=1,2", "output_dir=a,b") == ["combined"] * 4
    stated = named_arms("name=mine", "module=distillation", "++data.batch_size=8,16", "trainer.max_epochs=3")
    assert stated == ["mine (data.batch_size=8)", "mine (data.batch_size=16)"]
    assert named_arms("+exp=scifact/infonce,scifact/combined") == ["infonce", "combined"]
    assert named_arms("+exp=scifact/_base,scifact/combined") == [
        "combined (exp=scifact/_base)",
        "combined (exp=scifact/combined)",
    ]
    assert named_arms("+exp=paper/batch_size", "data.batch_size=64") == ["infonce", "distillation"]
    monkeypatch.setattr(sweeps, "_MOST_COMPOSED", 1)
    many = named_arms(modules, "module.learning_rate=1e-5,2e-5")
    assert many[0] == "distillation (module=distillation, module.learning_rate=1e-05)" and len(set(many)) == 4


def test_a_sweeps_runs_are_recorded_under_their_arms_names(sweep):
    arms = ["module=distillation", "module.temperature=0.02,0.05", "trainer.max_steps=1"]
    assert sweep(*arms) is None
    results = results_of(sweep.folder)
    names = [f"distillation (module.temperature={t})" for t in (0.02, 0.05)]
    assert [r["name"] for r in results.values()] == names
    assert [folder[:23] for folder in results] == ["000_distillation_seed1_", "001_distillation_seed1_"], "as ever"
    assert all(OmegaConf.load(sweep.folder / f / "config.yaml").name == "distillation" for f in results), "as given"
    table = (sweep.folder / "comparison.md").read_text()
    assert all(f"| {arm} | 1 |" in table for arm in names)
