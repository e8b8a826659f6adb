"""TrackioLogger: Lightning's metrics in a trackio run."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from callbacks.reporting.logged_before import STEP


class TrackioLogger(Logger):
    """Lightning's metrics in a trackio run.

    Args:
        run: what ``trackio.init`` gave.
    """

    def __init__(self, run: Any) -> None:
        super().__init__()
        self.run = run

    @property
    def name(self) -> str:
        """The project."""
        return self.run.project

    @property
    def version(self) -> str:
        """The run's id."""
        return self.run.id

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log a row at an optimiser step."""
        self.run.log({**metrics, STEP: step}, step=step)

    @rank_zero_only
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Log nothing: the run was begun with its configuration."""
