"""A run says how long it will take: where this is imported, measured for hundredths of a second.

For a second it would be a third of a tiny run, and no test asks how right it is.
"""

from experiments.plan import time

for name, value in {"_SAMPLE": 16, "_MEASURED": 0.01}.items():
    assert hasattr(time, name)
    setattr(time, name, value)
