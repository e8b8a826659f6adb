"""Tables on the terminal: as wide as it is, and wide enough for figures where the output is a file."""

import sys
from typing import Any

from rich.console import Console

TERMINAL = 132  # columns


def wide_console(**options: Any) -> Console:
    """Make a console of the terminal's width, or of 132 columns where there is none."""
    return Console(width=None if sys.stdout.isatty() else TERMINAL, **options)
