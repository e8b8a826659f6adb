"""One process at a time in a folder: two that wrote the same run's files would spoil them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from experiments.cli.ranks import number_of_process
from retriever.errors import InputError


class FolderInUse(InputError):
    """Another process is at work in a folder."""


@contextmanager
def alone_in(folder: Path, num_nodes: int = 1) -> Iterator[None]:
    """Keep other processes out of a folder; the ranks of one run count as one process. A kill ends it, too.

    Args:
        folder: one that is not there is left to what reads it.
        num_nodes: machines, where Lightning starts the processes of each.

    Raises:
        FolderInUse: another process is at work there.
    """
    if number_of_process(num_nodes)[0] > 0 or not folder.is_dir():  # the first rank does it for all
        yield
        return
    file = folder / ".lock"
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FolderInUse(
            f"{folder}: another process is at work there. Wait until it ends, and the same command goes on where it "
            "stopped; or name another folder with hydra.run.dir=… or hydra.sweep.dir=…."
        ) from None
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        lock.release()
