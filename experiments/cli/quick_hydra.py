"""Hydra starts sooner: files are parsed in C, and ``--help`` does not copy the whole configuration for each group."""

import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.object_type import ObjectType
from omegaconf import _utils as omegaconf_utils

from experiments.cli.yaml_in_c import may_be_parsed_in_c

_written_in_python = omegaconf_utils.get_yaml_loader
_copying = ConfigLoaderImpl.get_group_options


def start_quickly() -> None:
    """Have OmegaConf parse in C, and Hydra look up a group's options where they are if it is asked for help."""
    if yaml.__with_libyaml__:
        omegaconf_utils.get_yaml_loader = lambda: _Loader
    if {"--help", "-h"} & set(sys.argv[1:]):
        ConfigLoaderImpl.get_group_options = _group_options


class _Loader:
    """A loader that takes OmegaConf's own, in Python, where C would end the process or finds an error."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def get_single_data(self) -> Any:
        try:
            text = self._stream if isinstance(self._stream, str | bytes) else self._stream.read()
            if may_be_parsed_in_c(text):
                return _written_in_c()(text).get_single_data()
        except (yaml.YAMLError, UnicodeError):
            pass
        if not isinstance(self._stream, str | bytes):
            self._stream.seek(0)
        return _written_in_python()(self._stream).get_single_data()

    def dispose(self) -> None:
        """Nothing is held."""


@cache
def _written_in_c() -> Any:
    """OmegaConf's loader, based on the parser in C."""
    in_python, yaml.SafeLoader = yaml.SafeLoader, yaml.CSafeLoader
    try:
        return _written_in_python()
    finally:
        yaml.SafeLoader = in_python


def _group_options(
    loader: Any,
    group_name: str,
    results_filter: ObjectType | None = ObjectType.CONFIG,
    config_name: str | None = None,
    overrides: Sequence[str] | None = None,
) -> list[str]:
    if config_name or overrides:  # which may name further places of configuration
        return _copying(loader, group_name, results_filter, config_name, overrides)
    return loader.repository.get_group_options(group_name, results_filter)
