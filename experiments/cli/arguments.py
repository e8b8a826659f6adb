"""What was typed on a command line: additions that nothing reads, and what a mapping keeps beside them."""

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from experiments.cli.targets import HYDRAS
from experiments.conf import CONF
from experiments.settings.walk import walk
from retriever.errors import InputError
from retriever.printable import printable

log = logging.getLogger(__name__)
# mappings whose keys a user names, so that each can be left out
OF_ANY_NAME = {"queries", "mine.retrievers", "mine.weights", "teacher.members", "teacher.weights"}
# ${key.…}, ${[key].…}, ${resolver:key,…}, ${resolver:"key",…}
_REFERRED = re.compile(r"""(?:\$\{|[:,])\s*[."'\[]*([^\s$.:,"'{}\[\]]+)""")


def _command_hash(overrides: Sequence[str]) -> str:
    """A short name for what was typed, so that the same command finds its folder again."""
    typed = sorted(word for word in overrides if not word.startswith(("only=", "plan=")))
    return hashlib.sha256("\n".join(typed).encode()).hexdigest()[:12]


OmegaConf.register_new_resolver("command_hash", _command_hash, replace=True)


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
    texts = (text for _, text in walk(written) if isinstance(text, str) and "${" in text)
    referred = {name for text in texts for name in _REFERRED.findall(text)}
    for key in unread:
        if key not in referred:
            settings = [place for place, _ in walk(written[0]) if "[" not in place and place not in ("", key)]
            by_name: dict[str, str] = {}  # of settings of one name that nearest to the top
            for place in sorted(settings, key=lambda place: place.count(".")):
                by_name.setdefault(place.rpartition(".")[2], place)
            near = get_close_matches(key, by_name, n=1)
            raise InputError(
                f"{key} is no setting, and nothing refers to it."
                f"{f' Did you mean {by_name[near[0]]!r}?' if near else ''} --cfg job prints all settings; a value of "
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
    names = [name for name in map(str, node) if name not in given and name not in HYDRAS]
    if names:
        yield place, names
    for name, value in given.items():
        if isinstance(value, Mapping):
            yield from _kept(node.get(name), value, f"{place}.{name}".lstrip("."))


def value_text(value: Any) -> str:
    """Write a value as Hydra's command line reads it."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {value_text(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(value_text, value))}]"
    if not isinstance(value, str):
        return json.dumps(value)
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
