"""A fault that strikes a command at a file operation: killed, terminated, a full disk, no memory, no workers."""

import errno
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

from processes import FORKED, command

GRACE = 10.0  # seconds between SIGTERM and SIGKILL; SLURM's default is 30
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "shutil.rmtree")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Fault:
    """An audit hook: counts what Python changes below a folder (a file opened for writing, renamed, removed), strikes.

    ``kill``: SIGKILL right before the operation. ``kill_within``: up to 20 ms later, so in or after a write, also a
    library's. ``term``: SIGTERM. ``full``: no file can be opened for writing any more. ``memory``: a MemoryError.
    ``worker``: SIGKILL to the processes that this one has started.
    """

    def __init__(self, folder, kind, at, teller):
        self.folder, self.kind, self.at, self.teller = folder, kind, at, teller
        self.operations = 0

    def __call__(self, event, arguments):
        opened = event == "open"
        if not (opened or event in CHANGES) or not str(arguments[0]).startswith(self.folder):
            return
        if opened and not (set(arguments[1] or "") & set("wax+") or (arguments[2] or 0) & WRITING):
            return
        self.operations += 1
        if self.operations == self.at:
            self.teller.send({"struck": time.time()})
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


def struck_command(module, arguments, log, folder, kind, at, teller):
    os.set_inheritable(teller.fileno(), False)  # lest a program that it starts keeps the pipe open
    fault = Fault(folder, kind, at, teller)
    sys.addaudithook(fault)
    try:
        command(module, arguments, log, {})
    finally:
        teller.send({"operations": fault.operations})


def run(module, arguments, log, folder, kind=None, at=None):
    """Run a command, with a fault at its operation number ``at`` below ``folder`` or without.

    Returns:
        ``status`` as of :func:`os.waitstatus_to_exitcode`, ``struck`` (whether it was), ``operations``, ``waited_s``
        from the fault to the end.
    """
    listener, teller = FORKED.Pipe(duplex=False)
    process = FORKED.Process(target=struck_command, args=(module, arguments, log, str(folder), kind, at, teller))
    process.start()
    teller.close()
    told, killer = {}, threading.Timer(GRACE, process.kill)
    try:
        while listener.poll(300):
            told |= listener.recv()
            if kind == "term" and "struck" in told and not killer.ident:
                killer.start()
        process.kill()  # it hangs
    except EOFError:  # it has ended, and with it its end of the pipe
        pass
    process.join()
    ended = time.time()
    killer.cancel()
    return {
        "status": process.exitcode,
        "struck": "struck" in told,
        "operations": told.get("operations"),
        "waited_s": ended - told["struck"] if "struck" in told else None,
    }
