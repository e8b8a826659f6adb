"""What must not be written or sent: passwords, tokens and keys in a configuration or on a command line."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

import yaml

HIDDEN = "***"
_SECRET_NAME = re.compile(
    r"(^|[._-])((api|access|private|secret)[_-]?key|secret|token|password|passwd|credentials?|authorization)$", re.I
)
_SHORTEST = 8  # a shorter value of an environment variable may well be a common word
_IN_ADDRESS = re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")


def redact(value: Any, name: str = "") -> Any:
    """A configuration without its secrets.

    What an environment variable with a telling name (``HF_TOKEN``, ``…_API_KEY``, ``…_PASSWORD``) holds becomes
    ``${oc.env:NAME}``, so that the configuration can be used again; other values under such a name, and user and
    password in an address, become ``***``.

    Args:
        value: of any type that YAML has; dicts and lists are copied.
        name: the key that it stands under.
    """
    if isinstance(value, dict):
        return {key: redact(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [redact(inner, name) for inner in value]
    if not isinstance(value, str) or not value:
        return value
    for variable, secret in os.environ.items():
        if len(secret) >= _SHORTEST and _SECRET_NAME.search(variable):
            value = value.replace(secret, f"${{oc.env:{variable}}}")
    if _SECRET_NAME.search(name) and "${oc.env:" not in value:
        return HIDDEN
    return _IN_ADDRESS.sub(HIDDEN, value)


def _redact_container(value: str) -> str:
    try:
        return str(redact(yaml.safe_load(value)))
    except yaml.YAMLError:
        return HIDDEN  # what cannot be read cannot be known to hold none


def redact_arguments(arguments: Sequence[str]) -> list[str]:
    """Hydra's overrides (``key=value``) without their secrets."""
    redacted = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if value.startswith(("{", "[")):
            value = _redact_container(value)
        redacted.append(f"{key}={redact(value, key.lstrip('+~'))}" if equals else redact(argument))
    return redacted
