"""Commands and ranks in processes of their own, forked from one that has done the imports: they take most of the time.

What is started from here is what ``python -m`` starts but for that; launchers (Lightning's, torchrun, joblib, Ray)
start Python anew. None is forked from the tests' process itself: one that is killed would take a lock along that both
have, as tqdm's. Whatever waits here waits :data:`PATIENCE` seconds; what hangs then writes its stacks and is ended.
"""

from __future__ import annotations

import atexit
import importlib
import multiprocessing
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import torch

torch.set_num_threads(1)  # in every process that imports this
os.fsync = lambda _: None  # a wait for the disk, a dozen times a run; only a loss of power would be felt
os.environ["PYTHONFAULTHANDLER"] = "1"  # whatever is started writes the stacks of its threads at SIGABRT
# multiprocessing's server is told of sys.path, does not follow it, and passes over modules that it does not find
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
PATIENCE = 360.0  # seconds; less than a test may take, so that what hangs is named by who waits for it
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    [
        "experiments.run",
        "experiments.training.train",
        "experiments.prepare",
        "experiments.preparation.lists",
        "experiments.adapt",
        "experiments.evaluate",
        "experiments.evaluation.work",
        "experiments.compare",
        "experiments.comparison.report",
        "experiments.comparison.plots",
        "sentence_transformers",
        "torch.distributed.run",
        "helpers.warm",
        "helpers.out_of_collection",
    ]
)


def command(module: str, arguments, log, variables) -> None:
    """The process of one command; its output goes to the file ``log``."""
    out = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(out, 1), os.dup2(out, 2)
    os.environ |= variables
    for name in ("short_estimates", "in_float32"):
        importlib.import_module(f"helpers.{name}")
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


def _inside(folder, *rest):
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    command(*rest, {"OMP_NUM_THREADS": "1"})


def run_in(folder, module, *arguments):
    """Exit status and output of a command in a folder, whose modules it can import, as with ``python -m``."""
    log = Path(folder) / f"{time.monotonic_ns()}.log"
    process = FORKED.Process(target=_inside, args=(folder, module, arguments, log))
    process.start()
    process.join(PATIENCE)
    end(process, hang=process.exitcode is None)
    return process.exitcode, log.read_text()


def start_ranks(folder, *arguments):
    """The two processes of a run on two ranks, as a launcher that Lightning does not know starts them."""
    own = {"NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    options = [*arguments, "trainer.devices=2", "trainer.strategy=ddp"]
    return [start(folder, *options, LOCAL_RANK=rank, **own) for rank in "01"]


def end(*processes, hang=False):
    """End processes and all that they have started; those that hang write the stacks of their threads first."""
    family = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            started = psutil.Process(process.pid)
            family += [started, *started.children(recursive=True)]
    for number in (signal.SIGABRT, signal.SIGKILL) if hang else (signal.SIGKILL,):
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.send_signal(number)
        for process in processes:
            process.join(10)


def end_everything():
    """End all that this process has started, and what was started by those that have ended meanwhile."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def finish(folder, *processes):
    """Wait until they have ended well."""
    deadline = time.monotonic() + PATIENCE
    try:
        for process in processes:
            process.join(timeout=max(0, deadline - time.monotonic()))
            if process.exitcode != 0:
                break
    finally:  # those that wait for one that has failed would wait for long
        hang = time.monotonic() >= deadline
        end(*processes, hang=hang)
    said = "".join(p.read_text() for p in Path(folder).parent.glob("*.log"))
    assert not hang, f"not ended in {PATIENCE:.0f} s: {said[-20_000:]}"
    assert [process.exitcode for process in processes] == [0] * len(processes), said[-5000:]


def _begin(function, arguments, teller):
    teller.send("begun")
    teller.send(function(*arguments))


def begin(function, *arguments):
    """A process that runs ``function(*arguments)`` and has begun to; and a pipe on which it sends what that returns."""
    listener, teller = FORKED.Pipe(duplex=False)
    process = FORKED.Process(target=_begin, args=(function, arguments, teller))
    process.start()
    teller.close()
    try:
        assert listener.poll(PATIENCE), f"not begun in {PATIENCE:.0f} s"
        listener.recv()
    except BaseException:
        end(process, hang=True)
        raise
    return process, listener


def apart(function, *arguments):
    """What ``function(*arguments)`` returns, in a process of its own."""
    process, listener = begin(function, *arguments)
    try:
        if not listener.poll(PATIENCE):
            end(process, hang=True)
            raise AssertionError(f"no answer in {PATIENCE:.0f} s")
        return listener.recv()  # EOFError: it has ended without one, and said why on stderr
    finally:
        process.join(timeout=30)
        end(process)


def _fork_each(modules, pipe, variables):
    """Import modules; then run each function that is sent in a process forked from this one, which answers."""
    for name, value in variables.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    for module in modules:
        importlib.import_module(module)
    forked = multiprocessing.get_context("fork")
    while True:
        forked.Process(target=_answer, args=(*pipe.recv(), pipe)).start()


def _answer(function, arguments, pipe):
    pipe.send(os.getpid())
    pipe.send(function(*arguments))


class Forks:
    """A process that imports modules of its own, once, and is forked for each function that is to run apart."""

    def __init__(self, *modules, **variables):
        self.pipe, theirs = FORKED.Pipe()
        self.process = FORKED.Process(target=_fork_each, args=(modules, theirs, variables))
        self.process.start()
        theirs.close()

    def begin(self, function, *arguments):
        """The process that has begun to run ``function(*arguments)``."""
        self.pipe.send((function, arguments))
        return psutil.Process(self._received())

    def apart(self, function, *arguments):
        """What ``function(*arguments)`` returns, in a process of its own."""
        self.begin(function, *arguments)
        return self._received()

    def _received(self):
        if not self.pipe.poll(PATIENCE):
            end(self.process, hang=True)
            raise AssertionError(f"no answer in {PATIENCE:.0f} s")
        return self.pipe.recv()  # EOFError: it has ended without one, and said why on stderr

    def __enter__(self):
        return self

    def __exit__(self, *_):
        end(self.process)


def on_two_ranks(function, *arguments):
    """Run ``function(rank, *arguments)`` in two processes; what one of them raises is raised."""
    ranks = torch.multiprocessing.start_processes(function, arguments, 2, join=False, start_method="forkserver")
    deadline = time.monotonic() + PATIENCE
    try:
        while not ranks.join(timeout=max(0, deadline - time.monotonic()), grace_period=10):
            assert time.monotonic() < deadline, f"not ended in {PATIENCE:.0f} s"
    finally:
        end(*ranks.processes, hang=time.monotonic() >= deadline)


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
