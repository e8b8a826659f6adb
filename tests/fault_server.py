"""Runs commands in forked children that meet a fault at a file operation; the imports are paid for once.

One JSON object a line on standard input (``command``, ``arguments``, ``folder``, ``log``, and a fault: ``kind``,
``at``), one a line on standard output: ``status`` as of :func:`os.waitstatus_to_exitcode`, ``struck``, ``operations``
and ``waited_s`` from the fault to the end.
"""

import errno
import importlib
import json
import os
import random
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

GRACE = 10.0  # seconds between SIGTERM and SIGKILL; SLURM's default is 30
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "shutil.rmtree")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Fault:
    """An audit hook: counts what Python changes below a folder (a file opened for writing, renamed, removed), strikes.

    ``kill``: SIGKILL right before the operation. ``kill_within``: up to 20 ms later, so in or after a write, also a
    library's. ``term``: SIGTERM. ``full``: no file can be opened for writing any more. ``memory``: a MemoryError.
    ``worker``: SIGKILL to the processes that this one has started.
    """

    def __init__(self, folder, kind, at, out):
        self.folder, self.kind, self.at, self.out = folder, kind, at, out
        self.operations = 0

    def __call__(self, event, arguments):
        opened = event == "open"
        if not (opened or event in CHANGES) or not str(arguments[0]).startswith(self.folder):
            return
        if opened and not (set(arguments[1] or "") & set("wax+") or (arguments[2] or 0) & WRITING):
            return
        self.operations += 1
        if self.operations == self.at:
            os.write(self.out, b"%f\n" % time.time())
            self.strike()
        if self.kind == "full" and opened and self.at and self.operations >= self.at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))

    def strike(self):
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.kind == "kill_within":
            delay = random.Random(self.at).uniform(0, 0.02)
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
        elif self.kind == "term":
            os.kill(os.getpid(), signal.SIGTERM)
        elif self.kind == "worker":
            for task in Path("/proc/self/task").iterdir():
                for number in (task / "children").read_text().split():
                    os.kill(int(number), signal.SIGKILL)
        elif self.kind == "memory":
            raise MemoryError("no memory left")


def child(job, module, out):
    log = os.open(job["log"], os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(log, 1), os.dup2(log, 2)
    sys.argv = [module.__file__, *job["arguments"]]
    fault = Fault(job["folder"], job.get("kind"), job.get("at"), out)
    sys.addaudithook(fault)
    status = 0
    try:
        module.main()
    except SystemExit as stopped:
        status = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
        if isinstance(stopped.code, str):
            sys.stderr.write(f"{stopped.code}\n")
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush(), sys.stderr.flush()
    os.write(out, b"operations %d\n" % fault.operations)
    os._exit(status)


def run(job, module):
    ends, out = os.pipe()
    number = os.fork()
    if not number:
        os.close(ends)
        child(job, module, out)
    os.close(out)
    told, timer = b"", None
    while part := os.read(ends, 1000):  # until the child has ended, and with it its end of the pipe
        told += part
        if job.get("kind") == "term" and timer is None:
            timer = threading.Timer(GRACE, os.kill, (number, signal.SIGKILL))
            timer.start()
    os.close(ends)
    _, status = os.waitpid(number, 0)
    if timer:
        timer.cancel(), timer.join()
    lines = told.decode().splitlines()
    struck = next((float(line) for line in lines if not line.startswith("operations")), None)
    counted = next((int(line.split()[1]) for line in lines if line.startswith("operations")), None)
    return {
        "status": os.waitstatus_to_exitcode(status),
        "struck": struck is not None,
        "operations": counted,
        "waited_s": None if struck is None else time.time() - struck,
    }


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    modules = {name: importlib.import_module(f"experiments.{name}") for name in ("run", "prepare", "compare")}
    for late in ("experiments.comparison.report", "experiments.comparison.plots", "sentence_transformers"):
        importlib.import_module(late)
    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps(run(job, modules[job["command"]])), file=answers, flush=True)


if __name__ == "__main__":
    main()
