"""PruneRun: stop a run of a sweep that does worse than the finished ones did at its step."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import lightning as L

from callbacks.reporting.results import RESULTS, read_results
from callbacks.reporting.run_record import RunRecord, best_value

if TYPE_CHECKING:
    from optuna.pruners import BasePruner

log = logging.getLogger(__name__)


class PruneRun(L.Callback):
    """Ask an Optuna pruner about the dev criterion at every validation, and end the training where it says so.

    The other runs are read from the folders beside this run's, so it works with every sweeper and launcher, and after a
    kill. Those of the same objective and criterion count, without the pruned ones. A pruned run ends as any run does,
    evaluated and recorded, and ``results.json`` says that it was pruned. (Optuna's own callback for Lightning raises an
    exception instead, and needs the trial itself in the process that trains.)

    Compare by a criterion that means the same in all runs: not by a loss whose temperature is searched for.

    Args:
        record: the run's record, which must stand before this callback.
        pruner: for example ``optuna.pruners.MedianPruner``; steps are optimiser steps.
    """

    def __init__(self, record: RunRecord, pruner: BasePruner) -> None:
        self.record = record
        self.pruner = pruner

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A run that was pruned, and cut off before its end, does not train on."""
        trainer.should_stop = trainer.should_stop or self.record.pruned

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare with the finished runs."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        mode = self.record.config["criterion_mode"]
        stop = trainer.is_global_zero and is_behind(self.record.criterion, self._others(), mode, self.pruner)
        if trainer.strategy.reduce_boolean_decision(stop, all=False):
            log.info("Pruned at step %d: %s", trainer.global_step, self.record.config["criterion"])
            self.record.pruned = True
            trainer.should_stop = True

    def _others(self) -> Iterator[Mapping[int, float]]:
        """Step → criterion of each finished run beside this one."""
        for path in sorted(self.record.folder.parent.glob(f"*/{RESULTS}")):
            results = read_results(path.parent) or {}
            alike = all(results.get(key) == self.record.config[key] for key in ("objective", "criterion"))
            if path.parent != self.record.folder and alike and not results.get("pruned"):
                yield {int(step): value for step, value in results.get("criterion_by_step", {}).items()}


def is_behind(
    values: Mapping[int, float], others: Iterable[Mapping[int, float]], mode: str, pruner: BasePruner
) -> bool:
    """Whether a pruner would stop a run.

    Args:
        values: step → criterion of the run so far.
        others: the same of the finished runs.
        mode: ``min`` where lower is better, or ``max``.
        pruner: asked about the last step.
    """
    import optuna  # the extra 'sweep'

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize" if mode == "min" else "maximize", pruner=pruner)
    for other in filter(None, others):
        trial = optuna.trial.create_trial(value=best_value(other, mode), intermediate_values=dict(other))
        study.add_trial(trial)
    trial = study.ask()
    for step, value in values.items():
        trial.report(value, step)
    return trial.should_prune()
