"""Names of a package that are imported when they are first used: torch takes seconds, and many commands need none."""

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def import_when_used(package: str) -> Callable[[str], Any]:
    """Make the ``__getattr__`` of a package from what its ``__init__.py`` imports for type checkers alone.

    Args:
        package: its ``__name__``, while it is being imported.
    """
    module = sys.modules[package]
    homes: dict[str, str] = {}

    def find(name: str) -> Any:
        if not homes:
            tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
            imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
            homes.update((alias.name, str(node.module)) for node in imports for alias in node.names)
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(homes[name]), name)
        setattr(module, name, value)
        return value

    return find
