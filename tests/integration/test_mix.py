"""experiments.mix: what is mixed, which mixture is kept, and that it is evaluated as a run is."""

import json
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from experiments.evaluate import evaluate
from experiments.evaluation.typed import as_overrides
from experiments.mix import main, mix
from experiments.push import push
from experiments.training.train import run_experiment
from helpers.runs import CONF, config_of
from retriever.encoder import TextEncoder
from retriever.errors import InputError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_model_with_dense, small_scifact, small_lists):
    """Folders of two seeds whose query side was trained, and of a run with another base model."""
    folder = tmp_path_factory.mktemp("mixed")
    options = [
        f"encoder.model={tiny_model_with_dense}",
        "encoder.passage_max_length=64",
        "data.leak_guard=off",
        "data.batch_size=8",
    ]
    # dev lists are the train lists, so that no step is worse than the base model
    options += [f"data.{part}=[{{path: {small_lists}, corpus: {small_scifact}}}]" for part in ("train", "dev")]
    options += [f"evaluation.datasets=[{{path: {small_scifact}}}]", "module.learning_rate=1e-3", "trainer.max_epochs=4"]
    options += ["trainer.accelerator=cpu", "logger=csv", "early_stopping.patience=null", f"output_dir={folder}"]
    options += ["name=small", "module=distillation", "module.train_passage_encoder=false", "criterion=dev/kl"]
    found = [folder / "one", folder / "two", folder / "other"]
    run_experiment(config_of(*options, "seed=1"), found[0])
    run_experiment(config_of(*options, "seed=2"), found[1])
    run_experiment(config_of(*options, "encoder.pooling=cls"), found[2])
    return found


def weights(folder):
    return TextEncoder.from_pretrained(str(folder)).state_dict()


def test_all_of_a_run_is_that_run_and_its_criterion(runs, tmp_path):
    found = mix(runs[:1], tmp_path / "out", [1.0])
    recorded = json.loads((runs[0] / "results.json").read_text())["criterion_value"]
    assert found[1.0] == pytest.approx(recorded, abs=1e-6) and list(found) == [0.0, 1.0]
    kept = json.loads((tmp_path / "out" / "mix.json").read_text())["share"]
    assert kept == min(found, key=found.get)


def test_weights_are_the_weighted_mean_of_base_and_runs(runs, tmp_path, tiny_model_with_dense):
    found = mix(runs[:2], tmp_path / "out", [0.25, 0.5])
    share = json.loads((tmp_path / "out" / "mix.json").read_text())["share"]
    base, one, two, mixed = map(
        weights, (tiny_model_with_dense, runs[0] / "model", runs[1] / "model", tmp_path / "out" / "model")
    )
    assert share == min(found, key=found.get) and share > 0
    assert "head.0.linear.weight" in mixed
    for name, value in mixed.items():
        expected = (1 - share) * base[name].double() + share * (one[name].double() + two[name].double()) / 2
        torch.testing.assert_close(value.double(), expected, atol=1e-7, rtol=1e-6)
    assert any(not torch.equal(one[name], two[name]) for name in one)


def test_a_mixture_is_evaluated_as_a_run_whose_query_side_was_trained(runs, tmp_path, small_scifact, capsys):
    main([str(runs[0]), "--shares", "1", "--output", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "kept" in said and f"python -m experiments.evaluate {runs[0]} {tmp_path / 'out'} sets=…" in said
    share = json.loads((tmp_path / "out" / "mix.json").read_text())["share"]
    typed = [str(runs[0]), str(tmp_path / "out"), f"sets={small_scifact}", "trainer.accelerator=cpu"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("evaluate", as_overrides([*typed, f"output_dir={tmp_path}"]))
    of_run, of_mix = (json.loads((f / "results.json").read_text()) for f in evaluate(config, tmp_path / "table"))
    assert of_mix["name"] == f"mix of {of_run['name']}"
    assert share == 1 and of_mix["datasets"] == of_run["datasets"]  # with the base model's passages, as the run
    [shared] = push(tmp_path / "out", "me/mix", tmp_path / "shared", lists=False, private=False)
    card = (Path(shared) / "README.md").read_text()
    assert f"1 of the mean weights of {runs[0].name}, and 0 of" in card and str(runs[0].parent) not in card


def test_what_cannot_be_mixed_is_refused(runs, tmp_path, capsys):
    with pytest.raises(InputError, match="2 different base models"):
        mix([runs[0], runs[2]], tmp_path / "out")
    with pytest.raises(InputError, match="no finished run with an exported model"):
        mix([tmp_path], tmp_path / "out")
    with pytest.raises(InputError, match=r"--shares is \[1.5\]"):
        mix(runs[:1], tmp_path / "out", [1.5])
    with pytest.raises(InputError, match="is there already"):
        mix(runs[:1], tmp_path, [1.0])
    with pytest.raises(SystemExit, match=r"error: .*nowhere: no finished run"):
        main(["nowhere", "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))
