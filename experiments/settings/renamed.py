"""Names of before, and what they are called now: one table for command lines, configurations and run folders."""

import logging
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write

from experiments.settings.walk import walk

log = logging.getLogger(__name__)

# Each name of before works for one release more. Settings:
KEYS = {
    "module.kept_tokens": "module.uncheckpointed_tokens",
    "module.warmup_steps": "scheduler.warmup_steps",
    "module.decay": "scheduler.decay",
    "module.final_learning_rate": "scheduler.final_learning_rate",
    "data.gather_shared": "data.group_overlapping_lists",
}
# Values; a * is any key:
VALUES = {
    "until": {"collect": "queries"},
    "stage": {"collect": "queries"},
    "queries.*.source": {"assertions": "claims"},
}
# What a `_target_` names, or what that is in:
TARGETS = {
    "datamodules.stages": "datamodules.pipeline.stages",
    "datamodules.engines": "datamodules.pipeline.engines",
    "datamodules.stages.score": "retriever.teachers",
    "datamodules.pipeline.stages.score": "retriever.teachers",
    "retriever.cross_encoder_module": "retriever.cross_encoder.module",
    "callbacks.BeirEvaluation": "callbacks.DenseEvaluation",
}
OF_BENCH = {"kept_tokens": "uncheckpointed_tokens"}
_ARGUMENT = re.compile(r"(\+\+|\+|~|)([\w.]+)(|=.*)", re.DOTALL)
_said: set[str] = set()


def rename_arguments(keys: Mapping[str, str] = KEYS) -> None:
    """Give the settings on this process' command line their names of now."""
    sys.argv[1:] = [_renamed_argument(argument, keys) for argument in sys.argv[1:]]


def _renamed_argument(argument: str, keys: Mapping[str, str]) -> str:
    parts = _ARGUMENT.fullmatch(argument)
    if parts is None or parts[2] not in keys:
        return argument
    _say(parts[2], keys[parts[2]])
    return f"{parts[1]}{keys[parts[2]]}{parts[3]}"


class RenameSwept(Callback):
    """Hydra callback: give the settings that an experiment's file sweeps over their names of now."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Rename them before the sweeper reads them."""
        swept = config.hydra.sweeper.get("params")
        if swept is not None and not KEYS.keys().isdisjoint(swept):
            with read_write(config.hydra):
                config.hydra.sweeper.params = {_renamed_argument(key, KEYS): value for key, value in swept.items()}


def rename_config(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Return a composed configuration with names of now, as a user's own files may have those of before.

    Args:
        config: as Hydra composed it.
        overrides: as they were typed; a setting among them keeps its value.
    """
    plain: Any = OmegaConf.to_container(config, resolve=False)
    if not rename(plain, {override.lstrip("+~").partition("=")[0] for override in overrides}):
        return config
    renamed = OmegaConf.create(plain)
    OmegaConf.set_struct(renamed, True)
    return renamed


def rename(config: dict[str, Any], kept: Collection[str] = ()) -> bool:
    """Change names of before in a configuration to those of now, with a warning for each.

    Args:
        config: a whole configuration as plain containers; it is changed.
        kept: settings that keep the value that they have. Of others that are there under both names, the value of the
            old one counts, for the new one is then as the shipped files have it.

    Returns:
        Whether any was found.
    """
    found = {}
    for old, new in KEYS.items():
        for _, section, name in list(_places(config, old.split("."))):
            place, _, new_name = new.rpartition(".")
            target = config.setdefault(place, {}) if place else config
            value = section.pop(name)
            if new not in kept:
                target[new_name] = value
            found[old] = new
    for key, values in VALUES.items():
        for place, section, name in _places(config, key.split(".")):
            if isinstance(section[name], str) and section[name] in values:
                old, section[name] = section[name], values[section[name]]
                found[f"{place}={old}"] = f"{place}={section[name]}"
    for _, section in walk(config):
        target = section.get("_target_") if isinstance(section, dict) else None
        for old, new in TARGETS.items():
            if isinstance(target, str) and f"{target}.".startswith(f"{old}."):
                section["_target_"] = new + target.removeprefix(old)
                found[target] = section["_target_"]
    for old, new in found.items():
        _say(old, new)
    return bool(found)


def _places(section: Any, keys: list[str], place: str = "") -> Iterator[tuple[str, dict[str, Any], str]]:
    """Dotted key, mapping and last key of each setting that a pattern matches."""
    first, *rest = keys
    for name in list(section) if isinstance(section, dict) else ():
        if first in ("*", name):
            if rest:
                yield from _places(section[name], rest, f"{place}{name}.")
            else:
                yield f"{place}{name}", section, name


def _say(old: str, new: str) -> None:
    if old not in _said:  # once, of a sweep or of many run folders
        _said.add(old)
        log.warning("%s is called %s now; the old name works for one release more", old, new)
