"""The settings at the top of a run's configuration, which no class takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from datamodules.storage.files import file_name
from retriever.errors import InputError, require_positive
from retriever.typed import read_settings


@dataclass(frozen=True)
class EarlyStopping:
    """When training stops: ``early_stopping``.

    Attributes:
        monitors: stop when none of these improves.
        patience: in so many validations in a row; None never stops early.
    """

    monitors: Sequence[str]
    patience: int | None

    def __post_init__(self) -> None:
        """Refuse a patience below 1."""
        if self.patience is not None:
            require_positive(patience=self.patience)


@dataclass(frozen=True)
class DiagnosticsSettings:
    """What is measured of objective and embeddings, see :class:`~callbacks.Diagnostics`: ``diagnostics``."""

    every_n_steps: int | None
    teacher_temperature: float

    def __post_init__(self) -> None:
        """Refuse a number of steps below 1 and a temperature of 0."""
        if self.every_n_steps is not None:
            require_positive(every_n_steps=self.every_n_steps, teacher_temperature=self.teacher_temperature)


@dataclass(frozen=True)
class WandbSettings:
    """Where a run goes on Weights & Biases: ``logger.wandb``.

    Attributes:
        project: there.
        entity: the user or team; None takes the user's own.
        offline: keep files that are sent later; None is offline where no key is there.
        tags: of the run.
        per_query_rows: queries in the table of differences; 0 makes no table.
        init_timeout: seconds to reach the server.
        finish_timeout: seconds to send the rest at the end.
    """

    project: str = "retriever-distillation"
    entity: str | None = None
    offline: bool | None = None
    tags: Sequence[str] = ()
    per_query_rows: int = 1000
    init_timeout: float = 60
    finish_timeout: float = 600


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The top of ``experiments/conf/run.yaml``, where each setting is told of."""

    name: str
    group: str | None
    seed: int
    output_dir: str
    cache_dir: str
    data_dir: str
    token_budget: int
    empty_passages: Literal["error", "keep"]
    unknown_qrels: Literal["error", "keep"]
    on_bad_list: Literal["error", "drop"]
    temperatures: Mapping[str, float]
    criterion: str = "dev/loss"
    criterion_mode: Literal["min", "max"]
    allow_test_selection: bool
    early_stopping: EarlyStopping
    diagnostics: DiagnosticsSettings
    resume: str | None
    repeats: str | None = None
    allowed_targets: Sequence[str] = field(default_factory=list)
    export: bool
    save_checkpoints: bool

    def __post_init__(self) -> None:
        """Refuse a name that no file can have, a seed that torch refuses, and a budget of nothing."""
        file_name("name", self.name)
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed}; it must be at least 0 and below 2^32.")
        require_positive(token_budget=self.token_budget)


def read_run_settings(config: Mapping[str, Any]) -> RunSettings:
    """Read the top of a run's whole configuration, of plain containers.

    Raises:
        InputError: see :func:`~retriever.typed.read_settings`.
    """
    for name, switch in {"early_stopping": "patience", "diagnostics": "every_n_steps"}.items():
        if config[name] is None:
            raise InputError(f"{name} is null; to switch it off, say {name}.{switch}=null.")
    wandb = config["logger"].get("wandb")
    if wandb is not None:
        if not isinstance(wandb, Mapping):
            raise InputError(f"logger.wandb is {wandb!r}; for runs without W&B, say logger=csv.")
        read_settings(WandbSettings, wandb, "logger.wandb")
    stated = {f.name: config[f.name] for f in fields(RunSettings) if f.name in config}
    if not stated.get("save_checkpoints", True):  # nothing looks at it
        stated.pop("criterion", None)
    return read_settings(RunSettings, stated, "")
