"""Keeps what a process has imported out of garbage collection, where this is imported last: a tenth of the time."""

import gc

gc.collect()
gc.freeze()
