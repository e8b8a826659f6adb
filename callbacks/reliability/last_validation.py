"""ValidateLastStep: a run's last step is validated wherever it falls, so that the dev criterion is known of it."""

from typing import Any

import lightning as L


class ValidateLastStep(L.Callback):
    """Have Lightning validate the last step of ``max_steps`` or ``max_epochs`` too, where no validation was due.

    It does so by itself where something else asks to stop: early stopping, ``max_time``, with which every epoch must be
    validated.
    """

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ask to stop at the last step, whichever epoch it is in."""
        if trainer.global_step >= trainer.estimated_stepping_batches:
            trainer.should_stop = True
            if trainer.check_val_every_n_epoch is not None:
                trainer.check_val_every_n_epoch = 1
