"""What the earlier parts of a resumed run have logged, as far as it goes on from there."""

from pathlib import Path

from callbacks.reporting.metric_tables import Row, earlier_tables, metric_rows

STEP = "trainer/global_step"  # under which Lightning's W&B logger logs the optimiser step
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
    kept: list[tuple[int, Row]] = []
    for path in earlier_tables(folder):
        rows = list(metric_rows(path))
        if rows:  # what a part did again counts once; one that begins with a validation took none over
            at, first = rows[0]
            kept = _until(kept, at, not _is_of_validation(first)) + rows
    return _until(kept, step)


def _until(rows: list[tuple[int, Row]], step: int, with_validation: bool = True) -> list[tuple[int, Row]]:
    return [(at, row) for at, row in rows if at < step or (at == step and with_validation and _is_of_validation(row))]


def _is_of_validation(row: Row) -> bool:
    return any(key.startswith(_OF_VALIDATION) for key in row)
