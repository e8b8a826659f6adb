"""Texts of others on a terminal: what would steer it is shown, and not sent."""

from __future__ import annotations

import logging
import re

# C0 but tab and line feed, DEL, C1, marks and overrides of the direction of writing, line separators, half characters
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""A text with its control characters written as Python writes them: ``\x1b`` for an escape."""
    return _STEERING.sub(lambda found: repr(found[0])[1:-1] if ord(found[0]) > 31 else f"\\x{ord(found[0]):02x}", text)


class PrintableFormatter(logging.Formatter):
    """Log lines that steer no terminal, whatever they tell of."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return printable(super().format(record))
