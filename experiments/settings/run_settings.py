"""The settings at the top of a run's configuration, which no class takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

from datamodules.storage.files import file_name
from experiments.settings.common import CommonSettings
from retriever.errors import InputError, require_positive
from retriever.typed import read_settings, read_top


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
class DebugSettings:
    """How much of each file a debug run takes: ``debug``.

    Attributes:
        lists: of each query type of a file of lists.
        queries: of each evaluation set.
    """

    lists: int
    queries: int

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        require_positive(lists=self.lists, queries=self.queries)


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


@dataclass(frozen=True)
class TrackioSettings:
    """Where a run goes in trackio: ``logger.trackio``.

    Attributes:
        project: there.
        folder: where its files are; one for all runs that stand beside each other.
        per_query_rows: queries in the table of differences; 0 makes no table.
    """

    project: str
    folder: str
    per_query_rows: int = 1000


@dataclass(frozen=True, kw_only=True)
class RunSettings(CommonSettings):
    """The top of ``experiments/conf/run.yaml``, where each setting is told of."""

    name: str
    group: str | None
    seed: int
    output_dir: str
    data_dir: str
    on_bad_list: Literal["error", "drop"]
    temperatures: Mapping[str, float | str | None]
    criterion: str = "dev/loss"
    criterion_mode: Literal["min", "max"]
    allow_test_selection: bool
    early_stopping: EarlyStopping
    diagnostics: DiagnosticsSettings
    passage_encoder: Mapping[str, Any] | None = None
    resume: str | None
    repeats: str | None = None
    export: bool
    save_checkpoints: bool
    debug: DebugSettings | None = None

    def __post_init__(self) -> None:
        """Refuse a name that no file can have, and a seed that torch refuses."""
        super().__post_init__()
        file_name("name", self.name)
        fitted = self.temperatures.get("fitted")
        if fitted is not None and fitted not in ("labels", "entropy"):
            raise InputError(f"temperatures.fitted is {fitted!r}; it must be labels, entropy, or null for none.")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed}; it must be at least 0 and below 2^32.")


def read_run_settings(config: Mapping[str, Any]) -> RunSettings:
    """Read the top of a run's whole configuration, of plain containers.

    Raises:
        InputError: see :func:`~retriever.typed.read_settings`.
    """
    wandb = config["logger"].get("wandb")
    if wandb is not None:
        if not isinstance(wandb, Mapping):
            raise InputError(f"logger.wandb is {wandb!r}; for runs without W&B, say logger=csv.")
        read_settings(WandbSettings, wandb, "logger.wandb")
    trackio = config["logger"].get("trackio")
    if trackio is not None:
        read_settings(TrackioSettings, trackio, "logger.trackio")
        if find_spec("trackio") is None:
            raise InputError("logger=trackio needs the package trackio: pip install -e '.[trackio]'")
    looked_at = config if config["save_checkpoints"] else {k: v for k, v in config.items() if k != "criterion"}
    return read_top(RunSettings, looked_at)
