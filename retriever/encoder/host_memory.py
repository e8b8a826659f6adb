"""Settings of the C library on Linux: whether it keeps freed memory or gives it back."""

import ctypes
import functools
import sys

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None
_trim = getattr(_libc, "malloc_trim", None)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # names of glibc's malloc.h


@functools.cache
def reuse_freed_memory() -> None:
    """Have glibc keep up to 1 GiB of freed heap for what is allocated next (elsewhere nothing is done).

    By default it gives back all but 64 MiB at once, and each micro-batch faults its memory in again, page by page: on a
    CPU that took an eighth of the time of encoding. Tensors of 32 MiB and more are still mapped one by one.
    """
    mallopt = getattr(_libc, "mallopt", None)
    if mallopt is not None and _trim is not None:
        mallopt(_M_TRIM_THRESHOLD, 2**30)
        mallopt(_M_MMAP_THRESHOLD, 2**25)


def give_freed_memory_back() -> None:
    """Have glibc give the freed parts of its heap back to the system (elsewhere nothing is done).

    Tensors below 32 MiB come from a heap that micro-batches of changing shapes fragment: on a CPU, a step of 4,096
    short lists held 5.1 GB where its tensors need 2.8.
    """
    if _trim is not None:
        _trim(0)
