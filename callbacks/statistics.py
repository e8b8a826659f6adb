"""Paired statistics over queries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap

from retriever.errors import InputError


@dataclass(frozen=True)
class Difference:
    """A mean difference over paired queries, with its interval.

    Attributes:
        mean: mean of (value − base).
        low: lower end of the 95% interval.
        high: upper end.
        queries: number of pairs.
    """

    mean: float
    low: float
    high: float
    queries: int


def paired_difference(
    values: Mapping[str, float], base: Mapping[str, float], confidence: float = 0.95, resamples: int = 10_000
) -> Difference:
    """Mean per-query difference and its percentile bootstrap interval over queries (Efron & Tibshirani 1993, ch. 13).

    Args:
        values: query id → value.
        base: query id → value; the same queries.
        confidence: of the interval.
        resamples: bootstrap samples; their seed is fixed.

    Raises:
        InputError: the queries differ.
    """
    if values.keys() != base.keys():
        raise InputError(
            f"Two runs were evaluated on different queries ({len(values)} and {len(base)}, "
            f"{len(values.keys() & base.keys())} in common); only runs on the same queries can be paired."
        )
    differences = np.array([values[q] - base[q] for q in sorted(values)])
    mean = float(differences.mean())
    if len(differences) < 2 or np.ptp(differences) == 0:
        return Difference(mean, mean, mean, len(differences))
    interval = bootstrap(
        (differences,),
        np.mean,
        confidence_level=confidence,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Difference(mean, float(interval.low), float(interval.high), len(differences))


def mean_over_seeds(runs: list[Mapping[str, float]]) -> dict[str, float]:
    """Average per-query values of runs that differ in their seed."""
    for run in runs[1:]:
        if run.keys() != runs[0].keys():
            raise InputError("Runs of one arm were evaluated on different queries; compare them one by one.")
    return {q: float(np.mean([run[q] for run in runs])) for q in runs[0]}
