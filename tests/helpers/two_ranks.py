"""Two ranks as two threads of one process: what each gathers is what both gave, without gradient."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

_MODULES = ("retriever.batch", "retriever.objectives.infonce")
_TOO_LONG = 60.0  # seconds to wait for a rank that gathers less often; no test passes by it


def on_two_threads(function, parts, monkeypatch):
    """Call a function on the part of each rank, at once; return what the two calls return."""
    barrier, given, here = threading.Barrier(2), [None, None], threading.local()

    def of_both(value):
        given[here.rank] = value
        barrier.wait(_TOO_LONG)
        found = list(given)
        barrier.wait(_TOO_LONG)
        return found

    def gather_rows(rows, sizes):
        found = of_both(rows)
        assert [len(part) for part in found] == sizes
        return torch.cat(found)

    def as_rank(number):
        here.rank = number
        try:
            with torch.no_grad():
                return function(parts[number])
        except BaseException:
            barrier.abort()
            raise

    for name in _MODULES:
        monkeypatch.setattr(f"{name}.gather_rows", gather_rows)
        monkeypatch.setattr(f"{name}.gather_sizes", lambda size, device: of_both(size))
        monkeypatch.setattr(f"{name}.rank", lambda: here.rank)
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(as_rank, range(2)))
