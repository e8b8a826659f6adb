"""What tests share lies in tests/helpers: none of them imports another."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_no_test_imports_another():
    files = sorted(TESTS.rglob("*.py"))
    line = re.compile(r"^\s*(?:from|import) (?:[\w.]+\.)?test_\w+.*", re.MULTILINE)
    found = {str(path.relative_to(TESTS)): line.findall(path.read_text()) for path in files}
    assert len(files) > 50 and not {name: lines for name, lines in found.items() if lines}
