"""Progress bars with rate and remaining time."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm

from retriever.distributed.ranks import rank


@contextmanager
def progress_bar(title: str | None, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, on the first rank alone; yields a function that takes the number of items done.

    Args:
        title: what it says in front; None shows no bar.
        total: number of items.
        unit: the items' name.
    """
    quiet = title is None or rank() != 0
    # a terminal sees it move; a log file gets a line every half minute
    interval = 0.1 if sys.stderr.isatty() else 30.0
    with tqdm(
        total=total, desc=title, unit=f" {unit}", disable=quiet, mininterval=interval, smoothing=0.1, dynamic_ncols=True
    ) as bar:
        yield bar.update
