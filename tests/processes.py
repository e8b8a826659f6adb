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
from pathlib import Path

import torch

torch.set_num_threads(1)  # in every process that imports this
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
    deadline = time.monotonic() + 300
    for process in processes:
        process.join(timeout=max(0, deadline - time.monotonic()))
        if process.exitcode != 0:
            break
    for process in processes:  # those that wait for one that has failed would wait for long
        process.kill()
        process.join()
    said = "".join(p.read_text() for p in Path(folder).parent.glob("*.log"))
    assert [process.exitcode for process in processes] == [0] * len(processes), said[-5000:]


def _answer(function, arguments, teller):
    teller.send(function(*arguments))


def apart(function, *arguments):
    """What ``function(*arguments)`` returns, in a process of its own."""
    listener, teller = FORKED.Pipe(duplex=False)
    process = FORKED.Process(target=_answer, args=(function, arguments, teller))
    process.start()
    teller.close()
    try:
        assert listener.poll(300), "no answer in five minutes"
        return listener.recv()  # EOFError: it has ended without one, and said why on stderr
    finally:
        process.join(timeout=30)
        process.kill()
        process.join()


def on_two_ranks(function, *arguments):
    """Run ``function(rank, *arguments)`` in two processes; what one of them raises is raised."""
    torch.multiprocessing.start_processes(function, arguments, 2, start_method="forkserver")


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
