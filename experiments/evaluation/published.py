"""Published figures of known models, to hold one's own against."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from datamodules.storage.yaml_files import read_yaml
from experiments.evaluation.models import Model

_FILE = Path(__file__).parent / "published.yaml"


@cache
def published_figures() -> Mapping[str, Mapping[str, float]]:
    """Hub name of a model, or ``bm25`` → BEIR name of a data set, or of a group → nDCG@10, in [0, 1]."""
    figures: dict[str, Any] = read_yaml(_FILE, "Install this project again.")
    return {model: {name: value / 100 for name, value in sets.items()} for model, sets in figures.items()}


def published_of(model: Model) -> Mapping[str, float]:
    """Data set → published nDCG@10 of a model; empty where none is known, and where settings differ from its preset."""
    if "bm25" in model.config:
        return published_figures()["bm25"]
    encoder = model.config.get("encoder") or {}
    return published_figures().get(str(encoder.get("model")), {}) if "module" not in model.config else {}
