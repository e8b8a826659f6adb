"""``trainer.precision=auto``, as long as no precision has taken its place; nothing here needs torch."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from experiments.cli.rerun import CONFIG

AUTO = "auto"


def without_auto(config: DictConfig) -> DictConfig:
    """A run's configuration with a precision that Lightning takes, for what looks at it before there is a model."""
    return _with_precision(config, "32-true") if config.trainer.get("precision") == AUTO else config


def with_recorded_precision(config: DictConfig, folder: Path) -> DictConfig:
    """A configuration that asks for ``auto``, with the precision that the run in a folder was begun with, if any was.

    Args:
        config: of a run.
        folder: of a run that was begun.
    """
    if config.trainer.get("precision") != AUTO or not (folder / CONFIG).is_file():
        return config
    return _with_precision(config, OmegaConf.select(OmegaConf.load(folder / CONFIG), "trainer.precision"))


def _with_precision(config: DictConfig, precision: str) -> DictConfig:
    config = config.copy()
    config.trainer.precision = precision
    return config
