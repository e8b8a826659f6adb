"""Settings that Lightning or Hydra refuses, or that would train or validate nothing, end in one sentence."""

import sys

import pytest
import torch

from experiments import run as run_module
from experiments.settings.checks import check
from experiments.training import train as train_module
from experiments.training.train import run_experiment
from helpers.runs import config_of, metrics
from retriever.errors import InputError

pytestmark = pytest.mark.slow

BEFORE = {
    "trainer.limit_val_batches=0": "limit_val_batches is 0; it must be a whole number of batches, at least 1",
    "trainer.limit_train_batches=0": "limit_train_batches is 0; it must be",
    "trainer.limit_train_batches=1.5": "a share of them above 0 and at most 1.0",
    "trainer.val_check_interval=0": "val_check_interval is 0; it must be",
    "trainer.val_check_interval=0.0": "val_check_interval is 0.0; it must be",
    "trainer.val_check_interval=half": "val_check_interval is 'half'; a time is written days:hours",
    "+trainer.max_time=5": "max_time is 5; a time is written",
    "+trainer.max_time=00:00:00:00": "max_time is .00:00:00:00.; a time is written",
    "seed=-1": "seed is -1; it must be at least 0",
    "+trainer.max_time={second: 5}": "max_time is {'second': 5}; a time is written",
    "+trainer.overfit_batches=1": "overfit_batches is 1, which is not for a run: .* a draw",
    "+trainer.fast_dev_run=true": "fast_dev_run is true, which is not for a run: .* trainer.max_steps=2",
    "+trainer.barebones=true": "barebones is true",
    "+trainer.logger=false": "trainer.logger is set by the run itself: choose it by logger=csv",
    "+trainer.callbacks=[]": "trainer.callbacks is set by the run itself",
    "trainer.use_distributed_sampler=true": "use_distributed_sampler is true",
    "trainer.precision=bf16-true": "precision is 'bf16-true'; .* take 32-true, bf16-mixed",
    "trainer.strategy=ddp_spawn": "strategy is 'ddp_spawn'.* Take ddp",
    "trainer.strategy=ddpp": "trainer.strategy is 'ddpp', which Lightning refuses: You selected an invalid strategy",
    "trainer.accelerator=gpuu": "trainer.accelerator is 'gpuu', which Lightning refuses",
    "trainer.devices=0": "trainer.devices is 0, which Lightning refuses",
    "trainer.devices=two": "trainer.devices is 'two', which Lightning refuses",
    "+trainer.gradient_clip_algorithm=max": "gradient_clip_algorithm is 'max', which Lightning refuses",
    "+trainer.reload_dataloaders_every_n_epochs=-1": "reload_dataloaders_every_n_epochs is -1",
    "+trainer.profiler=fast": "trainer.profiler is 'fast', which Lightning refuses",
    "+trainer.plugins=[x]": r"trainer.plugins is \['x'\], which Lightning refuses",
    "logger.wandb=false": "logger.wandb is False; for runs without W&B, say logger=csv",
}


@pytest.mark.parametrize("override", BEFORE)
def test_a_wrong_setting_is_named_before_anything_is_loaded(small_run, override):
    extra = ["trainer.accelerator=cpu"] if "devices" in override else []
    config = config_of(*small_run, *extra, override)
    with pytest.raises(InputError, match=BEFORE[override]):
        check(config)


def test_where_time_ends_a_run_every_epoch_is_validated(small_run):
    with pytest.raises(InputError, match=r"check_val_every_n_epoch is 2, .* its last step would be lost"):
        check(config_of(*small_run, "+trainer.max_time=00:00:00:05", "trainer.check_val_every_n_epoch=2"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named(small_run):
    with pytest.raises(InputError, match="torch finds no GPU on this machine"):
        check(config_of(*small_run, "trainer=gpu", "trainer.accelerator=gpu"))


@pytest.mark.parametrize(
    "override",
    [
        "trainer.val_check_interval=0.01",
        "trainer.val_check_interval=00:01:00:00",
        "+trainer.max_time=00:00:00:05",
        "+trainer.max_time={minutes: 5}",
        "+trainer.gradient_clip_algorithm=value",
        "trainer.precision=bf16",
        "trainer.num_sanity_val_steps=2",
    ],
)
def test_what_lightning_takes_is_taken(small_run, override):
    time = ["trainer.check_val_every_n_epoch=null"] if ":01:" in override else []
    check(config_of(*small_run, *time, override))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer.val_check_interval=50", "val_check_interval is 50, and an epoch has 4 batches: take at most 4"),
        ("trainer.limit_train_batches=0.01", "limit_train_batches is 0.01, less than one of 4 batches: .* 0.25"),
        ("trainer.limit_val_batches=0.5", "limit_val_batches is 0.5, less than one of 1 batches"),
    ],
)
def test_what_the_number_of_batches_makes_wrong_is_named_before_anything_is_encoded(
    small_run, tmp_path, override, words
):
    with pytest.raises(InputError, match=words):
        run_experiment(config_of(*small_run, override), tmp_path / "run")
    assert not list((tmp_path / "run").rglob("step-*"))


def test_what_lightning_refuses_later_is_a_sentence_too(small_run, tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "check_batches", lambda *_: None)
    with pytest.raises(
        InputError, match=r"trainer.val_check_interval is 50.*, which Lightning refuses: .* must be less"
    ):
        run_experiment(config_of(*small_run, "trainer.val_check_interval=50"), tmp_path / "run")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["+seed=2"], "seed is there already: say seed=… without the +."),
        (["seed"], "'seed' cannot be read as key=value (missing EQUAL"),
        (["name=a=b"], "'name=a=b' cannot be read as key=value"),
        (["data.train=[{path: x"], "Close each bracket and quote"),
        (["seed=1,2"], "'seed=1,2' has several values for one run. For a run of each, say -m in front"),
        (["exp=scifact/distillation"], "exp has no choice yet that could be changed: say +exp=…"),
        (["logger=null"], "A group takes the name of one of its files, and no other value: logger=null does not."),
        (["module.temperature=${nothing}"], "Interpolation key 'nothing' not found (see module.temperature"),
        (["hydra.run.dir=/proc/x"], "The run folder /proc/x cannot be made"),
        (["~module"], "There is no module: a run needs one, say module=…."),
        (["--config-dir", "/no/such"], "Additional config directory '/no/such' not found"),
    ],
)
def test_what_hydra_refuses_is_one_sentence_with_advice(monkeypatch, capsys, tmp_path, arguments, words):
    place = [] if "hydra.run" in arguments[0] else [f"hydra.run.dir={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["run.py", *place, *arguments])
    with pytest.raises(SystemExit) as stopped:
        run_module.main()
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and words in said.splitlines()[-1] and "Traceback" not in said


def test_train_metrics_are_means_over_the_batches_of_a_step(small_run, tmp_path):
    still = ["module.learning_rate=1e-12", "encoder.dropout=0", "trainer.max_epochs=1", "export=false"]
    losses = {}
    for batches in (1, 2):
        folder = tmp_path / str(batches)
        run_experiment(config_of(*small_run, *still, f"trainer.accumulate_grad_batches={batches}"), folder)
        losses[batches] = [float(row["train/loss"]) for row in metrics(folder) if row["train/loss"]]
    assert len(losses[1]) == 4 and len(losses[2]) == 2
    for mean, *pair in zip(losses[2], losses[1][::2], losses[1][1::2], strict=True):
        assert abs(mean - sum(pair) / 2) < 0.05 * abs(pair[0] - pair[1])  # of 8 and 7 queries
