"""The precision of a run: ``trainer.precision=auto`` becomes one of Lightning's before the run begins."""

import json
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from datamodules.precision import Precision, fastest_precision
from experiments.cli.ranks import broadcast_from_rank_zero
from experiments.settings.precision import AUTO, with_recorded_precision
from retriever.encoder.precision import FLOAT32


def with_chosen_precision(config: DictConfig, encoder: torch.nn.Module, key: str) -> tuple[DictConfig, str | None]:
    """Put a precision in the place of ``auto``: the fastest, or that with which a run that goes on began.

    The first rank chooses, and all take what it chose.

    Args:
        config: of a run.
        encoder: made by it.
        key: what is run, once a command.

    Returns:
        The configuration; and what is said of the choice, None where nothing was chosen.
    """
    if config.trainer.get("precision") != AUTO:
        return config, None
    if config.resume:
        config = with_recorded_precision(config, Path(config.resume))
        if config.trainer.precision != AUTO:
            return config, f"{config.trainer.precision}, as the run began with"
    found = broadcast_from_rank_zero(
        f"precision of {key}", lambda: json.dumps(_fastest(config, encoder)), config.trainer.get("num_nodes") or 1
    )
    chosen = Precision(*json.loads(found))
    config = config.copy()
    config.trainer.precision = chosen.name
    return config, chosen.said("trainer.precision")


def _fastest(config: DictConfig, encoder: torch.nn.Module) -> Precision:
    # for the device alone
    trainer = instantiate(
        config.trainer, precision=FLOAT32, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    return fastest_precision(encoder, trainer.strategy.root_device, config.cache_dir)
