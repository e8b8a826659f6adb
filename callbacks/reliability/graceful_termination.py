"""GracefulTermination: SIGTERM ends a training run as it ends every other command."""

import signal
import threading
from typing import Any

import lightning as L


class GracefulTermination(L.Callback):
    """Leaves SIGTERM to the handler that stood before the trainer's, during training and validation too.

    Lightning's own handler only takes a note. The run then ends with its step, but with status 0, as if it were
    finished; a validation goes on to its end, which may take hours; and several ranks wait for one another inside of
    the handler. Where no handler stood before (a caller's own process), Lightning's is left. In a job of
    submitit's, its own stands there, which passes over SIGTERM: such a job ends at SLURM's SIGKILL.
    """

    def __init__(self) -> None:
        self.handler: Any = signal.getsignal(signal.SIGTERM)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the handler back."""
        self.on_train_start(trainer, pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the handler back."""
        if not callable(self.handler) or threading.current_thread() is not threading.main_thread():
            return

        def end(*arguments: Any) -> None:
            if trainer.strategy.launcher is not None:
                trainer.strategy.launcher.kill(signal.SIGTERM)  # the ranks that this process started
            self.handler(*arguments)

        signal.signal(signal.SIGTERM, end)
