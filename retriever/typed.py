"""Settings as dataclasses: a mapping is read once, and what is wrong in it is said in one sentence."""

import dataclasses
import inspect
import types
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from retriever.errors import InputError, did_you_mean, how_to_quote

_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "text",
    type(None): "null",
}
Settings = TypeVar("Settings")


def read_settings(kind: type[Settings], value: Any, where: str, others: Sequence[str] = ()) -> Settings:
    """Read a mapping as a dataclass.

    Checks of values that a type cannot name (a range, a contradiction) belong into the class's ``__post_init__``.

    Args:
        kind: a dataclass; its annotations are what values are held against.
        value: the mapping, or an instance of ``kind``, which is returned as it is.
        where: where the mapping comes from, for messages: ``data.train[0]``.
        others: keys that the caller understands and has taken out, to name beside the class's own.

    Raises:
        InputError: no mapping; an unknown or a missing key, with the nearest; a value of another type, with what it
            may be; what ``__post_init__`` refuses, in a sentence that begins with the setting: ``where`` is put before.
    """
    if isinstance(value, kind):
        return value
    assert dataclasses.is_dataclass(kind)
    fields, hints = dataclasses.fields(kind), get_type_hints(kind)
    if not isinstance(value, Mapping):
        raise InputError(f"{where} is {value!r}; it must be {words(kind, value)}.")
    given = {str(name): _plain(inner) for name, inner in value.items()}
    names = [field.name for field in fields]
    for name, inner in given.items():
        if name not in names:
            names += others
            said = f"{name!r} is no setting here; there are {', '.join(names)}.{did_you_mean(name, names)}"
            raise InputError(f"{where}: {said}" if where else said)
        check_value(f"{where}.{name}".lstrip("."), hints[name], inner)
    for field in fields:
        if field.name not in given and _is_required(field):
            raise InputError(f"{where}: {field.name} is missing; it must have {_required(fields)}.")
    read = {name: _inner(hints[name], inner, f"{where}.{name}".lstrip(".")) for name, inner in given.items()}
    try:
        return kind(**read)
    except InputError as error:
        raise InputError(f"{where}.{error}".lstrip(".")) from None


def read_top(kind: type[Settings], config: Mapping[str, Any]) -> Settings:
    """Read the settings at the top of a whole configuration, whose other keys are for others, as a dataclass.

    Raises:
        InputError: as :func:`read_settings`.
    """
    assert dataclasses.is_dataclass(kind)
    return read_settings(kind, {f.name: config[f.name] for f in dataclasses.fields(kind) if f.name in config}, "")


def check_value(where: str, hint: Any, value: Any) -> None:
    """Refuse a value that does not fit an annotation, with what it may be and, of text, how to quote it."""
    if not accepts(hint, value):
        wanted = words(hint, value)
        raise InputError(f"{where} is {value!r}; it must be {wanted}.{how_to_quote(value) if 'text' in wanted else ''}")


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _required(fields: Sequence[dataclasses.Field]) -> str:
    return " and ".join(field.name for field in fields if _is_required(field))


def _plain(value: Any) -> Any:
    """Turn mappings and lists, which may be OmegaConf's, into Python's own."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(inner) for inner in value]
    return value


def _inner(hint: Any, value: Any, where: str) -> Any:
    """Read mappings inside of a mapping, of a list, or of names, as the dataclasses that its annotation names."""
    for kind in (hint, *get_args(hint)):
        if dataclasses.is_dataclass(kind) and isinstance(kind, type) and value is not None:
            if isinstance(value, list):
                return [read_settings(kind, inner, f"{where}[{n}]") for n, inner in enumerate(value)]
            if get_origin(hint) is Mapping:
                return {name: read_settings(kind, inner, f"{where}.{name}") for name, inner in value.items()}
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
        return isinstance(value, str | Path)
    kind = origin or hint
    if dataclasses.is_dataclass(kind):
        return isinstance(value, Mapping | kind)
    if isinstance(value, Mapping):
        return "_target_" in value or not inspect.isclass(kind) or issubclass(dict, kind)
    if isinstance(value, Sequence) and not isinstance(value, str):
        of = get_args(hint)[:1] if inspect.isclass(kind) and issubclass(kind, Sequence) else ()
        return (not inspect.isclass(kind) or issubclass(list, kind) or issubclass(kind, tuple)) and all(
            accepts(inner, item) for inner in of for item in value
        )
    return not (inspect.isclass(kind) and issubclass(kind, Sequence | Mapping))


def words(hint: Any, value: Any) -> str:
    """Say in words what an annotation wants; of a few values, name the nearest."""
    choices = _choices(hint)
    wrong = [item for item in (value if isinstance(value, list) else [value]) if item not in choices]
    near = [name for item in wrong for name in get_close_matches(str(item), choices, n=1)]
    return _joined(_flat(hint)) + (f" (did you mean {near[0]!r}?)" if near else "")


def _choices(hint: Any) -> list[str]:
    """The texts that an annotation names, at any depth."""
    if get_origin(hint) is Literal:
        return [value for value in get_args(hint) if isinstance(value, str)]
    return [value for inner in get_args(hint) for value in _choices(inner)]


def _joined(parts: Sequence[str]) -> str:
    """Each once, and "a mapping" not beside "a mapping with …"."""
    return " or ".join(p for p in dict.fromkeys(parts) if not any(other.startswith(f"{p} with") for other in parts))


def _flat(hint: Any) -> list[str]:
    if get_origin(hint) in (Union, types.UnionType):
        return [word for inner in get_args(hint) for word in _flat(inner)]
    if get_origin(hint) is Literal:
        return [repr(value) for value in get_args(hint)]
    kind = get_origin(hint) or hint
    if dataclasses.is_dataclass(kind):
        required = _required(dataclasses.fields(kind))
        return [f"a mapping with {required}" if required else "a mapping"]
    if inspect.isclass(kind) and kind is not str and issubclass(kind, Sequence):
        return [f"a list, each of it {_joined(_flat(get_args(hint)[0]))}" if get_args(hint) else "a list"]
    if inspect.isclass(kind) and issubclass(kind, Mapping):
        return ["a mapping"]
    return [_WORDS[hint] if hint in _WORDS else getattr(hint, "__name__", str(hint))]
