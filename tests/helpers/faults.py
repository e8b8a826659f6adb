"""A fault that strikes a command at a file operation: killed, terminated, a full disk, no memory."""

import errno
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

from helpers.processes import FORKED, PATIENCE, command, end

GRACE = 10.0  # seconds between SIGTERM and SIGKILL; SLURM's default is 30
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "shutil.rmtree")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Fault:
    """An audit hook: counts what Python changes below a folder (a file opened for writing, renamed, removed), strikes.

    ``kill``: SIGKILL right before the operation. ``kill_within``: up to 20 ms later, so in or after a write, also a
    library's. ``term``: SIGTERM. ``full``: no file can be opened for writing any more. ``memory``: a MemoryError.
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
    told, killer, hang = {}, threading.Timer(GRACE, process.kill), True
    try:
        while listener.poll(PATIENCE):
            told |= listener.recv()
            if kind == "term" and "struck" in told and not killer.ident:
                killer.start()
    except EOFError:  # it has ended, and with it its end of the pipe
        hang = False
        process.join(PATIENCE)
    finally:
        ended = time.time()
        killer.cancel()
        end(process, hang=hang)
    assert not hang, f"{module} hangs ({kind} at {at}): {Path(log).read_text()[-20_000:]}"
    return {
        "status": process.exitcode,
        "struck": "struck" in told,
        "operations": told.get("operations"),
        "waited_s": ended - told["struck"] if "struck" in told else None,
    }
