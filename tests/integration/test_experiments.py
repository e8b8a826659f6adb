"""Every file under experiments/conf/exp: each arm composes and builds its objective, the first one makes a step."""

import importlib.util

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import OmegaConf

from datamodules.corpus import find_file
from experiments.training.train import run_experiment
from helpers.runs import CONF

pytestmark = pytest.mark.slow

# the paper's own needs lists that `prepare +exp=cadet` makes: test_cadet.py
FILES = sorted(path for path in (CONF / "exp").rglob("[!_]*.yaml") if not path.stem.startswith("cadet"))
OWN_FILES = {"lists": "train", "human_lists": "train", "dev_lists": "dev", "held_out": "held_out"}
NEEDS_OPTUNA = pytest.mark.skipif(not importlib.util.find_spec("optuna"), reason="the extra 'sweep'")
CASES = [pytest.param(path, marks=[NEEDS_OPTUNA] * (path.stem == "search"), id=path.stem) for path in FILES]


def arms_of(params):
    """The overrides of each run that Hydra's sweeper makes of an experiment's grid, of several seeds for the first."""
    given = dict(params) | {"seed": str(params["seed"]).partition(",")[0]} if "seed" in params else params
    overrides = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in given.items()])
    if any(override.is_interval_sweep() for override in overrides):  # a search: its space has no list of arms
        return [[]]
    return BasicSweeper.split_arguments(overrides, None)[0]


@pytest.mark.parametrize("path", CASES)
def test_every_experiment_starts_and_makes_a_step(
    path, small_run, small_scifact, typed_lists, tiny_model, tiny_encoder, tiny_chat_model, tmp_path
):
    name = str(path.relative_to(CONF / "exp").with_suffix(""))
    assert path.read_text().startswith(f"# @package _global_\n# python -m experiments.run +exp={name}\n")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        plain = compose("run", [f"+exp={name}"], return_hydra_config=True)
        arms = arms_of(plain.hydra.sweeper.get("params") or {})
        configs = [compose("run", [f"+exp={name}", *arm]) for arm in arms]
        own = [f"{key}={typed_lists / part}.parquet" for key, part in OWN_FILES.items() if key in plain]
        small = [*small_run, "trainer.max_epochs=1", "trainer.max_steps=1", "export=false"]
        files = OmegaConf.to_container(OmegaConf.load(path)).get("data") or {}
        stated = [spec["path"] for key in ("train", "dev") for spec in files.get(key) or ()]
        named = [name for name in stated if "${" not in name]
        assert all(find_file(name).is_file() for name in named)
        if own and not named:  # as the files tell a user to name a corpus and lists
            lists = ("data.train", "data.dev", "evaluation.datasets")
            small = [o for o in small if not o.startswith(lists)] + ["data.leak_jaccard=1.1", f"corpus={small_scifact}"]
            small += own
        small += ["list_count=5"] * ("list_count" in plain)
        if plain.evaluation.get("dense") is not None:
            small += [f"evaluation.dense.model={tiny_model}", "evaluation.dense.pooling=mean"]
        if plain.passage_encoder is not None:
            small += [f"passage_encoder.model={tiny_model}", "passage_encoder.passage_max_length=64"]
        if path.stem == "decoder":
            small += [f"encoder.model={tiny_chat_model}", "encoder.pooling=last"]
        first = compose("run", [f"+exp={name}", *arms[0], *small])
    for config in configs:
        for part in (config.data, config.evaluation):
            OmegaConf.to_container(part, resolve=True, throw_on_missing=True)
        if config.module._target_.startswith("retriever.objectives"):
            instantiate(config.module, encoder=tiny_encoder)
    settings = {OmegaConf.to_yaml(config) for config in configs}
    assert len(settings) == len(configs), "two arms are the same"
    assert run_experiment(first, tmp_path / "run")["optimiser_steps"] == 1
