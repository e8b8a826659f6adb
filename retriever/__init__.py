"""What is trained: the encoder, the losses and one LightningModule per objective; exact search; teachers."""

import os
import threading

from tqdm import tqdm


def _lock_bars_for_threads_alone() -> None:
    """Give progress bars, transformers' and datasets' too, a lock that no other process has.

    tqdm's own is shared with every forked process: one that is killed while its bar is drawn keeps it for ever, and
    the next bar of any other waits for it.
    """
    tqdm.set_lock(threading.RLock())


_lock_bars_for_threads_alone()
os.register_at_fork(after_in_child=_lock_bars_for_threads_alone)  # another thread may have held it just then
