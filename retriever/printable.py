"""Makes texts from elsewhere safe to print: control characters are shown, and do not reach the terminal."""

import logging
import re

# C0 but tab and line feed, DEL, C1, marks and overrides of the direction of writing, line separators, half characters
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Write a text's control characters as Python writes them: ``\x1b`` for an escape."""
    return _STEERING.sub(lambda found: repr(found[0])[1:-1] if ord(found[0]) > 31 else f"\\x{ord(found[0]):02x}", text)


class PrintableFormatter(logging.Formatter):
    """Formats log lines without control characters, whatever they quote."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as one printable line."""
        return printable(super().format(record))
