"""Settings under a ``_target_`` against the signature of what it names: wrong keys and types."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from experiments.cli.targets import check_targets, nodes
from experiments.settings.encoders import SPECS
from retriever.errors import InputError, did_you_mean
from retriever.typed import check_value

_OURS = ("retriever", "datamodules", "callbacks")
_HYDRAS = {"_target_", "_convert_", "_recursive_", "_partial_", "_args_"}
_FOLLOWS = re.compile(r"\$\{([\w.]+)\}")


def check_arguments(config: DictConfig) -> None:
    """Compare every ``_target_`` with what may be called, and every setting under it with what that takes.

    Raises:
        InputError: as :func:`~experiments.cli.targets.check_targets`; a key that the target does not take, with the
            nearest it does; or a value of another type than its annotation names, with what it may be.
    """
    check_targets(config)
    for key, node in nodes(OmegaConf.to_container(config, resolve=True, throw_on_missing=False)):
        target = node["_target_"]
        check_settings(key, node, get_object(target), SPECS.get(target), lambda name: _followed(config, name))


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
        key: where the settings stand.
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
        if value != "???":
            check_value(named(f"{key}.{name}"), known[name], value)


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
