"""What is trained: encoders, losses, and one LightningModule per objective. Also exact search, and teachers."""

import os
import threading

from tqdm import tqdm


def _lock_bars_for_threads_alone() -> None:
    """Give all progress bars, those of transformers and datasets too, a lock that no other process has.

    tqdm's default lock is shared with every forked process. A process that is killed while it draws a bar never
    releases it, and the next bar of any other process waits for it.
    """
    tqdm.set_lock(threading.RLock())


_lock_bars_for_threads_alone()
os.register_at_fork(after_in_child=_lock_bars_for_threads_alone)  # another thread may have held it just then
