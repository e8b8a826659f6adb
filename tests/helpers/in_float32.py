"""Where this is imported, ``auto`` takes float32 on any machine, as where there is no bfloat16: figures are the same.

The tests of ``auto`` itself say what the processor has.
"""

from datamodules import precision

assert hasattr(precision, "cpu_has_bfloat16")
precision.cpu_has_bfloat16 = lambda: False
