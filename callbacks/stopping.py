"""Early stopping when none of several dev metrics improves any more."""

import logging
from collections.abc import Sequence
from typing import Any

import lightning as L

from retriever.errors import InputError, require_positive

log = logging.getLogger(__name__)


class StopWhenNoneImproves(L.Callback):
    """Stop after ``patience`` validations in a row in which no metric reached a new minimum.

    The paper's rule: two evaluations in which neither the dev KL nor the dev total improves (arXiv 2505.19274). The
    base model, validated before training, is the first to improve on.
    Lightning's EarlyStopping watches one metric.

    Args:
        monitors: logged metrics, lower is better.
        patience: validations, at least 1; None never stops.
    """

    def __init__(self, monitors: Sequence[str] = ("dev/kl", "dev/loss"), patience: int | None = 2) -> None:
        require_positive(patience=patience)
        self.monitors = list(monitors)
        self.patience = patience
        self.best: dict[str, float] = {}
        self.without_improvement = 0

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare with the best so far."""
        if self.patience is None or trainer.sanity_checking or trainer.state.fn not in ("fit", "validate"):
            return
        if trainer.state.fn == "validate":  # the base model
            logged = trainer.callback_metrics
            self.best = {name: float(logged[name]) for name in self.monitors if name in logged}
            return
        missing = [name for name in self.monitors if name not in trainer.callback_metrics]
        if missing:
            raise InputError(
                f"Early stopping watches {missing[0]!r}, which nothing logs. Logged are "
                f"{', '.join(sorted(trainer.callback_metrics))}."
            )
        values = {name: float(trainer.callback_metrics[name]) for name in self.monitors}
        improved = [name for name, value in values.items() if value < self.best.get(name, float("inf"))]
        self.best |= {name: values[name] for name in improved}
        self.without_improvement = 0 if improved else self.without_improvement + 1
        if self.without_improvement >= self.patience:
            log.info("Stopping: none of %s improved in %d validations.", ", ".join(self.monitors), self.patience)
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know."""
        return {"best": self.best, "without_improvement": self.without_improvement}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a resumed run."""
        self.best, self.without_improvement = state_dict["best"], state_dict["without_improvement"]
