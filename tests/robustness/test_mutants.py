"""The losses' tests notice a sample of the ways to break the losses; ``make mutants`` tries all."""

import pytest

from helpers.processes import finish, start

pytestmark = pytest.mark.slow


def test_every_sampled_mutant_fails_a_test(tmp_path):
    finish(tmp_path / "mutants", start(tmp_path / "mutants", "--every", "60", module="robustness.mutants"))
    [log] = tmp_path.glob("*.log")
    [told] = [line for line in log.read_text().splitlines() if " mutants, " in line]
    assert int(told.split()[0]) >= 10
