"""What was typed on a command line: additions that nothing reads, and what a mapping keeps beside them."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from experiments.conf import CONF
from retriever.errors import InputError
from retriever.printable import printable

log = logging.getLogger(__name__)
# mappings whose keys a user names, so that each can be left out
OF_ANY_NAME = {"queries", "mine.retrievers", "mine.weights", "teacher.members", "teacher.weights"}
_HYDRAS = {"_target_", "_convert_", "_recursive_", "_partial_", "_args_"}
# ${key.…}, ${[key].…}, ${resolver:key,…}, ${resolver:"key",…}
_REFERRED = re.compile(r"""(?:\$\{|[:,])\s*[."'\[]*([^\s$.:,"'{}\[\]]+)""")


def check_added(config: DictConfig, hydra: DictConfig, shipped: str) -> None:
    """Refuse a ``+key=value`` of the command line that no code reads and nothing refers to.

    Args:
        config: the whole configuration.
        hydra: Hydra's own.
        shipped: the file in ``experiments/conf`` that names all settings at the top.

    Raises:
        InputError: with the nearest setting; or the command puts ``+scale`` before ``+exp``, which would undo it.
    """
    typed = OverridesParser.create().parse_overrides(list(hydra.overrides.task))
    groups = [o.key_or_group for o in typed]
    if {"exp", "scale"} <= set(groups) and groups.index("scale") < groups.index("exp"):
        scale, exp = (typed[groups.index(name)].input_line for name in ("scale", "exp"))
        raise InputError(
            f"{scale} comes before {exp}, whose own sizes would take the place of the scale's. Put it behind: "
            f"{exp} {scale}."
        )
    added = {o.key_or_group.partition(".")[0] for o in typed if o.is_add() or o.is_force_add()}
    known = set(OmegaConf.load(CONF / shipped)) | set(hydra.runtime.choices)
    unread = sorted((added & set(config)) - known)
    if not unread:
        return
    written = OmegaConf.to_container(config, resolve=False), OmegaConf.to_container(hydra, resolve=False)
    del written[1]["overrides"]["task"], written[1]["job"]["override_dirname"]  # what was typed refers to nothing
    referred = {name for text in _texts(written) if "${" in text for name in _REFERRED.findall(text)}
    for key in unread:
        if key not in referred:
            settings = _by_name(written[0])
            del settings[key]
            near = get_close_matches(key, settings, n=1)
            raise InputError(
                f"{key} is no setting, and nothing refers to it."
                f"{f' Did you mean {settings[near[0]]!r}?' if near else ''} --cfg job prints all settings; a value of "
                f"your own is read where another one says ${{{key}}}."
            )


def say_what_is_kept(config: DictConfig, overrides: Sequence[str]) -> None:
    """Say on the terminal what a mapping keeps beside what was typed: Hydra adds ``key={...}`` to the one there is.

    Args:
        config: the whole configuration.
        overrides: as they were typed.
    """
    typed = OverridesParser.create().parse_overrides(list(overrides))
    keys = {o.package or o.key_or_group for o in typed}  # encoder@mine.retrievers.bge.encoder=… is known, too
    for override in typed:
        if isinstance(override.value(), dict):
            for place, kept in _kept(OmegaConf.select(config, override.key_or_group), override.value()):
                key = f"{override.key_or_group}.{place}".rstrip(".")
                names = [n for n in kept if not any(f"{k}.".startswith(f"{key}.{n}.") for k in keys)]
                if names:
                    out = f"; to leave one out: ~{key}.{names[0]}" if key in OF_ANY_NAME else ""
                    told = ", ".join(map(printable, names))
                    log.info("%s keeps %s beside what was stated%s", printable(key), told, printable(out))


def _kept(node: Any, stated: Mapping[Any, Any], place: str = "") -> Iterator[tuple[str, list[str]]]:
    """Place and keys of a composed mapping, and of those in it, that were not stated."""
    if not isinstance(node, DictConfig):
        return
    given = {str(key): value for key, value in stated.items()}
    names = [name for name in map(str, node) if name not in given and name not in _HYDRAS]
    if names:
        yield place, names
    for name, value in given.items():
        if isinstance(value, Mapping):
            yield from _kept(node.get(name), value, f"{place}.{name}".lstrip("."))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _texts(tuple(value.values()))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _by_name(section: dict[str, Any], place: str = "") -> dict[str, str]:
    """Last part of a setting's dotted key → the key, of those on top where there are two."""
    found: dict[str, str] = {}
    for name, value in section.items():
        if isinstance(value, dict):
            found |= _by_name(value, f"{place}{name}.") | found
    return found | {str(name): f"{place}{name}" for name in section}
