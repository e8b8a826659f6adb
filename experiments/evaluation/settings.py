"""The settings at the top of an evaluation's configuration, which no class takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from experiments.settings.common import CommonSettings
from retriever.errors import require_positive


@dataclass(frozen=True)
class HowSettings:
    """What is computed, and by how many hits: ``evaluation``."""

    metrics: Sequence[Any]
    hits: int
    run_hits: int
    ignore_identical_ids: bool
    fusion_depth: int
    rerank_depth: int

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        require_positive(**{name: value for name, value in vars(self).items() if type(value) is int})


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(CommonSettings):
    """The top of ``experiments/conf/evaluate.yaml``, where each setting is told of."""

    order: Sequence[str]
    base: str | None
    only: str | None
    evaluation: HowSettings
    vectors: Sequence[Any]
    on_bad_list: Literal["error", "drop"]
    output_dir: str
    data_dir: str
