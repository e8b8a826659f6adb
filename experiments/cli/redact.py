"""What must not be written or sent: passwords, tokens and keys in a configuration or on a command line."""

import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from datamodules.storage.files import write_text
from experiments.cli.yaml_in_c import safe_loader
from experiments.settings.walk import rebuilt

HIDDEN = "***"
_SECRET = (
    r"(api|access|private|secret)[_-]?key|secret|((access|auth|api|hf)[_-]?)?token|password|passwd|credentials?"
    r"|authorization"
)
_SECRET_NAME = re.compile(rf"(^|[._-])({_SECRET})$", re.I)
_SHORTEST = 8  # a shorter value of an environment variable may well be a common word
_IN_ADDRESS = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_IN_QUERY = re.compile(rf"([?&#]([\w.-]*[._-])?({_SECRET}|signature|sig|key)=)[^&#\s]+", re.I)
_IN_JSON = re.compile(rf"""(["'][\w.-]*({_SECRET})["']\s*:\s*["'])[^"']+""", re.I)


def redact(value: Any, name: str = "") -> Any:
    """A configuration without its secrets.

    What an environment variable with a telling name (``HF_TOKEN``, ``…_API_KEY``, ``…_PASSWORD``) holds becomes
    ``${oc.env:NAME}``, so that the configuration can be used again; other values under such a name, and in an address
    user and password and what it says under such a name, become ``***``.

    Args:
        value: of any type that YAML has; dicts and lists are copied.
        name: the key that it stands under.
    """
    secrets = {v: s for v, s in os.environ.items() if len(s) >= _SHORTEST and _SECRET_NAME.search(v)}
    return rebuilt(value, partial(_redact_text, secrets), name)


def _redact_text(secrets: Mapping[str, str], value: Any, name: str) -> Any:
    if not isinstance(value, str) or not value:
        return value
    for variable, secret in secrets.items():
        value = value.replace(secret, f"${{oc.env:{variable}}}")
    if _SECRET_NAME.search(name) and "${oc.env:" not in value:
        return HIDDEN
    value = _IN_JSON.sub(rf"\1{HIDDEN}", _IN_ADDRESS.sub(HIDDEN, value))
    return _IN_QUERY.sub(rf"\1{HIDDEN}", value)


def _redact_container(value: str, name: str) -> str:
    try:  # by Hydra's grammar: without a space, {token:abc} is a mapping there, and none in YAML
        override = OverridesParser.create().parse_override(f"key={value}")
    except HydraException:  # an unquoted = in a path, or several overrides: no names are known, but words are
        return HIDDEN if re.search(rf"{_SECRET}|bearer|signature", value, re.I) else redact(value, name)
    if override.is_choice_sweep():
        choices = list(override.sweep_string_iterator())
        redacted = [_redact_container(choice, name) for choice in choices]
        return value if redacted == choices else ",".join(redacted)
    content = override.value()
    redacted = redact(content, name)
    return value if redacted == content else str(redacted)


def redact_arguments(arguments: Sequence[str]) -> list[str]:
    """Hydra's overrides (``key=value``) without their secrets."""
    redacted = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        name = key.lstrip("+~")
        if "{" in value or "[" in value:
            value = _redact_container(value, name)
        redacted.append(f"{key}={redact(value, name)}" if equals else redact(argument))
    return redacted


class RedactHydra(Callback):
    """Hydra callback: no secret stays in what Hydra itself writes: ``RUN/.hydra`` and a sweep's ``multirun.yaml``."""

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Hydra has written its files by now."""
        hydra = config.hydra
        files = [Path(hydra.sweep.dir) / "multirun.yaml"]
        if hydra.output_subdir is not None:
            files += (Path(hydra.runtime.output_dir) / hydra.output_subdir).glob("*.yaml")
        for path in files:
            if path.is_file():
                _redact_file(path)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Hydra tells of a failing job with its overrides."""
        job_return.overrides = redact_arguments(job_return.overrides or ())


def _redact_file(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    content = safe_loader(text)(text).get_single_data()
    redacted = rebuilt(redact(content), _redact_overrides)
    if redacted != content:
        write_text(path, yaml.safe_dump(redacted, allow_unicode=True, sort_keys=False))


def _redact_overrides(value: Any, name: str = "") -> Any:
    """Without the secrets in a text that is made of overrides: ``key=value,key=value``."""
    if not isinstance(value, str) or "=" not in value:
        return value
    [whole] = redact_arguments([value])
    if whole != value:
        return whole
    parts = value.split(",")  # several overrides; one with a list or mapping is torn by that, so all of them go
    return value if redact_arguments(parts) == parts else HIDDEN
