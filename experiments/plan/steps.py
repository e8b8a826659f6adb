"""Steps and validations of a run, as Lightning will make them."""

from __future__ import annotations

from dataclasses import dataclass

import lightning as L


@dataclass(frozen=True)
class Steps:
    """How much a run trains and validates.

    Attributes:
        batches: of an epoch.
        accumulated: batches of an optimiser step.
        total: optimiser steps, at most; None where only time or early stopping ends the run.
        done: of them, before this part of a resumed run.
        every: batches from one validation to the next; None where time decides.
        across_epochs: whether these batches are counted on from epoch to epoch.
        every_epochs: epochs from one that is validated to the next.
    """

    batches: int
    accumulated: int
    total: int | None
    done: int
    every: int | None
    across_epochs: bool
    every_epochs: int

    @classmethod
    def of(cls, trainer: L.Trainer, batches: int, done: int = 0) -> Steps:
        """Read a trainer that has not begun.

        Args:
            trainer: with its limits.
            batches: of an epoch, without them.
            done: optimiser steps before this part of the run.
        """
        limit = trainer.limit_train_batches
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        accumulated = trainer.accumulate_grad_batches
        limits = [trainer.max_steps] if trainer.max_steps not in (None, -1) else []
        if trainer.max_epochs not in (None, -1):
            limits.append(trainer.max_epochs * -(-batches // accumulated))
        interval = getattr(trainer, "val_check_interval", None)  # there is none where it is a time
        return cls(
            batches=batches,
            accumulated=accumulated,
            total=min(limits, default=None),
            done=done,
            every=max(1, int(batches * interval)) if isinstance(interval, float) else interval,
            across_epochs=trainer.check_val_every_n_epoch is None,
            every_epochs=trainer.check_val_every_n_epoch or 1,
        )

    @property
    def of_epoch(self) -> int:
        """Optimiser steps of an epoch; 1 where it has no batch, which Lightning refuses."""
        return max(1, -(-self.batches // self.accumulated))

    @property
    def left(self) -> int:
        """Optimiser steps that this part of the run makes, at most; those of one epoch where nothing limits them."""
        return max(0, (self.of_epoch if self.total is None else self.total) - self.done)

    @property
    def validations(self) -> int:
        """Validations among them; the last step is validated wherever it falls."""
        end = self.done + self.left
        due = self._until(end)
        return due - self._until(self.done) + (self.left > 0 and due == self._until(end - 1))

    def _until(self, step: int) -> int:
        """Validations up to a step."""
        if self.every is None or step <= 0:
            return 0
        epoch, within = divmod(step, self.of_epoch)
        of_this = min(within * self.accumulated, self.batches)
        if self.across_epochs:
            return (epoch * self.batches + of_this) // self.every
        full = epoch // self.every_epochs * (self.batches // self.every)
        return full + (of_this // self.every if (epoch + 1) % self.every_epochs == 0 else 0)
