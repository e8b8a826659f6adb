"""WandbReport: what Weights & Biases gets of a run beside its curves."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import WandbLogger

from callbacks.reporting.run_record import RunRecord
from retriever.errors import InputError


class WandbReport(L.Callback):
    """Files and code at the start; the summary and a table of queries at the end. Works offline, too.

    * ``config.yaml`` and ``environment.json`` as files in the folder ``experiment``; the code as an artifact.
    * The summary holds ``base/…``, ``best/…`` and ``last/…`` of every metric of the evaluation sets and of the dev
      lists: at the base model, at the step that the dev criterion chose, at the last one. What W&B would make of
      ``val/…`` and ``dev/…`` itself, the value that was logged last, is left out: which step it is of depends on the
      order of evaluations.
    * ``per_query/<data set>``: query, nDCG@10 of the base and of the best step, their difference; the most hurt first.

    Args:
        record: whose results are sent; it comes before this callback.
        code: name → file.
        per_query_rows: queries in a table, at most: as many of the most hurt as of the most helped; 0 logs no table.
    """

    def __init__(self, record: RunRecord, code: Mapping[str, Path], per_query_rows: int = 1000) -> None:
        if per_query_rows < 0:
            raise InputError(f"logger.wandb.per_query_rows is {per_query_rows}; it must not be negative.")
        self.record, self.history = record, record.history
        self.code = dict(code)
        self.per_query_rows = per_query_rows
        self.dev: dict[int, dict[str, float]] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Have W&B summarise no evaluation by itself: before the first one is logged."""
        for run in _runs(trainer):
            for name in ("val/*", "dev/*"):
                run.define_metric(name, step_metric="trainer/global_step", step_sync=True, summary="none")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Send code and files. RunRecord has written the environment."""
        for run in _runs(trainer):
            self._save(run, "config.yaml", "environment.json")
            # log_code looks for files in one folder alone; it copies them
            with tempfile.TemporaryDirectory() as folder:
                for name, path in self.code.items():
                    (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, Path(folder) / name)
                run.log_code(folder, name=f"source-{run.project}", include_fn=lambda path: True)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember the dev figures of this step."""
        if not trainer.sanity_checking:
            figures = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("dev/")}
            self.dev[trainer.global_step] = figures

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Send summary and tables."""
        results = self.record.results
        for run in _runs(trainer):
            run.summary.update(_summary(results, self.dev))
            for data in (opened.data for opened in self.history.sets) if self.per_query_rows else ():
                table = self._per_query(data.name, data.queries, results["steps"])
                run.log({f"per_query/{data.name}": table, "trainer/global_step": trainer.global_step})

    def state_dict(self) -> dict[str, Any]:
        """The dev figures, so that a resumed run keeps them."""
        return {"dev": self.dev}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a resumed run's figures."""
        self.dev = state_dict["dev"]

    def _save(self, run: Any, *names: str) -> None:
        """Copy files of the run folder to those of the W&B run; its own config.yaml is another one."""
        for name in names:
            copy = Path(run.dir) / "experiment" / name
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(self.history.folder / name, copy)
            run.save(str(copy), base_path=run.dir, policy="now", glob=False)

    def _per_query(self, name: str, queries: Mapping[str, str], steps: Mapping[str, int]) -> Any:
        import wandb

        base, best = (self.history.per_query(name, steps[point]) for point in ("base", "best"))
        rows: list[list[Any]] = sorted(
            ([query, queries[query], base[query], best[query], best[query] - base[query]] for query in best),
            key=lambda row: row[-1],
        )
        if len(rows) > self.per_query_rows:
            helped = self.per_query_rows // 2
            rows = rows[: self.per_query_rows - helped] + rows[len(rows) - helped :]
        return wandb.Table(columns=["query_id", "query", "base", "best", "difference"], data=rows)


def _runs(trainer: L.Trainer) -> list[Any]:
    """The W&B run, on the first rank; none where nothing is logged to W&B."""
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, WandbLogger)]


def _summary(results: Mapping[str, Any], dev: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    summary = {name: results[name] for name in ("wall_time_s", "peak_memory_bytes", "optimiser_steps")}
    for point, step in results["steps"].items():
        summary[f"{point}/step"] = step
        summary |= {f"{point}/{name}": value for name, value in dev.get(step, {}).items()}
        for dataset, metrics in results["datasets"].items():
            summary |= {f"{point}/{dataset}/{metric}": values[point] for metric, values in metrics.items()}
    return summary
