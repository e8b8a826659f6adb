"""Paired statistics equal scipy's; in simulations tests err as often as they say, and intervals cover."""

import numpy as np
import pytest
from scipy import stats

from callbacks.reporting.statistics import holm, least_p, paired_difference, paired_test, sign_flip_p, two_way_interval
from retriever.errors import InputError

EXPERIMENTS = 400


def simulated(random, seeds, queries=80, mean=0.0, of_seeds=0.0):
    """Differences [S, Q] as retrieval gives them: most queries change little, some a lot, for all seeds alike."""
    changed = random.random(queries) < 0.4
    common = np.where(changed, random.normal(0, 0.2, queries), 0.0)
    cells = np.where(changed, random.normal(0, 0.1, (seeds, queries)), 0.0)
    return mean + common + cells + random.normal(0, of_seeds, (seeds, 1))


def within(count, rate):
    """Whether a count out of the experiments is what a rate gives, in 999 of 1,000 cases."""
    low, high = stats.binom.interval(0.999, EXPERIMENTS, rate)
    return low <= count <= high


def test_one_seed_gives_scipys_bootstrap():
    differences = simulated(np.random.default_rng(0), 1, 120)
    low, high = two_way_interval([differences], [np.zeros((1, 120))])
    reference = stats.bootstrap(
        (differences[0],), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=1e-12)
    names = [f"q{i:03}" for i in range(120)]
    values = dict(zip(names, differences[0], strict=True))
    known = paired_difference(values, dict.fromkeys(names, 0.0))
    test = paired_test([differences])
    assert (test.mean, test.low, test.high) == pytest.approx((known.mean, known.low, known.high), abs=1e-12)


def test_sign_flips_are_scipys_permutation_test():
    for seed in range(3):
        differences = simulated(np.random.default_rng(seed), 1, 50, mean=0.02)[0]
        reference = stats.permutation_test(
            (differences, np.zeros(50)),
            lambda x, y, axis: np.mean(x - y, axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=20_000,
            rng=np.random.default_rng(1),
        ).pvalue
        assert 0.002 < reference < 0.98
        assert sign_flip_p([differences]) == pytest.approx(reference, abs=4 * np.sqrt(reference / 10_000))


def test_p_value_is_exact_where_all_signs_can_be_counted():
    # |mean| as large as observed: + + + and − − − of eight
    assert sign_flip_p([np.array([1.0, 2.0, 4.0])]) == pytest.approx(2 / 8, abs=0.02)
    assert sign_flip_p([np.array([1.0, 2.0]), np.array([4.0])]) == pytest.approx(2 / 8, abs=0.02)
    assert sign_flip_p([np.zeros(5)]) == 1.0


def test_the_smallest_p_value_is_that_of_a_gain_on_every_query():
    for queries in (1, 2, 4):
        best = sign_flip_p([np.full(queries, 0.3)])
        assert least_p(queries) == pytest.approx(best, abs=0.02)
        assert least_p(queries, 3) == pytest.approx(holm([best, 1.0, 1.0])[0], abs=0.06)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 3])
def test_false_positives_are_as_many_as_the_level_says(seeds):
    random = np.random.default_rng(seeds)
    one_by_one = 0
    found = 0
    for _ in range(EXPERIMENTS):
        differences = simulated(random, seeds)
        found += sign_flip_p([differences.mean(axis=0)], 999) <= 0.05
        one_by_one += sign_flip_p([differences.ravel()], 999) <= 0.05
    assert within(found, 0.05)
    # seeds share their queries: flipped one by one, they pass for three times as many queries
    assert within(one_by_one, 0.05) == (seeds == 1)


@pytest.mark.slow
def test_family_of_corrected_comparisons_errs_at_most_as_often_as_the_level_says():
    random = np.random.default_rng(5)
    wrong = alone = 0
    for _ in range(EXPERIMENTS):
        p = [sign_flip_p([simulated(random, 1, 40)[0]], 499) for _ in range(5)]
        wrong += min(holm(p)) <= 0.05
        alone += min(p) <= 0.05
    assert wrong <= stats.binom.ppf(0.9995, EXPERIMENTS, 0.05) < alone


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seeds", "of_seeds", "least", "most"),
    [
        (1, 0.0, 0.90, 0.98),  # of the very run: what a seed does is part of the truth
        (3, 0.0, 0.93, 0.995),  # noise of single cells counts more than once: a little wide
        (3, 0.01, 0.90, 0.99),  # a seed moves all queries by as much as was seen on SciFact
        (5, 0.01, 0.90, 0.99),
    ],
)
def test_intervals_cover(seeds, of_seeds, least, most):
    random = np.random.default_rng(10 * seeds)
    covered = 0
    for _ in range(EXPERIMENTS):
        differences = simulated(random, seeds, mean=0.03, of_seeds=of_seeds)
        low, high = two_way_interval([differences], [np.zeros((1, 80))], resamples=1000)
        covered += low <= 0.03 <= high
    assert least <= covered / EXPERIMENTS <= most


def test_average_is_over_data_sets_and_resamples_within_each():
    random = np.random.default_rng(3)
    large, small = random.normal(0.05, 0.1, (1, 900)), random.normal(-0.01, 0.3, (1, 60))
    test = paired_test([large, small])
    assert test.mean == pytest.approx((large.mean() + small.mean()) / 2) and test.queries == 960
    width = 2 * 1.96 * np.sqrt(large.var() / 900 + small.var() / 60) / 2
    assert test.high - test.low == pytest.approx(width, rel=0.05)
    assert (test.wins, test.losses) == tuple(
        int((large * sign > 0).sum() + (small * sign > 0).sum()) for sign in (1, -1)
    )


def test_seeds_with_partners_are_drawn_with_them():
    random = np.random.default_rng(4)
    base = np.array([[0.1], [0.5], [0.9]]) + random.normal(0, 0.001, (3, 200))
    values = base + 0.1
    paired, apart = paired_test([values - base]), paired_test([values], [base])
    assert paired.mean == pytest.approx(apart.mean) == pytest.approx(0.1)
    assert paired.low == pytest.approx(0.1) == paired.high  # a gain that every seed has, however far apart they are
    assert apart.high - apart.low > 0.5
    assert (paired.wins, paired.ties, paired.losses) == (200, 0, 0)
    # one model before training is a partner to all seeds
    one = paired_test([values], [base[:1]])
    same = paired_test([values - base[:1]])
    assert (one.low, one.high, one.p) == pytest.approx((same.low, same.high, same.p))


def test_ties_are_those_of_equal_ranks_and_nothing_is_no_difference():
    test = paired_test([np.array([[0.1, 0.0, -0.2, 0.3], [-0.1, 0.0, -0.2, 0.3]])])
    assert (test.wins, test.ties, test.losses) == (1, 2, 1)
    for nothing in ([], [np.zeros((2, 0))]):
        with pytest.raises(InputError, match="no queries"):
            paired_test(nothing)
