"""Settings that were typed and have no effect beside the others: said on the terminal before anything is loaded."""

import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from experiments.settings.fitted_temperatures import FITTED, read_by_objective
from experiments.settings.two_encoders import is_embedding_regression

log = logging.getLogger(__name__)
Rule = tuple[Callable[[DictConfig], bool], str]  # where a setting has no effect, and why


def _where(other: str, value: Any) -> Rule:
    """Where another setting has a value."""
    said = value if isinstance(value, str) else json.dumps(value)
    return lambda config: OmegaConf.select(config, other) == value, f"{other} is {said}"


def _is_not_generated(config: DictConfig) -> bool:
    return not any(group.get("source") == "generated" for group in config.queries.values())


def _is_unguarded(config: DictConfig) -> bool:
    return all(group.get("leak_guard", config.split.leak_guard) == "off" for group in config.queries.values())


def _lacks_encoder(config: DictConfig) -> bool:
    dense = (retriever.get("encoder") for retriever in config.mine.retrievers.values())
    return config.split.leak_cosine is None and config.encoder not in list(dense)


def _is_undistilled(config: DictConfig) -> bool:
    return "CrossEncoder" in str(config.module.get("_target_")) and not config.module.get("distillation_weight")


def _reads_lists_alone(config: DictConfig) -> bool:
    target = str(config.module.get("_target_"))
    return target.startswith("retriever.") and ".Corpus" not in target


def _needs_no_guide(config: DictConfig) -> bool:
    target = str(config.module.get("_target_"))
    reads_guide = config.module.get("positive_aware") == "guide" or is_embedding_regression(config.module)
    return target.startswith("retriever.") and not reads_guide


def _is_unread(temperature: str) -> Callable[[DictConfig], bool]:
    def is_idle(config: DictConfig) -> bool:
        if config.temperatures.get("fitted") and temperature in read_by_objective(config):
            return True
        parts = [config.module, None if config.diagnostics.every_n_steps is None else config.diagnostics]
        read = str([OmegaConf.to_container(part, resolve=False) for part in parts if part is not None])
        return f"${{temperatures.{temperature}}}" not in read or (temperature == "teacher" and _is_undistilled(config))

    return is_idle


# of settings and sections
OF_RUN: dict[str, Rule] = {
    "data.dev_fraction": (lambda c: c.data.get("dev") is not None, "data.dev names the dev lists"),
    "data.leak_jaccard": _where("data.leak_guard", "off"),
    "data.leak_near_passages": _where("data.leak_guard", "off"),
    "data.human_types": _where("data.leak_guard", "off"),
    "encoder.preset": (
        lambda c: (c.encoder.get("preset") or {}).get("model") != c.encoder.model,
        "encoder.preset.model is not encoder.model, and a preset counts for its own model alone",
    ),
    "module.temperature": (_is_undistilled, "module.distillation_weight is 0"),
    "module.teacher_temperature": (_is_undistilled, "module.distillation_weight is 0"),
    **{
        f"temperatures.{name}": (_is_unread(name), "nothing that is computed here reads it, or it is fitted")
        for name in ("infonce", *FITTED)
    },
    "temperatures.fitted": (lambda c: not read_by_objective(c), "module reads no temperature that could be fitted"),
    "early_stopping.monitors": _where("early_stopping.patience", None),
    "diagnostics.teacher_temperature": _where("diagnostics.every_n_steps", None),
    "criterion": _where("save_checkpoints", False),
    "data.corpus_scores": (_reads_lists_alone, "module reads the teacher scores of the lists"),
    "data.guide": (_needs_no_guide, "module.positive_aware is not guide, and module is not embedding_regression"),
    "module.passage_weight": _where("module.train_passage_encoder", False),
    "passage_encoder.dropout": (lambda c: True, "passage_encoder is not trained"),
    "module.matryoshka_weights": _where("module.matryoshka_dimensions", None),
}


def _is_unpaid(config: DictConfig) -> bool:
    return config.generator.get("engine") not in ("server", "batch")


_UNPAID = "generator.engine is neither server nor batch"
_NOT_GENERATED = _is_not_generated, "no group of queries has source: generated"
OF_PREPARE: dict[str, Rule] = {
    **dict.fromkeys(("generate", "generator", "sample"), _NOT_GENERATED),
    "generator.price": (lambda c: _is_unpaid(c) and not c.plan, _UNPAID),
    "generator.budget": (_is_unpaid, _UNPAID),
    "generator.batch": (lambda c: c.generator.get("engine") != "batch", "generator.engine is not batch"),
    "deduplicate": (
        lambda c: _is_not_generated(c) and not c.mine.drop_near_duplicates,
        f"{_NOT_GENERATED[1]}, and mine.drop_near_duplicates is false",
    ),
    "deduplicate.permutations": _where("deduplicate.near_jaccard", None),
    "encoder": (_lacks_encoder, "no retriever of mine.retrievers has it, and split.leak_cosine is null"),
    "split.leak_jaccard": (_is_unguarded, "the leak guard is off"),
    "split.leak_cosine": (_is_unguarded, "the leak guard is off"),
    "split.leak_near_passages": (_is_unguarded, "the leak guard is off"),
    "filter.consistency_retrievers": _where("filter.consistency_rank", None),
    "filter.consistency_require": _where("filter.consistency_rank", None),
}


def say_what_has_no_effect(config: DictConfig, overrides: Sequence[str], rules: dict[str, Rule]) -> None:
    """Warn of each setting of a command line that nothing looks at, as the configuration is.

    Args:
        config: the whole configuration.
        overrides: as they were typed.
        rules: setting, or section → where it has no effect, and why.
    """
    typed = {o.package or o.key_or_group for o in OverridesParser.create().parse_overrides(list(overrides))}
    for setting, (is_idle, why) in rules.items():
        stated = sorted(key for key in typed if f"{key}.".startswith(f"{setting}."))
        if stated and is_idle(config):
            log.warning("%s has no effect here: %s", ", ".join(stated), why)
