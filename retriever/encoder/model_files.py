"""Reads and writes the JSON files of a model folder."""

import json
from pathlib import Path
from typing import Any

from retriever.errors import InputError, shown


def read_json(path: Path, kind: type = dict) -> Any:
    """Read a file whose content is of one kind.

    Raises:
        InputError: the file is not there, is damaged, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a readable JSON file ({error}). Fetch or export the model again.") from error
    if not isinstance(value, kind):
        raise InputError(f"{path}: {shown(value)}; expected a JSON {kind.__name__}. Fetch or export the model again.")
    return value


def write_json(path: Path, value: Any) -> None:
    """Write a file, and make its folder where it is missing."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
