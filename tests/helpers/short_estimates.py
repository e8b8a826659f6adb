"""A run says how long it will take: where this is imported, measured for hundredths of a second.

For a second it would be a third of a tiny run, and no test asks how right it is.
"""

from experiments.plan import time

time._SAMPLE, time._MEASURED = 16, 0.01
