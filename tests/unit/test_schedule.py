"""The learning rate, against plain formulas."""

from itertools import pairwise

import pytest

from retriever.schedule import default_warmup, learning_rate_factor


@pytest.mark.parametrize(("warmup", "total"), [(10, 90), (1, 4), (20, 2000)])
def test_the_papers_schedule_is_a_line_to_zero_held_at_a_tenth(warmup, total):
    for step in range(total + 3):
        line = (step + 1) / warmup if step < warmup else (total - step - 1) / (total - warmup)
        expected = line if step < warmup else max(0.1, line)
        assert learning_rate_factor(step, warmup, total, 0.1, "to_zero") == pytest.approx(expected)


def test_a_line_to_the_floor_reaches_it_at_the_last_step():
    factors = [learning_rate_factor(step, 4, 24, 0.1) for step in range(24)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0] and factors[-1] == pytest.approx(0.1)
    steps = [a - b for a, b in pairwise(factors[3:])]
    assert steps == pytest.approx([0.9 / 20] * 20)
    held = [learning_rate_factor(step, 4, 24, 0.1, "to_zero") for step in range(24)]
    assert held[:4] == factors[:4] and held[21:] == [0.1, 0.1, 0.1] and held[20] > 0.1


def test_warmup_is_half_an_epoch_at_least_ten_steps_and_no_more_than_a_quarter():
    assert [default_warmup(e, t) for e, t in [(3, 90), (100, 3000), (24, 24), (2, 3)]] == [10, 50, 6, 1]
