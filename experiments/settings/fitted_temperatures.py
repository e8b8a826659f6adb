"""What a configuration says of temperatures that are fitted before a run begins; nothing here needs torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.cli.rerun import CONFIG
from experiments.settings.older_runs import as_now

FITTED = ("student", "teacher", "corpus_teacher")


def read_by_objective(config: DictConfig) -> list[str]:
    """Those of the fitted temperatures that ``module`` follows."""
    followed = str(OmegaConf.to_container(config.module, resolve=False))
    return [name for name in FITTED if f"${{temperatures.{name}}}" in followed]


def recorded_temperatures(config: DictConfig, folder: Path) -> dict[str, Any] | None:
    """The temperatures of a run that fitted them by the rule that a configuration asks for; None where it did not.

    Args:
        config: of a run.
        folder: of a run that was begun.
    """
    asked = config.temperatures.get("fitted")
    if not asked or not (folder / CONFIG).is_file():
        return None
    recorded: Any = as_now(OmegaConf.to_container(OmegaConf.load(folder / CONFIG)))
    before = recorded.get("temperatures") or {}
    return before if before.get("fitted") == asked else None


def with_recorded_temperatures(config: DictConfig, folder: Path) -> DictConfig:
    """A configuration with the temperatures that the run in a folder has fitted by the same rule, if it has."""
    recorded = recorded_temperatures(config, folder)
    if recorded is None:
        return config
    config = config.copy()
    for name in read_by_objective(config):
        config.temperatures[name] = recorded[name]
    return config


def without_fitted_numbers(settings: dict[str, Any], follows: Mapping[str, str]) -> dict[str, Any]:
    """Put the rule in the place of temperatures that a run fitted: its seeds are then of one arm.

    Args:
        settings: of a run, dotted key → value.
        follows: dotted key → expression of those that follow others (``follows.yaml``).
    """
    rule = settings.get("temperatures.fitted")
    if not rule:
        return settings
    read = {expression for key, expression in follows.items() if key.startswith("module.")}
    fitted = {f"${{temperatures.{name}}}" for name in FITTED} & read
    return {k: rule if f"${{{k}}}" in fitted or follows.get(k) in fitted else v for k, v in settings.items()}
