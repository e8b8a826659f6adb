"""The tables of metrics in a run folder: metrics.csv, and metrics-part1.csv, … of a run that went on."""

import csv
from collections.abc import Iterator
from pathlib import Path

from retriever.errors import InputError

Row = dict[str, float]


def earlier_tables(folder: Path) -> list[Path]:
    """Find the tables of a run's earlier parts, the first one first."""
    return sorted(folder.glob("metrics-part*.csv"), key=lambda path: int(path.stem.removeprefix("metrics-part")))


def metric_rows(path: Path, prefixes: tuple[str, ...] = ("",)) -> Iterator[tuple[int, Row]]:
    """Read step and figures of each row, in the order in which they were logged.

    Args:
        path: the table; a last line that a full disk has cut is left out.
        prefixes: of the columns to read.

    Raises:
        InputError: the table cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
        for row in csv.DictReader(text[: text.rfind("\n") + 1].splitlines()):
            figures = {name: value for name, value in row.items() if value and name != "step"}
            yield int(row["step"]), {n: float(value) for n, value in figures.items() if n.startswith(prefixes)}
    except (csv.Error, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: not a whole table of metrics ({error}). Run that experiment again, or leave it out."
        ) from error
