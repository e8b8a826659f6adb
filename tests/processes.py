"""Commands and ranks in processes of their own, forked from one that has done the imports: they take most of the time.

What is started from here is what ``python -m`` starts but for that; launchers (Lightning's, torchrun, joblib, Ray)
start Python anew.
"""

from __future__ import annotations

import atexit
import importlib
import multiprocessing
import os
import socket
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    [
        "experiments.run",
        "experiments.prepare",
        "experiments.compare",
        "experiments.comparison.report",
        "experiments.comparison.plots",
        "sentence_transformers",
        "torch.distributed.run",
    ]
)


def command(module: str, arguments, log, variables) -> None:
    """The process of one command; its output goes to the file ``log``."""
    out = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(out, 1), os.dup2(out, 2)
    torch.set_num_threads(1)
    os.environ |= variables
    sys.modules["__main__"] = importlib.import_module(module)  # what launchers start again
    sys.argv = [sys.modules["__main__"].__file__, *arguments]
    try:
        sys.modules["__main__"].main()
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out


def start(folder, *arguments, module="experiments.run", **variables):
    """A command's process, with one thread; its output goes to a file beside the run folder."""
    log = f"{folder}.{time.monotonic_ns()}.log"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    process = FORKED.Process(target=command, args=(module, arguments, log, environment))
    process.start()
    return process


def start_ranks(folder, *arguments):
    """The two processes of a run on two ranks, as a launcher that Lightning does not know starts them."""
    own = {"NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    options = [*arguments, "trainer.devices=2", "trainer.strategy=ddp"]
    return [start(folder, *options, LOCAL_RANK=rank, **own) for rank in "01"]


def finish(folder, *processes):
    """Wait until they have ended well."""
    for process in processes:
        process.join(timeout=300)
        assert process.exitcode == 0, "".join(p.read_text() for p in Path(folder).parent.glob("*.log"))[-5000:]


def apart(function, *arguments):
    """What ``function(*arguments)`` returns, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=FORKED) as pool:
        return pool.submit(function, *arguments).result(timeout=300)


def on_two_ranks(function, *arguments):
    """Run ``function(rank, *arguments)`` in two processes; what one of them raises is raised."""
    torch.multiprocessing.start_processes(function, arguments, 2, start_method="forkserver")


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
