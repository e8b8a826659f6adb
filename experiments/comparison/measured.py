"""Per-query values of all arms on one data set, and their paired differences to a base."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from callbacks.reporting.statistics import PairedTest, paired_test
from experiments.comparison.runs import Run
from retriever.errors import InputError

BASE = "base"  # the name of the model before training
_ROUNDING = 1e-4  # by which the mean of one model may differ between machines


@dataclass(frozen=True)
class Measured:
    """One data set: nDCG@10 of S runs of each arm on Q queries.

    Attributes:
        dataset: its name.
        query_ids: Q ids, sorted.
        values: arm → [S, Q], the models before training first, as arms without seeds.
        bases: their names (``base``, or, where runs began with several models, ``base of`` the first arm of each) → a
            run that began with it.
        before: arm → [S, Q] of each run's own model before training; without arms that were evaluated, not trained.
        seeds: arm → its S seeds.
        runs: arm → its S runs.
        texts: query id → ``query`` and ``relevant`` in words, as far as runs wrote them down.
        overlap: query id → why the training of one of the runs came close to it; None where a run did not say.
    """

    dataset: str
    query_ids: list[str]
    values: dict[str, np.ndarray]
    bases: dict[str, Run]
    before: dict[str, np.ndarray]
    seeds: dict[str, list[int]]
    runs: dict[str, list[Run]]
    texts: dict[str, dict[str, Any]]
    overlap: dict[str, str] | None

    @property
    def clean(self) -> np.ndarray | None:
        """Which queries no run's training came close to, bool [Q]; None where that is not known."""
        return None if self.overlap is None else np.array([query not in self.overlap for query in self.query_ids])

    def contrast(self, arm: str, base: str) -> tuple[np.ndarray, np.ndarray | None]:
        """What an arm's difference is made of: differences [S, Q] paired by seed, or values of both sides.

        The model before training is that of the very run; two arms are paired where both have a seed. Only where they
        share none are the values of both sides returned, whose seeds then are drawn apart.
        """
        if base == BASE:
            return self.values[arm] - self.before[arm], None
        shared = self.shared_seeds(arm, base)
        if not shared:
            return self.values[arm], self.values[base]
        ours, theirs = (self.values[a][[self.seeds[a].index(seed) for seed in shared]] for a in (arm, base))
        return ours - theirs, None

    def shared_seeds(self, arm: str, base: str) -> list[int]:
        """The seeds of an arm that a named base has, too; none where either's are only counted."""
        if not all(run.states_seed for name in (arm, base) for run in self.runs.get(name, ())):
            return []
        return [seed for seed in self.seeds[arm] if seed in self.seeds[base]]

    def base_values(self, arm: str, base: str) -> np.ndarray:
        """The base beside which an arm stands, averaged over seeds [Q]."""
        return (self.before[arm] if base == BASE else self.values[base]).mean(axis=0)


def read_measured(groups: Mapping[str, Sequence[Run]], dataset: str, which: str, base: str) -> Measured:
    """Read the per-query values of all runs that were evaluated on a data set.

    Raises:
        InputError: runs were evaluated on other queries, or, where differences are to the model before training, runs
            of one encoder began with different models.
    """
    runs = {name: [run for run in members if dataset in run.datasets] for name, members in groups.items()}
    runs = {name: members for name, members in runs.items() if members}
    first = next(run for members in runs.values() for run in members)
    query_ids = sorted(first.values(dataset, which))

    def read(run: Run, point: str) -> list[float]:
        values = run.values(dataset, point)
        if values.keys() != set(query_ids):
            raise InputError(
                f"{run.folder} was evaluated on {len(values)} queries of {dataset}, {first.folder} on "
                f"{len(query_ids)}, {len(values.keys() & set(query_ids))} of them the same. "
                "Compare runs with one base model and one query set."
            )
        return [values[query] for query in query_ids]

    before = {
        name: np.array([read(run, "base") for run in members])
        for name, members in runs.items()
        if all(run.is_trained for run in members)
    }
    trained = {name: np.array([read(run, which) for run in members]) for name, members in runs.items()}
    bases = _bases(runs, before, dataset, base)
    overlaps = [run.overlap(dataset) for members in runs.values() for run in members]
    written = [overlap for overlap in overlaps if overlap is not None]
    seeds = {name: [run.seed for run in members] for name, members in runs.items()}
    return Measured(
        dataset=dataset,
        query_ids=query_ids,
        values={name: values[None] for name, (_, values) in bases.items()} | trained,
        bases={name: run for name, (run, _) in bases.items()},
        before=before,
        seeds={name: [] for name in bases} | seeds,
        runs=runs,
        texts={q: text for members in runs.values() for run in members for q, text in run.queries(dataset).items()},
        overlap={q: why for found in written for q, why in found.items()} if len(written) == len(overlaps) else None,
    )


def tested(
    parts: Sequence[Measured],
    arm: str,
    base: str,
    keep: Sequence[np.ndarray | None] | None = None,
    weights: Sequence[float] | None = None,
) -> PairedTest:
    """An arm's paired difference to a base, averaged over data sets.

    Args:
        parts: the data sets; the arm's and the base's runs have them all.
        arm: its name.
        base: that of the base.
        keep: per data set which queries to look at, bool [Q]; None: all.
        weights: one per data set; None weighs all alike.
    """
    contrasts = [part.contrast(arm, base) for part in parts]
    masks = [slice(None) if mask is None else mask for mask in keep or [None] * len(parts)]
    ours = [values[:, mask] for (values, _), mask in zip(contrasts, masks, strict=True)]
    theirs = [other[:, mask] for (_, other), mask in zip(contrasts, masks, strict=True) if other is not None]
    return paired_test(ours, theirs or None, weights=weights)


def _bases(
    runs: dict[str, list[Run]], before: dict[str, np.ndarray], dataset: str, base: str
) -> dict[str, tuple[Run, np.ndarray]]:
    """The models before training: name → a run that began with it, and its values [Q].

    There are none where one encoder gave several, and an arm is the base.
    """
    found: list[tuple[str, Run, np.ndarray]] = []
    for arm in before:
        for run, values in zip(runs[arm], before[arm], strict=True):
            if any(_is_same(run, values, other, known) for _, other, known in found):
                continue
            twin = next((item for item in found if item[1].encoder() == run.encoder()), None)
            if twin is not None and base != BASE:
                return {}
            if twin is not None:
                raise InputError(
                    f"{run.folder}: its base model has nDCG@10 {values.mean():.4f} on {dataset}, that of "
                    f"{twin[1].folder} {twin[2].mean():.4f}, though their encoders are the same. Compare runs with one "
                    "base model and one query set, or name an arm to compare with (--base NAME)."
                )
            found.append((arm, run, values))
    names = [BASE] if len(found) == 1 else [f"{BASE} of {arm}" for arm, _, _ in found]
    return {name: (run, values) for name, (_, run, values) in zip(names, found, strict=True)}


def _is_same(run: Run, values: np.ndarray, other: Run, known: np.ndarray) -> bool:
    """Whether two runs began with one model: equal on every query, or, of one encoder, equal but for rounding."""
    rounded = abs(values.mean() - known.mean()) <= _ROUNDING and run.encoder() == other.encoder()
    return rounded or np.allclose(values, known, rtol=0, atol=1e-6)
