"""The files under ``per_query`` of a run folder: the values that each query has."""

from pathlib import Path

from callbacks.evaluation.metrics import MAIN
from datamodules.storage.files import read_json
from retriever.errors import InputError, shown


def read_per_query(path: Path, metric: str = MAIN) -> dict[str, float]:
    """Query id → value of a metric, from a file under ``per_query``.

    Raises:
        InputError: the file is missing or damaged, or lacks the metric.
    """
    remedy = "Run that experiment again."
    values = read_json(path, remedy).get(metric)
    if not isinstance(values, dict) or not values:
        raise InputError(f"{path}: no {metric!r} of queries in it. {remedy}")
    for query, value in values.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
            raise InputError(f"{path}: {metric} of query {shown(query)} is {shown(value)}; expected 0 to 1. {remedy}")
    return values
