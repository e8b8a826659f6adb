"""Configurations as the commands compose them, what a run folder holds, and what a refused command says."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

import experiments
from experiments import prepare as prepare_module
from helpers import in_float32, parsed_once, short_estimates  # noqa: F401

CONF = Path(experiments.__file__).parent / "conf"


def config_of(*overrides):
    """The configuration of ``experiments.run`` with these overrides."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("run", list(overrides))


def prepare_config_of(*overrides):
    """The configuration of ``experiments.prepare`` with these overrides."""
    with initialize_config_dir(str(CONF / "prepare"), version_base="1.3"):
        return compose("prepare", list(overrides))


def prepare(overrides):
    """The lists that ``experiments.prepare`` writes with these overrides."""
    return prepare_module.prepare(prepare_config_of(*overrides))


LISTS = ("human.dev", "human.train", "synthetic.dev", "synthetic.train")


def lists_in(folder):
    """Name → bytes of the lists that ``prepare`` wrote into a folder."""
    return {name: (Path(folder) / f"{name}.parquet").read_bytes() for name in LISTS}


def weights(folder):
    """The weights of a run's last checkpoint."""
    return torch.load(next((folder / "checkpoints").glob("last.ckpt")), weights_only=True)["state_dict"]


def metrics(folder):
    """The rows of a run's metrics.csv."""
    with open(folder / "metrics.csv") as file:
        return list(csv.DictReader(file))


def error_of(module, monkeypatch, capsys, *arguments):
    """What a command writes to stderr when it refuses its arguments."""
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error
