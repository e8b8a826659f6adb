"""The one error class for what a user can correct, and the sentences of its messages."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any


class InputError(ValueError):
    """Something in the data, the configuration or the machine that the user can correct.

    The message is complete by itself: what is wrong where, what was expected, what to do. The commands under
    ``experiments`` print it without a stack trace.
    """


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Give an error, what it came from, what that came from, …"""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def choose(what: str, value: Any, valid: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``valid``, else raise an InputError that names them."""
    valid = list(valid)
    if value in valid:
        return value
    raise InputError(
        f"{what} is {value!r}; valid values are {', '.join(map(repr, valid))}.{did_you_mean(value, valid)}"
    )


def did_you_mean(wrong: object, valid: Iterable[str]) -> str:
    """Write a sentence, with a blank before it, that names the nearest of ``valid``; empty where none is near."""
    near = get_close_matches(str(wrong), valid, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def require_positive(**values: float | None) -> None:
    """Raise an InputError for the first keyword whose value is neither None nor a finite number above zero."""
    for name, value in values.items():
        if value is not None and not (value > 0 and value != float("inf")):
            raise InputError(f"{name} is {value}; it must be a finite number above 0.")


def require_text(what: str, value: Any) -> None:
    """Raise an InputError unless a setting is text, as names and paths are."""
    if not isinstance(value, str):
        raise InputError(f"{what} is {value!r}; it must be text.{how_to_quote(value)}")


def how_to_quote(value: Any) -> str:
    """Write a sentence, with a blank before it, on how to quote a number or truth value as text; empty for others."""
    number = next((v for v in (value if isinstance(value, list) else [value]) if isinstance(v, int | float)), None)
    if number is None:
        return ""
    return f" For the text {str(number)!r} quote it twice on the command line: \"'{number}'\"."


def shown(value: Any) -> str:
    """Write a value for messages, cut short."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


@contextmanager
def installed_by(extra: str, what: str) -> Iterator[None]:
    """Make a sentence of imports that fail, with the extra that brings the package.

    Raises:
        InputError: what is imported within is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise InputError(f"{what} needs the package {error.name}: pip install -e '.[{extra}]'") from error
