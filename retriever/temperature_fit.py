"""Temperatures of distillation, fitted to the scores of a teacher and of a student. Pure functions, in float64.

The teacher's τ_t comes by one of two rules:

* **labels**: the τ_t at which the labelled positives are likeliest by softmax(teacher / τ_t), their mean logarithm in
  each query: temperature scaling (Guo et al. 2017, arXiv 1706.04599). The teacher is then as sure as it is right.
  Labels must be judgements. The passage that a query was cut from is no such label: nearly every teacher finds it, and
  where lists were kept because the teacher put it first, no τ_t is low enough.
* **entropy**, where there are too few labels: the τ_t at which the teacher looks at ten passages: its mean entropy is
  log 10, as of ten equal ones (in a list of fewer than twenty, of half of them; of two, of 1.5). nDCG@10 is
  about ten, and the paper's 0.3 on its lists of twenty comes to about as many.

The student's τ_s is the one at which the base model is nearest to that teacher: the least mean
KL( softmax(teacher / τ_t) ‖ softmax(cosine / τ_s) ). What the loss then asks for is another order, and not first of all
a larger or a smaller spread of the scores.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq, minimize_scalar
from scipy.special import log_softmax

from retriever.errors import InputError

RULES = ("labels", "entropy")
ONE_HOT, FLAT = 0.9, 0.95  # the weight of the first, and the share of the highest entropy, from which a teacher is that
_LEAST_LABELLED = 20  # queries, or the entropy decides
_LOOKED_AT, _LEAST_LOOKED_AT = 10, 1.5  # passages, where the entropy decides; half of two would be one-hot
# of the mean range of a query's scores: between these a temperature is looked for
_LEAST, _MOST = 1e-3, 1e2


@dataclass(frozen=True)
class ScoredQueries:
    """Scores of K passages for each of Q queries.

    Attributes:
        teacher: float64 [Q, K], the teacher's.
        student: float64 [Q, K], cosines of the base model.
        log_weights: float64 [Q, K], log of how many passages each counts for, as in :mod:`retriever.losses.corpus`;
            −inf behind the end of a shorter list.
        labelled: bool [Q, K], the labelled positives that were judged.
    """

    teacher: np.ndarray
    student: np.ndarray
    log_weights: np.ndarray
    labelled: np.ndarray

    def select(self, chosen: Any) -> "ScoredQueries":
        """Take some queries, bool [Q] or their numbers."""
        return ScoredQueries(*(array[chosen] for array in vars(self).values()))


@dataclass(frozen=True)
class Distribution:
    """What a temperature makes of scores: means over the queries.

    Attributes:
        spread: standard deviation of a query's scores.
        temperature: of the softmax.
        entropy: in nats.
        entropy_share: the entropy as a share of the logarithm of the number of passages, in [0, 1].
        first: weight of the heaviest passage, in (0, 1].
    """

    spread: float
    temperature: float
    entropy: float
    entropy_share: float
    first: float


@dataclass(frozen=True)
class TemperatureFit:
    """Fitted temperatures, and what they make of the scores.

    Attributes:
        queries: looked at.
        passages: of a query, the mean number.
        rule: ``labels`` or ``entropy``.
        labelled: queries that have a labelled positive among their passages.
        teacher: the teacher's distribution.
        student: the base model's.
        divergence: mean KL of the two, in nats.
        warnings: whole sentences.
    """

    queries: int
    passages: float
    rule: str
    labelled: int
    teacher: Distribution
    student: Distribution
    divergence: float
    warnings: list[str]


def fit_temperatures(parts: Sequence[ScoredQueries], rule: str = "labels") -> TemperatureFit:
    """Fit τ_t and τ_s to the queries of all parts together.

    Args:
        parts: each with a K of its own; a query with less than two passages is left out.
        rule: ``labels``, which becomes ``entropy`` where fewer than 20 queries have a labelled positive among their
            passages, or ``entropy``.

    Raises:
        InputError: no query is left, or the passages of each query all have one score.
    """
    parts = [part.select(np.isfinite(part.log_weights).sum(1) > 1) for part in parts]
    parts = [part for part in parts if len(part.teacher)]
    if not parts:
        raise InputError("No query has two scored passages, so no temperature can be fitted.")
    labelled = sum(int(part.labelled.any(1).sum()) for part in parts)
    rule = rule if labelled >= _LEAST_LABELLED else "entropy"
    bounds = _bounds([part.teacher for part in parts], parts, "teacher")
    teacher = _likeliest(parts, bounds) if rule == "labels" else _with_entropy(parts, bounds)
    of_teacher = [_log_masses(part.teacher, part.log_weights, teacher) for part in parts]

    def divergence(temperature: float) -> float:
        found = [
            _sums(masses, masses - _log_masses(part.student, part.log_weights, temperature))
            for masses, part in zip(of_teacher, parts, strict=True)
        ]
        return _mean(found)

    student_bounds = _bounds([part.student for part in parts], parts, "student")
    student = _least(divergence, student_bounds)
    fitted = TemperatureFit(
        queries=sum(len(part.teacher) for part in parts),
        passages=_mean([_sizes(part) for part in parts]),
        rule=rule,
        labelled=labelled,
        teacher=_distribution([part.teacher for part in parts], parts, teacher),
        student=_distribution([part.student for part in parts], parts, student),
        divergence=divergence(student),
        warnings=[],
    )
    fitted.warnings.extend(_warnings(fitted.teacher, rule))
    for whose, temperature, (low, high) in (("teacher", teacher, bounds), ("student", student, student_bounds)):
        if not 1.01 * low < temperature < high / 1.01:
            fitted.warnings.append(
                f"The {whose}'s temperature, {temperature:.3g}, is at the end of the range that was searched: no "
                "temperature fits these scores."
            )
    return fitted


def _likeliest(parts: Sequence[ScoredQueries], bounds: tuple[float, float]) -> float:
    """The temperature of the least −log p of labelled positives; convex in 1 / τ, so there is one minimum."""
    parts = [part.select(part.labelled.any(1)) for part in parts]

    def surprise(temperature: float) -> float:
        found = []
        for part in parts:
            masses = _log_masses(part.teacher, part.log_weights, temperature)
            found.append(-np.where(part.labelled, masses, 0.0).sum(1) / part.labelled.sum(1))
        return _mean(found)

    return _least(surprise, bounds)


def _with_entropy(parts: Sequence[ScoredQueries], bounds: tuple[float, float]) -> float:
    """The temperature at which the mean entropy is that of ten equal passages, or of half of a short list."""
    wanted = _mean([np.log(np.clip(_sizes(part) / 2, _LEAST_LOOKED_AT, _LOOKED_AT)) for part in parts])

    def excess(log_temperature: float) -> float:
        return _mean([_entropies(p.teacher, p.log_weights, math.exp(log_temperature)) for p in parts]) - wanted

    low, high = (math.log(bound) for bound in bounds)
    if excess(low) >= 0 or excess(high) <= 0:  # ties: no temperature is sharp enough
        return math.exp(low if excess(low) >= 0 else high)
    return math.exp(brentq(excess, low, high, xtol=1e-6))


def _least(value: Callable[[float], float], bounds: tuple[float, float]) -> float:
    """The temperature between bounds at which a function is least, searched by its logarithm."""
    found = minimize_scalar(
        lambda log_temperature: value(math.exp(log_temperature)),
        bounds=tuple(math.log(bound) for bound in bounds),
        method="bounded",
        options={"xatol": 1e-5},
    )
    return math.exp(found.x)


def _bounds(scores: Sequence[np.ndarray], parts: Sequence[ScoredQueries], whose: str) -> tuple[float, float]:
    ranges = []
    for values, part in zip(scores, parts, strict=True):
        inside = np.isfinite(part.log_weights)
        ranges.append(np.where(inside, values, -np.inf).max(1) - np.where(inside, values, np.inf).min(1))
    mean = _mean(ranges)
    if not mean > 0:
        raise InputError(f"The {whose}'s scores of each query are all alike, so no temperature can be fitted to them.")
    return _LEAST * mean, _MOST * mean


def _distribution(scores: Sequence[np.ndarray], parts: Sequence[ScoredQueries], temperature: float) -> Distribution:
    pairs = [(values, part.log_weights) for values, part in zip(scores, parts, strict=True)]
    entropies = [_entropies(*pair, temperature) for pair in pairs]
    firsts = [np.exp(_log_masses(*pair, temperature) - np.where(np.isfinite(pair[1]), pair[1], 0.0)) for pair in pairs]
    return Distribution(
        spread=_mean([_deviations(*pair) for pair in pairs]),
        temperature=temperature,
        entropy=_mean(entropies),
        entropy_share=_mean([h / np.log(_sizes(part)) for h, part in zip(entropies, parts, strict=True)]),
        first=_mean([first.max(1) for first in firsts]),
    )


def _warnings(teacher: Distribution, rule: str) -> list[str]:
    found = []
    if teacher.first >= ONE_HOT:
        found.append(
            f"The teacher is nearly one-hot: its first passage has {teacher.first:.0%} of the weight ({ONE_HOT:.0%} or "
            "more is that). It names one passage, as a label does, and says little of the others"
            + (": temperatures.fitted=entropy takes a higher temperature." if rule == "labels" else ".")
        )
    if teacher.entropy_share >= FLAT:
        found.append(
            f"The teacher is nearly flat: its entropy is {teacher.entropy_share:.0%} of the highest ({FLAT:.0%} or "
            "more is that). It hardly prefers any passage: it does not find the labels, or its scores hardly differ."
        )
    return found


def _log_masses(scores: np.ndarray, log_weights: np.ndarray, temperature: float) -> np.ndarray:
    """Log of the weight of each passage, with those that it stands for; finite for all, −1e300 where there is none."""
    inside = np.isfinite(log_weights)
    best = np.where(inside, scores, -np.inf).max(1, keepdims=True)
    logits = np.where(inside, (scores - best) / temperature + np.where(inside, log_weights, 0.0), -np.inf)
    return np.where(inside, log_softmax(logits, axis=1), -1e300)


def _entropies(scores: np.ndarray, log_weights: np.ndarray, temperature: float) -> np.ndarray:
    """−Σ w p log p of each query, [Q]."""
    masses = _log_masses(scores, log_weights, temperature)
    return _sums(masses, np.where(np.isfinite(log_weights), log_weights, 0.0) - masses)


def _sums(log_masses: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Σ mass · value of each query, [Q]."""
    masses = np.exp(log_masses)
    return np.where(masses > 0, masses * values, 0.0).sum(1)


def _deviations(scores: np.ndarray, log_weights: np.ndarray) -> np.ndarray:
    weights = np.exp(log_weights)
    weights = weights / weights.sum(1, keepdims=True)
    values = np.where(weights > 0, scores, 0.0)
    means = (weights * values).sum(1, keepdims=True)
    return np.sqrt((weights * (values - means) ** 2).sum(1))


def _sizes(part: ScoredQueries) -> np.ndarray:
    return np.exp(part.log_weights).sum(1)


def _mean(parts: Sequence[np.ndarray]) -> float:
    return float(np.concatenate(list(parts)).mean())
