"""Configurations in run folders of earlier versions, as this version writes them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from experiments.arguments import SPECS

log = logging.getLogger(__name__)
_ENCODERS = Path(__file__).parent / "conf" / "encoder"


def as_now(config: Any) -> Any:
    """Turn a run's configuration, as plain containers, into what this version would have written.

    Encoders used to state beside ``packaged`` what their presets know, and now have it in ``preset``.
    """
    if isinstance(config, list):
        return [as_now(inner) for inner in config]
    if not isinstance(config, dict):
        return config
    config = {key: as_now(inner) for key, inner in config.items()}
    fields = getattr(SPECS.get(config.get("_target_", "")), "__dataclass_fields__", None)
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
