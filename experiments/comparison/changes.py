"""The queries that an arm changed most, in words."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from callbacks.reporting.templates import render
from experiments.comparison.measured import BASE, Measured
from experiments.comparison.tables import Comparison

MOST = 10


@dataclass(frozen=True)
class Change:
    """One query under the base and under an arm.

    Attributes:
        query_id: its id.
        query: its text; empty where no run wrote it down.
        relevant: titles of relevant passages.
        base: nDCG@10, averaged over seeds.
        value: the arm's.
        overlap: why training came close to it, or empty.
    """

    query_id: str
    query: str
    relevant: Sequence[str]
    base: float
    value: float
    overlap: str


@dataclass(frozen=True)
class Changes:
    """The most hurt and the most helped queries of an arm on a data set, the worst and the best first."""

    dataset: str
    arm: str
    hurt: list[Change]
    helped: list[Change]


def differences(part: Measured, arm: str, base: str) -> np.ndarray:
    """Per-query differences to the base, averaged over seeds [Q]; those that tests are made of."""
    ours, theirs = part.contrast(arm, base)
    return ours.mean(axis=0) - (0 if theirs is None else theirs.mean(axis=0))


def compared_arms(part: Measured, base: str) -> list[str]:
    """The arms of a data set that have a difference to the base."""
    if base == BASE:
        return list(part.runs)
    return [arm for arm in part.values if arm != base] if base in part.values else []


def most_changed(comparison: Comparison) -> list[Changes]:
    """For every data set and arm, at most ten queries each way."""
    found = []
    for part in comparison.measured.values():
        for arm in compared_arms(part, comparison.base):
            change = differences(part, arm, comparison.base)
            order = np.argsort(change, kind="stable")
            hurt = [i for i in order[:MOST] if change[i] < 0]
            helped = [i for i in order[::-1][:MOST] if change[i] > 0]
            base = part.base_values(arm, comparison.base)
            sides = ([_change(part, i, base[i], base[i] + change[i]) for i in side] for side in (hurt, helped))
            found.append(Changes(part.dataset, arm, *sides))
    return found


def changes_markdown(comparison: Comparison) -> str:
    """The most hurt and most helped queries in Markdown."""
    return render(Path(__file__).with_suffix(".md"), base=comparison.base, changes=most_changed(comparison))


def _change(part: Measured, number: int, base: float, value: float) -> Change:
    query = part.query_ids[number]
    words = part.texts.get(query, {})
    overlap = (part.overlap or {}).get(query, "")
    return Change(query, words.get("query", ""), words.get("relevant", []), float(base), float(value), overlap)
