"""What a command is about to do, on the terminal: a subject, and what is said of it."""

import sys
from collections.abc import Mapping
from shutil import get_terminal_size
from textwrap import wrap

from retriever.printable import printable

_WIDTH, _INDENT = 110, 12


def print_subjects(lines: Mapping[str, str]) -> None:
    """Print subject → text, wrapped, each text in a column of its own."""
    width = (min(_WIDTH, get_terminal_size().columns) if sys.stdout.isatty() else _WIDTH) - _INDENT
    for subject, text in lines.items():
        first, *rest = wrap(printable(text), max(40, width), break_on_hyphens=False, break_long_words=False) or [""]
        print(f"{subject:<{_INDENT}}{first}")
        for line in rest:
            print(f"{'':<{_INDENT}}{line}")
    sys.stdout.flush()  # before the log's next line
