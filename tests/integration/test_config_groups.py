"""Groups of a run's configuration that a user fills: optimiser, schedule, callbacks; debug runs; names of before."""

import json
import logging
import sys

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from experiments.cli.targets import check_arguments
from experiments.run import with_debug_last
from experiments.settings import renamed
from experiments.settings.checks import check
from experiments.settings.encoders import SPECS
from experiments.settings.older_runs import as_now
from experiments.settings.renamed import RenameSwept, rename, rename_arguments, rename_config
from experiments.training.train import run_experiment
from helpers.kills import killed_at
from helpers.runs import config_of, weights
from retriever.errors import InputError
from retriever.optimizer import make_optimizer, make_scheduler

pytestmark = pytest.mark.slow

CALLBACK = """
import lightning as L

class Counts(L.Callback):
    def __init__(self, path):
        self.path = path

    def on_validation_end(self, trainer, module):
        with open(self.path, "a") as file:
            file.write(f"{trainer.global_step} {'val/small/ndcg@10' in trainer.callback_metrics}\\n")
"""
OTHERS = (
    "optimizer._target_=torch.optim.SGD",
    "+optimizer.momentum=0.9",
    "scheduler=cosine",
    "trainer.max_epochs=4",
)


@pytest.fixture(autouse=True)
def said(caplog):
    """What is logged; each old name is named once a process, here once a test."""
    renamed._said.clear()
    caplog.set_level(logging.INFO)
    return caplog


def test_another_optimiser_and_schedule_run_and_resume_to_the_same_weights(small_run, tmp_path, capsys):
    options = [*small_run, *OTHERS, "export=false"]
    run_experiment(config_of(*options), tmp_path / "whole")
    assert "lr 0.001 by CosineAnnealingLR; SGD; weight decay 0.01" in " ".join(capsys.readouterr().out.split())
    plan = json.loads((tmp_path / "whole" / "environment.json").read_text())["plan"]["steps"]
    assert (plan["optimizer"], plan["scheduler"]["class"]) == ("SGD", "CosineAnnealingLR")
    with killed_at(11):
        run_experiment(config_of(*options), tmp_path / "cut")
    run_experiment(config_of(*options, f"resume={tmp_path}/cut"), tmp_path / "cut")
    expected, got = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    last = torch.load(tmp_path / "whole" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0, abs=1e-12)  # T_max is the run's
    assert last["optimizer_states"][0]["param_groups"][0]["momentum"] == 0.9


def test_any_optimiser_spares_scalars_the_weight_decay_and_takes_the_runs_steps():
    weight, scalar = torch.nn.Parameter(torch.zeros(2, 2)), torch.nn.Parameter(torch.zeros(()))
    config = config_of("optimizer._target_=torch.optim.RMSprop", "scheduler=cosine")
    make, schedule = (instantiate(config[part], _partial_=True) for part in ("optimizer", "scheduler"))
    optimizer = make_optimizer(make, [weight, scalar], 0.5, 0.1, fused=True)
    assert [(g["weight_decay"], g["lr"]) for g in optimizer.param_groups] == [(0.1, 0.5), (0.0, 0.5)]
    assert make_scheduler(schedule, optimizer, 30, 10).T_max == 30
    whole = make_optimizer(torch.optim.AdamW, [weight], 0.5, 0.1, fused=False)
    assert len(whole.param_groups) == 1 and whole.defaults["fused"] is False


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["+optimizer.lr=1"], "say module.learning_rate=1 in its place"),
        (["optimizer._target_=torch.optim.LBFGS"], "LBFGS knows no weight decay; say module.weight_decay=0"),
        (["optimizer._target_=torch.optim.SGD", "+optimizer.nesterov=true"], "SGD refuses its settings: Nesterov"),
        (["optimizer._target_=torch.optim.SGD", "+optimizer.momentun=1"], "Did you mean 'momentum'?"),
        (["scheduler=cosine", "scheduler._target_=torch.optim.lr_scheduler.ReduceLROnPlateau"], "follows a metric"),
        (["scheduler=cosine", "scheduler._target_=torch.optim.lr_scheduler.OneCycleLR"], "refuses its settings"),
        (["scheduler.warmup_steps=0"], "scheduler.warmup_steps is 0; it must be at least 1"),
        (["scheduler.decay=to_zro"], "Did you mean 'to_zero'?"),
        (["scheduler.final_learning_rate=2"], "scheduler.final_learning_rate is 2; it must be in"),
        (["optimizer._target_=torch.optim.optimizer.torch.load"], "comes from 'torch.serialization'"),
        (["optimizer._target_=torch.load"], "a configuration may not call"),
        (["+trainer.callbacks=[]"], "say +callbacks.NAME._target_="),
        (["+callbacks.mine._target_=lightning.pytorch.callbacks.EarlyStoping"], "cannot be imported"),
    ],
)
def test_wrong_optimisers_schedules_and_callbacks_are_refused_before_anything_is_loaded(small_run, options, message):
    with pytest.raises(InputError) as raised:
        check(config_of(*small_run, *options))
    assert message in str(raised.value)


def test_a_users_own_callback_is_called_behind_the_evaluation(small_run, tmp_path, monkeypatch):
    (tmp_path / "own_callback.py").write_text(CALLBACK)
    folder = tmp_path / "conf" / "callbacks"
    folder.mkdir(parents=True)
    written = tmp_path / "calls.txt"
    (folder / "mine.yaml").write_text(
        f"defaults: [default, _self_]\nmine: {{_target_: own_callback.Counts, path: {written}}}\nlearning_rate: null\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    options = [*small_run, "callbacks=mine", "export=false", f"hydra.searchpath=[file://{tmp_path}/conf]"]
    run_experiment(config_of(*options), tmp_path / "run")
    assert written.read_text().splitlines() == ["0 True", "4 True", "8 True"]
    assert "lr-AdamW" not in (tmp_path / "run" / "metrics.csv").read_text()
    config = config_of(*small_run, "+callbacks.mine._target_=own_callback.Counts", "+callbacks.mine.path=x")
    config.repeats = "a run folder of somebody else's"
    with pytest.raises(InputError, match="allowed_targets"):
        check_arguments(config, SPECS)


def test_a_debug_run_takes_few_lists_queries_and_passages_of_any_run(small_run, tmp_path, said):
    results = run_experiment(config_of(*small_run, "+debug=fast", "debug.lists=3", "debug.queries=2"), tmp_path / "run")
    assert "its figures mean nothing" in said.text
    assert results["optimiser_steps"] <= 2 and results["data"]["train_lists"] <= 3
    plan = json.loads((tmp_path / "run" / "environment.json").read_text())["plan"]
    assert plan["corpora"]["small"] < 60 and plan["evaluation"][0]["queries"] == 2
    assert (tmp_path / "run" / "model" / "config.json").is_file()


def test_debug_is_put_behind_the_experiment():
    typed = with_debug_last(["debug=fast", "+exp=scifact/objectives", "seed=2"])
    assert typed == ["+exp=scifact/objectives", "seed=2", "+debug=fast"]
    assert config_of(*typed).data.batch_size == 4


# names of before


def test_old_names_on_the_command_line(monkeypatch, said):
    typed = ["module.kept_tokens=1", "+data.gather_shared=true", "++module.decay=a,b", "~module.warmup_steps", "-m"]
    monkeypatch.setattr(sys, "argv", ["run", *typed, "module.kept_tokens=2", "name=module.kept_tokens=3"])
    rename_arguments()
    assert sys.argv == [
        "run",
        "module.uncheckpointed_tokens=1",
        "+data.group_overlapping_lists=true",
        "++scheduler.decay=a,b",
        "~scheduler.warmup_steps",
        "-m",
        "module.uncheckpointed_tokens=2",
        "name=module.kept_tokens=3",
    ]
    lines = [r.getMessage() for r in said.records]
    assert (
        lines[0] == "module.kept_tokens is called module.uncheckpointed_tokens now; the old name works for one "
        "release more"
    )
    assert len(lines) == 4
    swept = OmegaConf.create({"hydra": {"sweeper": {"params": {"module.kept_tokens": "1,2", "seed": "1,2"}}}})
    RenameSwept().on_multirun_start(swept)
    assert swept.hydra.sweeper.params == {"module.uncheckpointed_tokens": "1,2", "seed": "1,2"}


def test_old_names_in_a_users_files(tmp_path, said):
    (tmp_path / "module").mkdir()
    (tmp_path / "module" / "mine.yaml").write_text(
        "defaults: [infonce, _self_]\nkept_tokens: 7\nwarmup_steps: 3\ndecay: to_zero\n"
    )
    typed = [f"hydra.searchpath=[file://{tmp_path}]", "module=mine", "scheduler.warmup_steps=5", "name=x"]
    config = rename_config(config_of(*typed), typed)
    assert config.module.uncheckpointed_tokens == 7 and config.scheduler.decay == "to_zero"
    assert config.scheduler.warmup_steps == 5  # what is typed counts
    assert not {"kept_tokens", "decay", "warmup_steps"} & config.module.keys()
    assert config.data.token_budget == config.token_budget and OmegaConf.is_struct(config)
    assert said.text.count("module.kept_tokens is called") == 1
    same = config_of("name=x")
    assert rename_config(same, ()) is same


def test_old_values_and_targets(said):
    score, engines = "datamodules.stages.score.RunFusion", "datamodules.engines.choose_engine"
    config = {
        "until": "collect",
        "queries": {"a": {"source": "assertions"}, "b": {"source": "titles"}},
        "teacher": {"_target_": score, "members": [{"_target_": engines}]},
        "module": {"_target_": "retriever.cross_encoder_module.CrossEncoderModule"},
        "name": "collect",
    }
    assert rename(config)
    assert config == {
        "until": "queries",
        "queries": {"a": {"source": "claims"}, "b": {"source": "titles"}},
        "teacher": {
            "_target_": "retriever.teachers.RunFusion",
            "members": [{"_target_": "datamodules.pipeline.engines.choose_engine"}],
        },
        "module": {"_target_": "retriever.cross_encoder.module.CrossEncoderModule"},
        "name": "collect",
    }
    assert "until=collect is called until=queries now" in said.text
    assert "queries.a.source=assertions is called queries.a.source=claims now" in said.text
    assert not rename(config)


def test_the_configuration_of_an_older_run_has_the_names_and_groups_of_now(said):
    now = OmegaConf.to_container(config_of("name=x", "early_stopping.patience=null"), resolve=True)
    before = json.loads(json.dumps(now))
    for group in ("optimizer", "callbacks"):
        del before[group]
    scheduler = before.pop("scheduler")
    before["module"] |= {key: scheduler[key] for key in ("warmup_steps", "decay", "final_learning_rate")}
    before["module"]["kept_tokens"] = before["module"].pop("uncheckpointed_tokens")
    for key in ("_recursive_", "sources", "dev_over_corpus", "guide"):
        del before["data"][key]
    del before["module"]["orthogonal_weight"], before["passage_encoder"]
    before["data"]["gather_shared"] = before["data"].pop("group_overlapping_lists")
    assert as_now(before) == now
    assert "data.gather_shared is called data.group_overlapping_lists now" in said.text


@pytest.mark.parametrize("module", ["infonce", "infonce_positive_aware", "reranker"])
def test_an_objective_of_an_older_run_is_the_one_of_now(module):
    now = OmegaConf.to_container(config_of(f"module={module}", "name=x"), resolve=True)
    newer = {"orthogonal_weight", "symmetric", "hardness", "negative_limit"}
    before = now | {"module": {key: value for key, value in now["module"].items() if key not in newer}}
    assert as_now(before) == now
