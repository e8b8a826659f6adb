"""TrackioReport: what a run leaves in trackio's local files beside its curves, under the keys that W&B gets."""

from typing import Any

import lightning as L

from callbacks.reporting.logged_before import STEP
from callbacks.reporting.run_report import RunReport
from callbacks.reporting.trackio_logger import TrackioLogger


class TrackioReport(RunReport):
    """At the start the earlier parts of a resumed run, whose run there has been deleted; at the end a row that holds
    what is W&B's summary, and tables of queries.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log what the earlier parts logged."""
        for run in _runs(trainer):
            for at, row in self.logged_before(trainer.global_step) if trainer.global_step else ():
                run.log({**row, STEP: at}, step=at)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log summary and tables at the last step."""
        for run in _runs(trainer):
            import trackio

            tables = {
                name: trackio.Table(columns=columns, data=rows) for name, (columns, rows) in self.tables().items()
            }
            run.log({**self.summary(), **tables, STEP: trainer.global_step}, step=trainer.global_step)


def _runs(trainer: L.Trainer) -> list[Any]:
    """The trackio run, on the first rank; none where nothing is logged there."""
    return [logger.run for logger in trainer.loggers if isinstance(logger, TrackioLogger)]
