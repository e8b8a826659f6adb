"""The base model is the first checkpoint: a run that never beats it by the dev criterion keeps it."""

import json

import pytest
import torch

from experiments.comparison.formats import markdown
from experiments.comparison.tables import compare
from experiments.training.train import run_experiment
from helpers.run_folders import values, write_run
from helpers.runs import config_of, weights
from retriever.encoder.text_encoder import TextEncoder

pytestmark = pytest.mark.slow


def test_a_run_that_never_beats_its_base_keeps_it(small_run, tiny_model, tmp_path, caplog):
    worse = ["module=distillation", "module.learning_rate=3.0", "scheduler.warmup_steps=1", "trainer.max_epochs=3"]
    results = run_experiment(config_of(*small_run, *worse), tmp_path / "run")
    assert results["criterion_of_base"] < results["criterion_value"] == min(results["criterion_by_step"].values())
    assert results["steps"] == {"base": 0, "best": 0, "last": 12}
    for points in results["datasets"]["small"].values():
        assert points["best"] == points["base"]
    exported, base = (TextEncoder.from_pretrained(str(f)) for f in (tmp_path / "run" / "model", tiny_model))
    for name, weight in base.backbone.state_dict().items():
        assert torch.equal(exported.backbone.state_dict()[name], weight)
    assert "By dev/loss no step was better than the base model, which is kept." in caplog.text
    assert "**not fine-tuned**" in (tmp_path / "run" / "model" / "README.md").read_text()
    assert "so small kept the base model" in markdown(compare([tmp_path / "run"]))


ENDS = {  # of four steps an epoch → the steps that are validated
    "trainer.max_steps=2": [2],
    "trainer.max_steps=6": [4, 6],
    "trainer.max_epochs=3 trainer.check_val_every_n_epoch=2": [8, 12],
    "trainer.max_epochs=2 trainer.val_check_interval=3": [3, 7, 8],
    "trainer.max_steps=3 trainer.val_check_interval=00:01:00:00": [3],
}


@pytest.mark.parametrize("options", ENDS)
def test_the_last_step_is_validated_wherever_the_run_ends(small_run, tmp_path, options):
    worse = ["module=distillation", "module.learning_rate=3.0", "scheduler.warmup_steps=1", *options.split()]
    results = run_experiment(config_of(*small_run, *worse), tmp_path / "run")
    assert list(results["criterion_by_step"]) == [str(step) for step in ENDS[options]]
    assert results["criterion_of_base"] < results["criterion_value"]
    assert results["steps"] == {"base": 0, "best": 0, "last": ENDS[options][-1]}


@pytest.mark.parametrize("options", ENDS)
def test_a_run_that_was_cut_off_behind_its_last_validation_ends_the_same(small_run, tmp_path, options):
    whole = run_experiment(config_of(*small_run, *options.split()), tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    before = weights(tmp_path / "run")
    resumed = run_experiment(config_of(*small_run, *options.split(), f"resume={tmp_path / 'run'}"), tmp_path / "run")
    differing = {"wall_time_s", "peak_memory_bytes"}
    assert all(resumed[key] == value for key, value in whole.items() if key not in differing)
    assert all(torch.equal(before[key], value) for key, value in weights(tmp_path / "run").items())


def test_early_stopping_counts_from_the_base_model(small_run, tmp_path):
    worse = ["module=distillation", "module.learning_rate=3.0", "scheduler.warmup_steps=1", "trainer.max_epochs=9"]
    patience = ["early_stopping.patience=2", "early_stopping.monitors=[dev/kl,dev/loss]"]
    options = [o for o in small_run if not o.startswith("early_stopping")]
    results = run_experiment(config_of(*options, *worse, *patience), tmp_path / "run")
    assert results["steps"]["last"] == 8  # two epochs of four steps


def test_a_run_that_goes_on_knows_the_base_model(small_run, tmp_path):
    worse = ["module=distillation", "module.learning_rate=3.0", "scheduler.warmup_steps=1"]
    first = run_experiment(config_of(*small_run, *worse, "trainer.max_epochs=1"), tmp_path / "run")
    assert first["steps"]["best"] == 0
    (tmp_path / "run" / "results.json").unlink()
    resumed = config_of(*small_run, *worse, "trainer.max_epochs=2", f"resume={tmp_path / 'run'}")
    results = run_experiment(resumed, tmp_path / "run")
    assert results["steps"]["best"] == 0 and results["criterion_by_step"].keys() == {"4", "8"}
    assert results["criterion_of_base"] == first["criterion_of_base"]
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results


def test_a_checkpoint_of_an_earlier_version_names_its_best(small_run, tmp_path):
    """ModelCheckpoint kept the state then."""
    run_experiment(config_of(*small_run, "module=distillation", "trainer.max_epochs=1"), tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    states = torch.load(last, weights_only=True)["callbacks"]
    [best] = [key for key, state in states.items() if "step-" in str(state.get("best_model_path"))]
    assert best.startswith("ModelCheckpoint{")


def test_a_named_base_keeps_nothing(tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        write_run(tmp_path / name, name, 1, {"d": values(seed)})
    text = markdown(compare([tmp_path], base="a"))
    assert "kept the base model" not in text
