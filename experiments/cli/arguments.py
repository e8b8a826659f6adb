"""Settings against the signatures that they are for: wrong keys and types, before anything is loaded."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from experiments.cli.targets import nodes
from experiments.conf import CONF
from retriever.cross_encoder.cross_encoder import PairSpec
from retriever.encoder.text_encoder import EncoderSpec
from retriever.errors import InputError, did_you_mean, how_to_quote
from retriever.printable import printable
from retriever.typed import accepts, words

log = logging.getLogger(__name__)

# what a function that takes **spec takes with it
SPECS = {
    "retriever.encoder.TextEncoder.from_pretrained": EncoderSpec,
    "retriever.cross_encoder.CrossEncoder.from_pretrained": PairSpec,
}
_OURS = ("retriever", "datamodules", "callbacks")
# mappings whose keys a user names, so that each can be left out
OF_ANY_NAME = {"queries", "mine.retrievers", "mine.weights", "teacher.members", "teacher.weights"}
_HYDRAS = {"_target_", "_convert_", "_recursive_", "_partial_", "_args_"}
# ${key.…}, ${[key].…}, ${resolver:key,…}, ${resolver:"key",…}
_REFERRED = re.compile(r"""(?:\$\{|[:,])\s*[."'\[]*([^\s$.:,"'{}\[\]]+)""")
_FOLLOWS = re.compile(r"\$\{([\w.]+)\}")


def check_arguments(config: DictConfig) -> None:
    """Compare every setting under a ``_target_`` with what that takes.

    Raises:
        InputError: a key that the target does not take, with the nearest it does; or a value of another type than its
            annotation names, with what it may be.
    """
    for key, node in nodes(OmegaConf.to_container(config, resolve=True, throw_on_missing=False)):
        target = node["_target_"]
        check_settings(key, node, get_object(target), SPECS.get(target), lambda name: _followed(config, name))


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


def _followed(config: DictConfig, key: str) -> str:
    """The setting that gives this one its value: evaluation.datasets for data.evaluation."""
    for _ in range(10):  # settings may follow each other round
        place, _, name = key.rpartition(".")
        parent = OmegaConf.select(config, place) if place else config
        written = parent._get_node(name) if isinstance(parent, DictConfig) else None
        followed = _FOLLOWS.fullmatch(str(written._value())) if written is not None else None
        if followed is None:
            break
        key = followed[1]
    return key


def check_settings(
    key: str,
    settings: Mapping[str, Any],
    called: Callable[..., Any],
    spec: type | None = None,
    named: Callable[[str], str] = str,
) -> None:
    """Compare settings with what a class or function takes.

    Args:
        key: where the settings stand; empty at the top.
        settings: name → value.
        called: what takes them.
        spec: a class whose fields it takes, too.
        named: what to call a setting whose value is wrong, by its dotted key.

    Raises:
        InputError: as :func:`check_arguments`.
    """
    known, is_open = _parameters(called)
    fields = get_type_hints(spec) if spec is not None else {}
    if spec is not None:
        known, is_open = known | fields, False
    for name, value in settings.items():
        if name in _HYDRAS:
            continue
        if name not in known:
            if is_open:
                continue
            raise InputError(
                f"{key} has an unexpected keyword argument {name!r}; {called.__qualname__} takes "
                f"{', '.join(sorted(known))}.{did_you_mean(name, known)}"
            )
        if value is None and name in fields:
            continue  # the model's own
        if value != "???" and not accepts(known[name], value):
            wanted = words(known[name], value)
            hint = how_to_quote(value) if "text" in wanted else ""
            raise InputError(f"{named(f'{key}.{name}'.lstrip('.'))} is {value!r}; it must be {wanted}.{hint}")


def _parameters(called: Callable[..., Any]) -> tuple[dict[str, Any], bool]:
    """Parameter → annotation, those of base classes that a constructor passes ``**others`` to included; any other?"""
    functions = [called]
    if inspect.isclass(called):
        functions = [vars(base)["__init__"] for base in called.__mro__ if "__init__" in vars(base)]
    found: dict[str, Any] = {}
    for function in functions:
        try:
            hints = get_type_hints(function)
        except (NameError, TypeError):  # a name that is imported for type checkers alone
            hints = {}
        try:
            parameters = inspect.signature(function, follow_wrapped=True).parameters.values()
        except (TypeError, ValueError):
            return found, True
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                found.setdefault(parameter.name, hints.get(parameter.name, Any))
        if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
            return {name: hint for name, hint in found.items() if name != "self"}, False
        if function.__module__.partition(".")[0] not in _OURS:  # it may do something of its own with the others
            break
    return found, True
