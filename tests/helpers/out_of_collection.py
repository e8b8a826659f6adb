"""Keeps what a process has imported out of garbage collection, where this is imported last: a tenth of the time.

And has it look for garbage less often: by default, after each 700 objects.
"""

import gc

gc.collect()
gc.freeze()
gc.set_threshold(50_000, 20, 50)
