"""Settings as dataclasses: a mapping is read once, and what is wrong in it is said in one sentence."""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from retriever.errors import InputError, did_you_mean, how_to_quote

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
Settings = TypeVar("Settings")


def read_settings(kind: type[Settings], value: Any, where: str) -> Settings:
    """Read a mapping as a dataclass.

    Checks of values that a type cannot name (a range, a contradiction) belong into the class's ``__post_init__``.

    Args:
        kind: a dataclass; its annotations are what values are held against.
        value: the mapping, or an instance of ``kind``, which is returned as it is.
        where: where the mapping comes from, for messages: ``data.train[0]``.

    Raises:
        InputError: no mapping; an unknown or a missing key, with the nearest; a value of another type, with what it
            may be; what ``__post_init__`` refuses, with ``where`` before it.
    """
    if isinstance(value, kind):
        return value
    assert dataclasses.is_dataclass(kind)
    fields, hints = dataclasses.fields(kind), get_type_hints(kind)
    if not isinstance(value, Mapping):
        raise InputError(f"{where} is {value!r}; it must be a mapping with {_required(fields)}.")
    given = {str(name): inner for name, inner in value.items()}
    for name, inner in given.items():
        if name not in hints:
            raise InputError(
                f"{where}: {name!r} is no setting here; there are {', '.join(f.name for f in fields)}."
                f"{did_you_mean(name, hints)}"
            )
        if not accepts(hints[name], inner):
            wanted = words(hints[name], inner)
            hint = how_to_quote(inner) if _WORDS[str] in wanted else ""
            raise InputError(f"{where}.{name} is {inner!r}; it must be {wanted}.{hint}")
    for field in fields:
        if field.name not in given and _is_required(field):
            raise InputError(f"{where}: {field.name} is missing; it must have {_required(fields)}.")
    try:
        return kind(**{name: _inner(hints[name], inner, f"{where}.{name}") for name, inner in given.items()})
    except InputError as error:
        raise error if str(error).startswith(where) else InputError(f"{where}: {error}") from None


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _required(fields: Sequence[dataclasses.Field]) -> str:
    return " and ".join(field.name for field in fields if _is_required(field))


def _inner(hint: Any, value: Any, where: str) -> Any:
    """Read a mapping inside of a mapping as the dataclass that its annotation names."""
    for kind in (hint, *get_args(hint)):
        if dataclasses.is_dataclass(kind) and isinstance(kind, type) and value is not None:
            return read_settings(kind, value, where)
    return value


def accepts(hint: Any, value: Any) -> bool:
    """Tell whether a value of YAML fits an annotation; what is neither plain nor a container of plain values does."""
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
    if dataclasses.is_dataclass(kind):
        return isinstance(value, Mapping | kind)
    if isinstance(value, dict):
        return "_target_" in value or not inspect.isclass(kind) or issubclass(dict, kind)
    if isinstance(value, list):
        of = get_args(hint)[:1] if inspect.isclass(kind) and issubclass(kind, Sequence) else ()
        return (not inspect.isclass(kind) or issubclass(list, kind) or issubclass(kind, tuple)) and all(
            accepts(inner, item) for inner in of for item in value
        )
    return not (inspect.isclass(kind) and issubclass(kind, Sequence | Mapping))


def words(hint: Any, value: Any) -> str:
    """Say in words what an annotation wants; of a few values, name the nearest."""
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
    if dataclasses.is_dataclass(kind):
        return ["a mapping"]
    if inspect.isclass(kind) and kind is not str and issubclass(kind, Sequence):
        return [f"a list, each of it {' or '.join(_flat(get_args(hint)[0]))}" if get_args(hint) else "a list"]
    if inspect.isclass(kind) and issubclass(kind, Mapping):
        return ["a mapping"]
    return [_WORDS[hint] if hint in _WORDS else getattr(hint, "__name__", str(hint))]
