"""The settings that the top of every command's configuration has."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from retriever.errors import require_positive

PrecisionName = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]


@dataclass(frozen=True, kw_only=True)
class CommonSettings:
    """What ``run.yaml``, ``prepare/prepare.yaml``, ``evaluate.yaml`` and ``bench.yaml`` share; told of there."""

    cache_dir: str
    token_budget: int | None
    empty_passages: Literal["error", "keep"]
    unknown_qrels: Literal["error", "keep"]
    allowed_targets: Sequence[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse a budget of nothing."""
        require_positive(token_budget=self.token_budget)
