"""What a configuration says of temperatures that are fitted before a run begins; nothing here needs torch."""

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


def without_fitted_numbers(settings: dict[str, Any]) -> dict[str, Any]:
    """A run's settings, dotted key → value, with the rule where it fitted a temperature: seeds are then of one arm."""
    rule = settings.get("temperatures.fitted")
    fitted = {settings.get(f"temperatures.{name}") for name in FITTED} if rule else set()
    return {key: rule if "temperature" in key and value in fitted else value for key, value in settings.items()}
