"""What the earlier parts of a resumed run have logged, as far as it goes on from there."""

import csv
from collections.abc import Iterator
from pathlib import Path

from datamodules.storage.files import text_errors

STEP = "trainer/global_step"  # under which Lightning's W&B logger logs the optimiser step
Row = dict[str, float]
_OF_VALIDATION = ("val/", "dev/")  # logged before a checkpoint of their step is written; all else behind it


def logged_before(folder: Path, step: int) -> list[tuple[int, Row]]:
    """Read the rows that were logged before a step, each step's work once, in the order in which they were logged.

    Args:
        folder: the run folder; ``metrics-part1.csv``, … in it are the earlier parts' tables.
        step: that the run goes on from. Of this step, figures of validations count as before it.

    Returns:
        Step and figures of each row.

    Raises:
        InputError: a table cannot be read.
    """
    parts = sorted(folder.glob("metrics-part*.csv"), key=lambda path: int(path.stem.removeprefix("metrics-part")))
    kept: list[tuple[int, Row]] = []
    for path in parts:
        rows = list(_rows(path))
        if rows:  # what a part did again counts once; one that begins with a validation took none over
            at, first = rows[0]
            kept = _until(kept, at, not _is_of_validation(first)) + rows
    return _until(kept, step)


def _until(rows: list[tuple[int, Row]], step: int, with_validation: bool = True) -> list[tuple[int, Row]]:
    return [(at, row) for at, row in rows if at < step or (at == step and with_validation and _is_of_validation(row))]


def _is_of_validation(row: Row) -> bool:
    return any(key.startswith(_OF_VALIDATION) for key in row)


def _rows(path: Path) -> Iterator[tuple[int, Row]]:
    with text_errors(path, lambda: 1), open(path, encoding="utf-8", newline="") as file:
        lines = [line for line in file if line.endswith("\n")]  # a full disk may have cut the last one
    for row in csv.DictReader(lines):
        yield int(row["step"]), {key: float(value) for key, value in row.items() if value and key != "step"}
