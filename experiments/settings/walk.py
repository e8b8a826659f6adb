"""Walk through configurations, as plain containers."""

from collections.abc import Callable, Iterator
from typing import Any


def walk(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Give dotted key and content of a configuration and of all that is in it, at any depth: ``data.train[0].path``."""
    yield key, value
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from walk(inner, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from walk(inner, f"{key}[{number}]")


def rebuilt(value: Any, change: Callable[[Any, str], Any], name: str = "") -> Any:
    """Copy a configuration; all that is in it goes through a function, the innermost first.

    Args:
        value: the configuration.
        change: takes a mapping, a list or a value, and the name that it (or the list that it is in) has.
        name: of the value.
    """
    if isinstance(value, dict):
        value = {key: rebuilt(inner, change, str(key)) for key, inner in value.items()}
    elif isinstance(value, list):
        value = [rebuilt(inner, change, name) for inner in value]
    return change(value, name)
