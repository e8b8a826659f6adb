"""Configurations in run folders of earlier versions, as this version writes them."""

import logging
from typing import Any

from omegaconf import OmegaConf

from experiments.conf import CONF
from experiments.settings.renamed import rename
from experiments.settings.walk import rebuilt

log = logging.getLogger(__name__)
_ENCODERS = CONF / "encoder"
_METRICS = ("nDCG@10", "R@100", "RR@10", "AP@100")  # when they had no names
# what an encoder could state beside its model, when presets were not yet a mapping of their own
_LENGTHS = ("query_max_length", "passage_max_length")
_OF_RETRIEVERS = ("pooling", "query_prompt", "passage_prompt", *_LENGTHS, "normalize", "truncate_dim")
_STATED = {
    "retriever.encoder.TextEncoder.from_pretrained": _OF_RETRIEVERS,
    "retriever.cross_encoder.CrossEncoder.from_pretrained": (*_LENGTHS, "pair_max_length"),
}

_NEWER_OF_LISTS = {"_recursive_": False, "sources": "keep", "dev_over_corpus": False, "guide": None}


def as_now(config: Any) -> Any:
    """Turn a run's configuration, as plain containers, into what this version would have written.

    Encoders used to state beside ``packaged`` what their presets know, and now have it in ``preset``. Settings that
    are newer than the run get the value that does what was done then.
    """
    return rebuilt(config, _as_now)


def _as_now(config: Any, name: str) -> Any:
    if not isinstance(config, dict):
        return config
    evaluation = config.get("evaluation")
    if isinstance(evaluation, dict) and "_target_" in evaluation:
        newer = {"metrics": list(_METRICS), "on_bad_list": config.get("on_bad_list", "error")}
        config["evaluation"] = newer | evaluation
    if not all(isinstance(config.get(part), dict) for part in ("data", "evaluation", "module")):
        return _with_preset(config)
    rename(config)
    config = {"passage_encoder": None} | config
    if "empty_passages" not in config:
        config = _with_newer_settings(config)
    if config["data"].get("_target_") == "datamodules.QueryListDataModule":
        config["data"] = _NEWER_OF_LISTS | config["data"]
    config["module"] = _newer_of_objective(config["module"]) | config["module"]
    if isinstance(config.get("temperatures"), dict):
        config["temperatures"] = {"corpus_teacher": 0.05, "fitted": None} | config["temperatures"]
    return config if "callbacks" in config else _with_newer_groups(config)


def _newer_of_objective(module: dict[str, Any]) -> dict[str, Any]:
    """What the shipped objectives have since then, at the value that changes nothing."""
    kind = str(module.get("_target_"))
    newer: dict[str, Any] = {"orthogonal_weight": 0.0} if kind.startswith("retriever.objectives.") else {}
    if kind == "retriever.objectives.InfoNCE":
        newer |= {"symmetric": False, "hardness": 0.0}
        newer |= {"negative_limit": None} if "positive_aware" in module else {}
    return newer


def _with_newer_groups(config: dict[str, Any]) -> dict[str, Any]:
    """Add what made the optimiser, its schedule and the callbacks of a run before they were groups."""
    shipped = OmegaConf.load(CONF / "run.yaml")
    tops = {key: shipped[key] for key in ("early_stopping", "diagnostics")}
    tops["temperatures"] = OmegaConf.load(CONF / "temperatures" / "paper.yaml")
    groups = {"optimizer": "adamw", "scheduler": "linear", "callbacks": "default"}
    made = {group: OmegaConf.load(CONF / group / f"{name}.yaml") for group, name in groups.items()}
    whole = OmegaConf.merge(tops, made, {key: config[key] for key in (*tops, *groups) if key in config})
    return config | {group: OmegaConf.to_container(whole[group], resolve=True) for group in groups}


def _with_newer_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Add what a run's configuration has at its top, and in its groups, since empty passages are kept by default."""
    # a run that has ended saw no empty passage where these were refused
    data, evaluation = ({**config[part], "empty_passages": "keep"} for part in ("data", "evaluation"))
    if data.get("dev_fraction") == 0.1:  # what null is, of lists that are not split
        data["dev_fraction"] = None
    return config | {
        "data": {"leak_near_passages": None} | data,
        "evaluation": evaluation,
        "empty_passages": "keep",
        "on_bad_list": data.get("on_bad_list", "error"),
        "unknown_qrels": evaluation.get("unknown_qrels", "error"),
    }


def _with_preset(config: dict[str, Any]) -> dict[str, Any]:
    """Of an encoder that states ``packaged``, move what it states into a preset."""
    fields = _STATED.get(config.get("_target_", ""))
    if fields is None or "packaged" not in config or "model" not in config:
        return config
    packaged = config.pop("packaged")
    if packaged and _model_of(packaged) != config["model"]:
        log.warning(
            "That run trained the weights of the package %s, though it named encoder.model=%s; now what is named is "
            "loaded",
            packaged.get("distribution"),
            config["model"],
        )
        packaged = None
    known = {name: config[name] for name in fields if config.get(name) is not None}
    preset = {"model": config["model"], **({"packaged": packaged} if packaged else {}), **known}
    attention = None if config.get("attention") == "sdpa" else config.get("attention")
    return config | dict.fromkeys(known) | {"preset": preset, "attention": attention}


def _model_of(packaged: Any) -> str | None:
    """The model whose weights a package carries, by the presets that ship."""
    for path in sorted(_ENCODERS.glob("*.yaml")):
        preset = OmegaConf.to_container(OmegaConf.load(path)).get("preset") or {}
        if preset.get("packaged") == packaged:
            return preset["model"]
    return None
