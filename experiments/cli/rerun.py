"""A folder's command run again: python -m experiments.run --from RUN [key=value ...], and so prepare, of its lists.

``config.yaml`` in the folder is all that is needed. ``follows.yaml`` beside it says which settings follow others, so
that ``seed=2`` reaches ``data.seed``, too. The folder may come from others: it decides nothing that runs foreign code.
"""

import json
import logging
import re
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from datamodules.storage.files import atomic_path
from experiments.cli.redact import HIDDEN, redact
from experiments.conf import CONF
from experiments.settings.older_runs import as_now
from experiments.settings.walk import walk
from retriever.errors import InputError

log = logging.getLogger(__name__)
FLAG = "--from"
CONFIG, FOLLOWS = "config.yaml", "follows.yaml"
NAME = "repeated"  # of the configuration, for Hydra
_RUN = CONF / "run.yaml"
_ASKED_FOR = ("trust_remote_code", "_target_", "allowed_targets")  # what no folder may switch on
_RESOLVER = re.compile(r"\$\{\s*[\w.]+\s*:")  # ${oc.env:NAME}, not ${seed}
_TYPED: list[list[str]] = []
_MANY = 12  # packages named in a warning
_MACHINE = ("python", "platform", "processor", "device", "torch_threads", "cuda", "determinism")


def start_from(application: Any, read: Callable[[Path, set[str]], DictConfig]) -> None:
    """Call a Hydra application; where the command line says ``--from FOLDER``, with the configuration in it.

    Args:
        application: the application.
        read: reads it, given the folder and the keys that are typed beside it.
    """
    _remember()
    parser = ArgumentParser(add_help=False, allow_abbrev=False)  # all else is for Hydra
    parser.add_argument(FLAG, action="append", nargs="?", const="", default=[], dest="folders")
    given, rest = parser.parse_known_args()
    if given.folders:
        if len(given.folders) > 1 or not given.folders[0]:
            raise InputError(f"{FLAG} wants one folder: {FLAG} RUN.")
        typed = {a.partition("=")[0].lstrip("+~") for a in rest if "=" in a}
        ConfigStore.instance().store(NAME, read(Path(given.folders[0]), typed))
        sys.argv = [sys.argv[0], "--config-name", NAME, *rest]
    application()


def start_with(application: Any, rewrite: Callable[[Sequence[str]], list[str]]) -> None:
    """Call a Hydra application with the command line that ``rewrite`` makes of what was typed."""
    _remember()
    sys.argv[1:] = rewrite(sys.argv[1:])
    application()


def _remember() -> None:
    _TYPED.append(list(sys.argv))


def as_typed() -> None:
    """Put the command line back as it was typed: Lightning starts other ranks with it, and records keep it."""
    if _TYPED:
        sys.argv = list(_TYPED[-1])


def read_run(folder: Path, typed: Sequence[str] | set[str] = ()) -> DictConfig:
    """The configuration of a run, for Hydra to compose overrides onto; as :func:`read_config`."""
    recorded = _load(folder / CONFIG)
    config = _to_compose_onto(recorded, folder, typed, _RUN)
    if "callbacks" not in recorded:  # a run of before it was a group; its settings follow those at the top
        config.callbacks = OmegaConf.load(CONF / "callbacks" / "default.yaml")
    config.resume = None
    return config


def read_config(folder: Path, typed: Sequence[str] | set[str], shipped_as: Path) -> DictConfig:
    """The configuration that a command left in a folder, for Hydra to compose overrides onto.

    Args:
        folder: the folder, of a run or of lists.
        typed: keys that the command line gives.
        shipped_as: the file that names all settings of that command.

    Raises:
        InputError: no such file; it is no configuration of a run; or it lacks secrets, or would run foreign code, and
            the command line does not say so.
    """
    return _to_compose_onto(_load(folder / CONFIG), folder, typed, shipped_as)


def _to_compose_onto(
    recorded: DictConfig, folder: Path, typed: Sequence[str] | set[str], shipped_as: Path
) -> DictConfig:
    path = folder / CONFIG
    config = OmegaConf.create(as_now(OmegaConf.to_container(recorded)))
    shipped = OmegaConf.load(shipped_as)
    of_hydra = shipped.hydra
    groups_of_hydra = [group for group in shipped.defaults if str(group).startswith("{'override hydra/")]
    for key in ("hydra", "defaults"):
        if key in config:
            raise InputError(f"{path} has {key!r}, which the configuration of a finished run has not. Remove it.")
        del shipped[key]
    wanting = [key for key in _to_be_named(OmegaConf.to_container(config)) if key not in typed]
    if wanting:
        raise InputError(
            f"{path} keeps no secrets, and does not decide which foreign code is run: give "
            f"{', '.join(f'{key}=…' for key in wanting)} on the command line."
        )
    for key in shipped:  # an older one knows fewer settings
        if key not in config:
            config[key] = shipped._get_node(key)
    if (folder / FOLLOWS).is_file():
        for key, expression in OmegaConf.to_container(_load(folder / FOLLOWS)).items():
            _follow(config, str(key), expression)
    config.repeats = str(folder.absolute())
    config.hydra = of_hydra
    if groups_of_hydra:
        config.defaults = ["_self_", *groups_of_hydra]
    return config


def _load(path: Path) -> DictConfig:
    try:
        config = OmegaConf.load(path)
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: no such file. {FLAG} takes the folder of a run, or that of lists, with its config.yaml."
        ) from error
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: not a configuration ({' '.join(str(error).split())}).") from error
    if not isinstance(config, DictConfig):
        raise InputError(f"{path}: not a configuration, which is a mapping.")
    return config


def _to_be_named(config: dict[str, Any]) -> list[str]:
    keys = ["allowed_targets"] if config.get("allowed_targets") else []
    for key, value in walk(config):
        runs_code = key.rpartition(".")[2] == "trust_remote_code" and value not in (False, None)
        if runs_code or (isinstance(value, str) and HIDDEN in value):
            keys.append(key)
    return keys


def follows(config: DictConfig) -> dict[str, str]:
    """Key → expression of the settings that follow others (``data.seed``: ``${seed}``)."""
    values = walk(OmegaConf.to_container(config, resolve=False))
    return {k: v for k, v in values if isinstance(v, str) and "${" in v and not _RESOLVER.search(v)}


def _follow(config: DictConfig, key: str, expression: Any) -> None:
    """Let a setting follow others again, if it does not change by that."""
    if not isinstance(expression, str) or _RESOLVER.search(expression) or key.rpartition(".")[2] in _ASKED_FOR:
        return
    try:
        recorded = OmegaConf.select(config, key)
        OmegaConf.update(config, key, expression)
    except (OmegaConfBaseException, TypeError, AssertionError):  # it is not there
        return
    with suppress(OmegaConfBaseException):
        if OmegaConf.select(config, key) == recorded:
            return
    OmegaConf.update(config, key, recorded)


def save_config(config: DictConfig, folder: Path) -> None:
    """Write ``config.yaml``, with everything resolved, and ``follows.yaml``; neither holds a secret."""
    contents = {CONFIG: OmegaConf.to_container(config, resolve=True), FOLLOWS: follows(config)}
    for name, content in contents.items():
        with atomic_path(folder / name) as temporary:
            OmegaConf.save(redact(content), temporary)


def warn_of_changes(folder: Path, now: Mapping[str, Any]) -> None:
    """Say what is not as it was when a run was started: code, machine, packages, files, weights.

    Args:
        folder: that run's.
        now: as ``environment.json`` has it, with ``inputs`` and ``weights``.
    """
    path = folder / "environment.json"
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        log.warning("%s: not there, or torn: nothing is known of the code and the data of that run", path)
        return
    for change in changes(before, now):
        log.warning("Since %s was started, %s", folder.name, change)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What two environments differ in, in words."""
    found = []
    old, new = before.get("git"), now.get("git")
    if old != new:
        found.append(f"the code has changed: git revision {old} → {new}")
    elif old and old.endswith("-dirty"):
        found.append(f"the code may have changed: {old} had changes that git does not know")
    for key in _MACHINE:
        if key in before and before[key] != now.get(key):
            found.append(f"the machine has changed: {key} {before[key]} → {now.get(key)}")
    old, new = before.get("packages", {}), now.get("packages", {})
    moved = [f"{name} {v} → {new.get(name, 'none')}" for name, v in old.items() if new.get(name) != v]
    if moved:
        more = f", and {len(moved) - _MANY} more" if len(moved) > _MANY else ""
        found.append(f"packages have changed: {', '.join(moved[:_MANY])}{more}")
    old, new = before.get("inputs", {}), now.get("inputs", {})
    differ = [name for name, digest in old.items() if name in new and new[name] != digest]
    if differ:
        found.append(f"these files have changed: {', '.join(differ)}")
    if before.get("weights") not in (None, now.get("weights")):
        found.append("the weights of encoder.model have changed")
    if before.get("passage_weights") not in (None, now.get("passage_weights")):
        found.append("the weights of passage_encoder.model have changed")
    return found
