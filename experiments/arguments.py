"""Settings against the signatures that they are for: wrong keys and types, before anything is loaded."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from experiments.targets import nodes
from retriever.cross_encoder import PairSpec
from retriever.encoder import EncoderSpec
from retriever.errors import InputError, did_you_mean

# what a function that takes **spec takes with it
SPECS = {
    "retriever.encoder.TextEncoder.from_pretrained": EncoderSpec,
    "retriever.cross_encoder.CrossEncoder.from_pretrained": PairSpec,
}
_OURS = ("retriever", "datamodules", "callbacks")
_HYDRAS = {"_target_", "_convert_", "_recursive_", "_partial_", "_args_"}
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


def check_arguments(config: DictConfig) -> None:
    """Compare every setting under a ``_target_`` with what that takes.

    Raises:
        InputError: a key that the target does not take, with the nearest it does; or a value of another type than its
            annotation names, with what it may be.
    """
    for key, node in nodes(OmegaConf.to_container(config, resolve=True, throw_on_missing=False)):
        check_settings(key, node, get_object(node["_target_"]), SPECS.get(node["_target_"]))


def check_settings(key: str, settings: Mapping[str, Any], called: Callable[..., Any], spec: type | None = None) -> None:
    """Compare settings with what a class or function takes; ``spec``: a class whose fields it takes, too."""
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
            raise InputError(f"{key}.{name} is {value!r}; it must be {words(known[name], value)}.")


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


def accepts(hint: Any, value: Any) -> bool:
    """Whether a value of YAML fits an annotation; what is neither plain nor a container of plain values always does."""
    if hint in (Any, object):
        return True
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(accepts(inner, value) for inner in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if hint in (None, type(None)):
        return value is None
    if hint in (bool, str):
        return isinstance(value, hint)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is Path:
        return isinstance(value, str)
    kind = origin or hint
    if isinstance(value, dict):
        return "_target_" in value or not inspect.isclass(kind) or issubclass(dict, kind)
    if isinstance(value, list):
        of = get_args(hint)[:1] if inspect.isclass(kind) and issubclass(kind, Sequence) else ()
        return (not inspect.isclass(kind) or issubclass(list, kind) or issubclass(kind, tuple)) and all(
            accepts(inner, item) for inner in of for item in value
        )
    return not (inspect.isclass(kind) and issubclass(kind, Sequence | Mapping))


def words(hint: Any, value: Any) -> str:
    """What an annotation wants, in words; of a few values, the nearest."""
    parts = list(dict.fromkeys(_flat(hint)))
    choices = [part for part in parts if isinstance(part, str) and part.startswith("'")]
    near = get_close_matches(f"'{value}'", choices, n=1)
    return " or ".join(parts) + (f" (did you mean {near[0]}?)" if near else "")


def _flat(hint: Any) -> list[str]:
    if get_origin(hint) in (Union, types.UnionType):
        return [word for inner in get_args(hint) for word in _flat(inner)]
    if get_origin(hint) is Literal:
        return [repr(value) for value in get_args(hint)]
    kind = get_origin(hint) or hint
    if inspect.isclass(kind) and kind is not str and issubclass(kind, Sequence):
        return [f"a list, each of it {' or '.join(_flat(get_args(hint)[0]))}" if get_args(hint) else "a list"]
    if inspect.isclass(kind) and issubclass(kind, Mapping):
        return ["a mapping"]
    return [_WORDS[hint] if hint in _WORDS else getattr(hint, "__name__", str(hint))]
