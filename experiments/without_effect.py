"""Settings that were typed and have no effect beside the others: said on the terminal before anything is loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

log = logging.getLogger(__name__)
Rules = dict[str, tuple[Callable[[DictConfig], bool], str]]


def _is_not_generated(config: DictConfig) -> bool:
    return not any(group.get("source") == "generated" for group in config.queries.values())


# setting, or section → where it has no effect, and why
OF_RUN: Rules = {
    "data.dev_fraction": (lambda c: c.data.get("dev") is not None, "data.dev names the dev lists"),
    "data.leak_jaccard": (lambda c: c.data.get("leak_guard") == "off", "data.leak_guard is off"),
    "data.leak_near_passages": (lambda c: c.data.get("leak_guard") == "off", "data.leak_guard is off"),
    "early_stopping.monitors": (lambda c: c.early_stopping.patience is None, "early_stopping.patience is null"),
    "diagnostics.teacher_temperature": (
        lambda c: c.diagnostics.every_n_steps is None,
        "diagnostics.every_n_steps is null",
    ),
    "criterion": (lambda c: not c.save_checkpoints, "save_checkpoints is false"),
    "module.matryoshka_weights": (
        lambda c: c.module.get("matryoshka_dimensions") is None,
        "module.matryoshka_dimensions is null",
    ),
}
OF_PREPARE: Rules = {
    "generate": (_is_not_generated, "no group of queries has source: generated"),
    "generator": (_is_not_generated, "no group of queries has source: generated"),
    "sample": (_is_not_generated, "no group of queries has source: generated"),
    "filter.consistency_retrievers": (lambda c: c.filter.consistency_rank is None, "filter.consistency_rank is null"),
    "filter.consistency_require": (lambda c: c.filter.consistency_rank is None, "filter.consistency_rank is null"),
}


def say_what_has_no_effect(config: DictConfig, overrides: Sequence[str], rules: Rules) -> None:
    """Warn of each setting of a command line that nothing looks at, as the configuration is.

    Args:
        config: the whole configuration.
        overrides: as they were typed.
        rules: setting, or section → where it has no effect, and why.
    """
    typed = {override.key_or_group for override in OverridesParser.create().parse_overrides(list(overrides))}
    for setting, (is_idle, why) in rules.items():
        stated = sorted(key for key in typed if f"{key}.".startswith(f"{setting}."))
        if stated and is_idle(config):
            log.warning("%s has no effect here: %s", ", ".join(stated), why)
