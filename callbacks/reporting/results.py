"""The file that says what came out of a run, and whether it is finished."""

from pathlib import Path
from typing import Any

from datamodules.storage.files import read_json
from retriever.errors import InputError

RESULTS = "results.json"


def read_results(folder: Path) -> dict[str, Any] | None:
    """Read a run's ``results.json``; None where it is missing or torn, so that the run is not finished."""
    try:
        results = read_json(folder / RESULTS)
    except InputError:
        return None
    return results if {"name", "seed", "steps", "datasets"} <= results.keys() else None
