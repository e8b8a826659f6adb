"""SIGTERM, as SLURM, docker stop and kill send it: a process ends within seconds, and says how to go on."""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

import lightning as L

_SECONDS = 5.0
STATUS = 128 + signal.SIGTERM


def terminate_gracefully() -> None:
    """Have this process end at SIGTERM with status 143.

    It unwinds, so that child processes and temporary files go; where that takes longer than five seconds (a thread that
    works on, ranks that wait for one another), it ends all the same: the state on disk bears a kill at any moment, and
    whoever sends SIGTERM sends SIGKILL soon after.
    """
    signal.signal(signal.SIGTERM, _end)


def _end(signum: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: the second one would interrupt the unwinding
    sys.stderr.write("Ends at SIGTERM. What is finished is kept: start it again, and it goes on.\n")
    timer = threading.Timer(_SECONDS, os._exit, (STATUS,))
    timer.daemon = True
    timer.start()
    sys.exit(STATUS)


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
