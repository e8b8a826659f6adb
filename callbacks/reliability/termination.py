"""SIGTERM, as SLURM, docker stop and kill send it: a process ends within seconds, and says how to go on."""

import os
import signal
import sys
import threading
from types import FrameType

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
