"""The runs of a sweep: a finished one is not repeated, one that was cut off goes on, one that fails stops no other."""

import hashlib
import logging
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

from callbacks.reliability.checkpoint_files import has_checkpoint
from callbacks.reporting.results import read_results
from datamodules.storage.files import write_text
from experiments.cli.errors import explain, is_for_users
from experiments.cli.ranks import is_first_rank
from experiments.cli.redact import redact
from experiments.cli.rerun import CONFIG
from experiments.settings.fitted_temperatures import with_recorded_temperatures
from experiments.settings.older_runs import as_now
from experiments.settings.precision import with_recorded_precision
from retriever.errors import InputError
from retriever.printable import printable

log = logging.getLogger(__name__)
ERROR_FILE = "error.txt"
_MOST_COMPOSED = 64  # arms of a sweep whose names are looked at one by one: each takes a tenth of a second
# what is written, logged and measured beside training, and where, makes no other run
FOLDERS = {"output_dir", "cache_dir", "data_dir"}
PLACES = FOLDERS | {"resume", "repeats", "allowed_targets", "group", "logger", "diagnostics"}


def _run_folder(sweep: str, number: int, name: str, overrides: str) -> str:
    """A run's folder: the one that these overrides have in the sweep's, whatever their number was, or a new one."""
    stem = f"{name}_{hashlib.sha256(overrides.encode()).hexdigest()[:8]}"
    there = sorted(path.name for path in Path(sweep).glob("*") if path.name.partition("_")[2] == stem)
    return there[0] if there else f"{number:03d}_{stem}"


OmegaConf.register_new_resolver("run_folder", _run_folder, replace=True)


def run_of_sweep(
    config: DictConfig,
    folder: Path,
    train: Callable[[DictConfig, Path], dict],
    in_effect: Callable[[Any], Any],
) -> dict[str, Any] | None:
    """Do what is left of a run.

    Args:
        config: the run's configuration.
        folder: its folder; what an earlier sweep left there is gone on with.
        train: does it.
        in_effect: gives a configuration, of plain containers, the values that its settings have in effect, so that two
            ways to say one thing are one.

    Returns:
        The content of ``results.json``; None where the run failed: ``error.txt`` then says why.

    Raises:
        InputError: the folder holds a run of another configuration.
    """
    results, cut_off = read_results(folder), has_checkpoint(folder)
    begun = results is not None or cut_off
    damaged = begun and not (folder / CONFIG).is_file()
    if begun and not damaged:
        _refuse_other_configuration(config, folder, in_effect)
    if is_first_rank():
        (folder / ERROR_FILE).unlink(missing_ok=True)
    if damaged:
        what = "results" if results is not None else "a checkpoint"
        message = f"{folder} holds {what} and no config.yaml. Remove the folder, and the same command runs it again."
        keep_error(InputError(message), folder)
        return None
    if results is not None:
        log.info("%s is finished, and not run again", folder)
        return results
    if cut_off:
        log.info("%s was cut off, and goes on from its last checkpoint", folder)
        config.resume = str(folder)
    try:
        return train(config, folder)
    except Exception as error:  # whatever it is, the other runs can do without this one
        from retriever.distributed.ranks import world_size

        keep_error(error, folder)
        if world_size() > 1:  # the other ranks wait for this one
            raise
        return None


def first_difference(old: Any, new: Any, place: str = "") -> tuple[str, Any, Any] | None:
    """The first key in which two configurations differ, and its two values; where things go does not count."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted((old.keys() | new.keys()) - PLACES):
            found = first_difference(old.get(key), new.get(key), f"{place}.{key}".lstrip("."))
            if found:
                return found
        return None
    return None if old == new else (place, old, new)


class NameArms(Callback):
    """Hydra callback: which settings a sweep's arms need beside their name, so that no two of them share one.

    Args:
        told_apart_by: these settings; the sweep's own process writes them there for its runs.
    """

    def __init__(self, told_apart_by: Sequence[str] = ()) -> None:
        self.told_apart_by = list(told_apart_by)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Find them, and hand them to the runs, whose configurations are composed again from their overrides."""
        try:
            keys = _told_apart_by(config)
        except (HydraException, OmegaConfBaseException):  # the sweeper says what is wrong
            return
        if keys:
            with read_write(config.hydra):
                config.hydra.overrides.hydra.append(f"hydra.callbacks.arms.told_apart_by=[{','.join(keys)}]")


def arm_name(name: str, hydra: DictConfig) -> str:
    """A run's name, with those of its settings by which its sweep tells arms of that name apart.

    Args:
        name: as the configuration has it.
        hydra: Hydra's own configuration, of the run.
    """
    keys = OmegaConf.select(hydra, "callbacks.arms.told_apart_by") or ()
    given = {key: value for key, _, value in (_plain_override(line) for line in hydra.overrides.task)}
    what = ", ".join(f"{key}={given[key]}" for key in keys if key in given)
    return f"{name} ({what})" if what else name


def _plain_override(line: str) -> tuple[str, str, str]:
    """Key, ``=`` and value of an override, as typed, without what adds or takes away."""
    return line.lstrip("+~").partition("=")


def _told_apart_by(config: DictConfig) -> list[str]:
    """The swept settings in which two arms of one name differ."""
    space = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    overrides = OverridesParser.create().parse_overrides([*space, *config.hydra.overrides.task])
    arms = [o for o in overrides if _plain_override(o.input_line)[0].partition(".")[0] not in PLACES | {"seed", "name"}]
    if any(override.is_sweep_override() and not override.is_discrete_sweep() for override in arms):
        return sorted({o.key_or_group for o in arms if o.is_sweep_override()})  # a search has no list of arms
    lines = BasicSweeper.split_arguments(arms, None)[0]
    swept = {_plain_override(o.get_key_element())[0] for o in arms if o.is_discrete_sweep()}
    named: dict[str, list[dict[str, str]]] = {}
    for line in lines:
        name = "" if len(lines) > _MOST_COMPOSED else _name_of(config, line)
        named.setdefault(name, []).append({key: value for key, _, value in map(_plain_override, line)})
    return sorted(key for key in swept if any(len({arm[key] for arm in arms}) > 1 for arms in named.values()))


def _name_of(config: DictConfig, overrides: Sequence[str]) -> str:
    """The name that one run of a sweep has."""
    before = HydraConfig.instance().cfg
    try:
        composed = GlobalHydra.instance().config_loader().load_sweep_config(config, list(overrides))
        HydraConfig.instance().set_config(composed)  # names refer to it
        return str(composed.name)
    finally:
        HydraConfig.instance().cfg = before


class FailedRuns(Callback):
    """Hydra callback: the runs of a sweep that failed, at its end; the command then exits with status 1."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """List them."""
        errors = sorted(Path(config.hydra.sweep.dir).glob(f"*/{ERROR_FILE}"))
        if not errors or not is_first_rank():
            return
        lines = [f"{path.parent}: {path.read_text(encoding='utf-8').splitlines()[0]}" for path in errors]
        runs = "One run" if len(lines) == 1 else f"{len(lines)} runs"
        again = "The same command with this hydra.sweep.dir tries again, and repeats no finished run."
        sys.exit(printable("\n".join([f"error: {runs} of {config.hydra.sweep.dir} failed. {again}", *lines])))


def _refuse_other_configuration(config: DictConfig, folder: Path, in_effect: Callable[[Any], Any]) -> None:
    config = with_recorded_precision(with_recorded_temperatures(config, folder), folder)
    # without secrets, written and read again, as the other one was
    asked = OmegaConf.create(OmegaConf.to_yaml(redact(OmegaConf.to_container(config, resolve=True))))
    begun = as_now(OmegaConf.to_container(OmegaConf.load(folder / CONFIG)))
    found = first_difference(in_effect(begun), in_effect(OmegaConf.to_container(asked)))
    if found:
        key, old, new = found
        raise InputError(
            f"{folder} holds a run with {key}={old}, and this sweep asks for {key}={new}. Go on with the settings that "
            "the sweep began with, or name another folder in hydra.sweep.dir."
        )


def keep_error(error: Exception, folder: Path) -> None:
    """Log why a job failed, and write ``error.txt``, on the first rank."""
    message = " ".join((explain(error) if is_for_users(error) else f"{type(error).__name__}: {error}").split())
    log.error("%s failed: %s", folder, message)
    if is_first_rank():  # on a full disk this fails, too, and ends the sweep
        write_text(folder / ERROR_FILE, f"{message}\n\n{''.join(traceback.format_exception(error))}")
