"""WandbReport: what Weights & Biases gets of a run beside its curves."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import WandbLogger

from callbacks.reporting.logged_before import STEP
from callbacks.reporting.run_record import RunRecord
from callbacks.reporting.run_report import RunReport


class WandbReport(RunReport):
    """Files and code at the start; the summary and a table of queries at the end. Works offline, too.

    * ``config.yaml`` and ``environment.json`` as files in the folder ``experiment``; the code as an artifact.
    * The summary holds ``base/…``, ``best/…`` and ``last/…`` of every metric of the evaluation sets and of the dev
      lists: at the base model, at the step that the dev criterion chose, at the last one. What W&B would make of
      ``val/…`` and ``dev/…`` itself, the value that was logged last, is left out: which step it is of depends on the
      order of evaluations.
    * ``per_query/<data set>``: query, nDCG@10 of the base and of the best step, their difference; the most hurt first.
    * The history of a resumed run's earlier parts, where its server does not have it: an offline file cannot go on with
      another one, for ``wandb sync`` writes each from its run's first row on. So the last file holds all of the run,
      and those before lie in ``wandb/before_resume``, where a pattern for ``wandb sync`` does not find them.

    Args:
        record: whose results are sent; it comes before this callback.
        code: name → file.
        per_query_rows: queries in a table, at most: as many of the most hurt as of the most helped; 0 logs no table.
    """

    def __init__(self, record: RunRecord, code: Mapping[str, Path], per_query_rows: int = 1000) -> None:
        super().__init__(record, per_query_rows, "logger.wandb")
        self.code = dict(code)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Have W&B summarise no evaluation by itself: before the first one is logged."""
        for run in _runs(trainer):
            for name in ("val/*", "dev/*"):
                run.define_metric(name, step_metric="trainer/global_step", step_sync=True, summary="none")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Send code and files. RunRecord has written the environment."""
        for run in _runs(trainer):
            self._take_over_earlier_parts(run, trainer.global_step)
            self._save(run, "config.yaml", "environment.json")
            # log_code looks for files in one folder alone; it copies them
            with tempfile.TemporaryDirectory() as folder:
                for name, path in self.code.items():
                    (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, Path(folder) / name)
                run.log_code(folder, name=f"source-{run.project}", include_fn=lambda path: True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Send summary and tables."""
        for run in _runs(trainer):
            run.summary.update(self.summary())
            for name, (columns, rows) in self.tables().items():
                run.log({name: wandb_table(columns, rows), STEP: trainer.global_step})

    def _take_over_earlier_parts(self, run: Any, step: int) -> None:
        """Log what earlier parts logged before the step; what the server has stays there."""
        own = Path(run.dir).parent
        earlier = [path for path in own.parent.glob(f"offline-run-*-{run.id}") if path != own] if step else []
        if not step or not (run.offline or any(not list(path.glob("*.synced")) for path in earlier)):
            return
        for at, row in self.logged_before(step):
            run.log({**row, STEP: at})
        for path in earlier:
            (own.parent / "before_resume").mkdir(exist_ok=True)
            path.rename(own.parent / "before_resume" / path.name)

    def _save(self, run: Any, *names: str) -> None:
        """Copy files of the run folder to those of the W&B run; its own config.yaml is another one."""
        for name in names:
            copy = Path(run.dir) / "experiment" / name
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(self.history.folder / name, copy)
            run.save(str(copy), base_path=run.dir, policy="now", glob=False)


def wandb_table(columns: list[str], rows: list[list[Any]]) -> Any:
    """Make a table of W&B's."""
    import wandb

    return wandb.Table(columns=columns, data=rows)


def _runs(trainer: L.Trainer) -> list[Any]:
    """The W&B run, on the first rank; none where nothing is logged to W&B."""
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, WandbLogger)]
