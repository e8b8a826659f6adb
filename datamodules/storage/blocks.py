"""Blocks of work that any number of processes share: each takes those that nobody holds."""

from collections.abc import Callable, Iterable
from pathlib import Path

from filelock import FileLock, Timeout


def run_free_blocks(
    locks: Path, numbers: Iterable[int], run: Callable[[int], None], wait_for_others: bool = False
) -> list[int]:
    """Run each block under a lock of its own; a killed process' locks are free again.

    Args:
        locks: folder of the lock files, shared by the processes.
        numbers: of the blocks, in the order to take them.
        run: called with a number while its lock is held; must itself see whether the block is done already.
        wait_for_others: wait for a block that another process holds, and then run it; else pass it over.

    Returns:
        Numbers of the blocks that were passed over.
    """
    locks.mkdir(parents=True, exist_ok=True)
    held = []
    for number in numbers:
        try:
            with FileLock(locks / f"{number:06d}.lock", timeout=-1 if wait_for_others else 0):
                run(number)
        except Timeout:
            held.append(number)
    return held
