"""JSON Lines files, written."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datamodules.files import atomic_path


def write_json_lines(lines: Iterable[dict[str, Any]], path: Path) -> int:
    """Write objects, one a line; return how many."""
    count = 0
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            count += 1
    return count
