"""The tables of a comparison: per data set, averaged, on queries without overlap, and at home and abroad."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from callbacks.evaluation.metrics import headings
from callbacks.reporting.statistics import PairedTest, holm
from datamodules.specs import corpus_name
from experiments.comparison.arms import group_runs, group_runs_at_home
from experiments.comparison.files import find_files, read_files
from experiments.comparison.measured import BASE, Measured, read_measured, tested
from experiments.comparison.runs import Run, find_runs, read_runs
from retriever.errors import InputError, choose

log = logging.getLogger(__name__)
POINTS = ("best", "last")


@dataclass(frozen=True)
class Arm:
    """Runs of one name in one table, averaged over their seeds.

    Attributes:
        name: of the runs; ``base`` (or ``base of …``) for the model before training.
        seeds: of the runs.
        ndcg: mean nDCG@10 over queries and seeds (and data sets).
        difference: to the base, paired; None for the base itself.
        p_holm: its p-value, corrected over the table.
        figures: metric → mean, of those that tables show beside nDCG@10 and all runs have; empty on a part of the
            queries.
        steps: step of each run's model.
        pruned: seeds of the runs that a pruner stopped.
        paired: the seeds that the difference is over, where the arm or the base has others, too; else None.
        minutes: mean wall time of a run.
        memory: mean peak memory of a run, in GiB.
        passages: mean number of passages that a run encoded; None where it did not count.
        tokens: likewise, tokens.
    """

    name: str
    seeds: list[int]
    ndcg: float
    difference: PairedTest | None
    p_holm: float | None = None
    figures: dict[str, float] = field(default_factory=dict)
    steps: list[int] = field(default_factory=list)
    pruned: list[int] = field(default_factory=list)
    paired: list[int] | None = None
    minutes: float | None = None
    memory: float | None = None
    passages: float | None = None
    tokens: float | None = None


@dataclass(frozen=True)
class Table:
    """Arms on one data set, or averaged over several.

    Attributes:
        title: the data set, or what is averaged.
        queries: how many.
        of: how many the whole table has, where this is one of the queries without overlap; else None.
        comparisons: how many Holm's correction is over.
        arms: the base first.
    """

    title: str
    queries: int
    of: int | None
    comparisons: int
    arms: list[Arm]


@dataclass(frozen=True)
class HomeAndAbroad:
    """One arm's differences on corpora it was trained on, and on others.

    Attributes:
        name: of the arm.
        home: data sets of corpora that it was trained on.
        abroad: the others.
        gain: mean difference over ``home``; None where there is none.
        gain_p: its p-value, corrected over the table.
        loss: mean difference over ``abroad``; negative where the arm forgot.
        loss_p: its p-value, corrected over the table.
    """

    name: str
    home: list[str]
    abroad: list[str]
    gain: PairedTest | None
    gain_p: float | None
    loss: PairedTest | None
    loss_p: float | None


@dataclass(frozen=True)
class Comparison:
    """All that a comparison found.

    Attributes:
        which: ``best`` or ``last``, the step of each run's model.
        base: the arm that differences are to.
        groups: arm → its runs.
        measured: data set → per-query values.
        tables: data set → its table; ``average`` is apart.
        clean: data set → the same on the queries that no run's training came close to, where runs wrote that down; a
            set of which none is left has a table without arms.
        average: over the data sets that all runs have, or over corpora, those of dev lists left out; None for fewer
            than two.
        clean_average: the same without overlap.
        forgetting: per arm, where some arm has a data set of a corpus it was not trained on.
        unfinished: folders of runs without results.
        differing: settings in which an arm's runs differ between corpora; None where arms are not of several.
    """

    which: str
    base: str
    groups: dict[str, list[Run]]
    measured: dict[str, Measured]
    tables: dict[str, Table]
    clean: dict[str, Table]
    average: Table | None
    clean_average: Table | None
    forgetting: list[HomeAndAbroad]
    unfinished: list[Path]
    differing: list[str] | None = None

    def __getitem__(self, dataset: str) -> list[Arm]:
        """The arms on a data set, the base first, then in the order of their first run."""
        return self.tables[dataset].arms

    def all_tables(self) -> list[tuple[Table, Table | None]]:
        """Each table with the same one without overlap, the average first."""
        pairs = [(self.average, self.clean_average)] if self.average else []
        return pairs + [(table, self.clean.get(name)) for name, table in self.tables.items()]


def compare(
    paths: Iterable[str | Path],
    which: str = "best",
    base: str = BASE,
    qrels: str | Path | None = None,
    *,
    at_home: bool = False,
) -> Comparison:
    """Compare finished runs.

    Args:
        paths: run folders, folders that hold some, files of other tools (:mod:`~experiments.comparison.files`), or
            patterns.
        which: the model of each run: ``best`` (by its dev criterion) or ``last``.
        base: the arm that differences are to: ``base``, each run's own model before training, or an arm's name.
        qrels: judgements that rankings of other tools are scored by.
        at_home: look at each run only on the corpus that it was trained on; an arm's runs may be of several corpora.

    Raises:
        InputError: the runs cannot be compared; the message says why.
    """
    paths = list(paths)
    files, folders = find_files(paths)
    if at_home and files:
        raise InputError(f"--at-home: it is for run folders, and {files[0].path} is a file. Leave one of them out.")
    finished, unfinished = find_runs(folders) if folders else ({}, [])
    own = read_runs(finished)
    if files:
        others = read_files(files, qrels, own, which)
        own = [*others, *own] if find_files(paths[:1])[0] else [*own, *others]
    elif qrels is not None:
        raise InputError("--qrels: it is for files of other tools, and run folders alone are compared. Leave it out.")
    groups, differing = group_runs_at_home(own) if at_home else (group_runs(own), None)
    choose("--base", base, [BASE, *groups])
    runs = [run for members in groups.values() for run in members]
    if base == BASE and not any(run.is_trained for run in runs):
        base = next(iter(groups))  # models that were evaluated, not trained: the first one
    datasets = dict.fromkeys(name for run in runs for name in run.datasets)
    measured = {name: read_measured(groups, name, which, base) for name in datasets}
    general = _averaged(measured.values(), runs, at_home)
    average, clean_average = None, None
    if len(general) > 1:
        weights = _weights(general, at_home)
        title = f"average of {', '.join(dict.fromkeys(_counted_as(m) for m in general))}"
        average = _table(title, general, which, base, weights)
        if all(m.clean is not None and m.clean.any() for m in general):
            clean_average = _table(title, general, which, base, weights, clean=True)
    return Comparison(
        which=which,
        base=base,
        groups=groups,
        measured=measured,
        tables={name: _table(name, [m], which, base, [1]) for name, m in measured.items()},
        clean={n: _table(n, [m], which, base, [1], clean=True) for n, m in measured.items() if m.clean is not None},
        average=average,
        clean_average=clean_average,
        forgetting=_forgetting(groups, measured, base),
        differing=differing,
        unfinished=unfinished,
    )


def _averaged(measured: Iterable[Measured], runs: Sequence[Run], at_home: bool) -> list[Measured]:
    """The data sets of an average: those that all runs have; at home all, if an arm has each, with the same seeds.

    What stands for itself alone is left out; at home, not where there is nothing else.
    """
    found = [m for m in measured if at_home or all(m.dataset in run.datasets for run in runs)]
    general = [m for m in found if not any(run.is_aside(m.dataset) for run in runs)]
    if not at_home:
        return general
    general = general or found
    for arm, seeds in general[0].seeds.items():
        other = next((part for part in general[1:] if part.seeds.get(arm, seeds) != seeds), None)
        if other is not None:
            log.warning(
                "No average over corpora: %s has seeds %s on %s and %s on %s. Name runs of the same seeds.",
                *(arm, _listed(seeds), general[0].dataset, _listed(other.seeds[arm]), other.dataset),
            )
            return []
    if not any(all(arm in part.runs for part in general) for arm in general[0].runs):
        log.warning("No average over corpora: no arm has runs on %s", ", ".join(part.dataset for part in general))
        return []
    return general


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _table(
    title: str, parts: Sequence[Measured], which: str, base: str, weights: Sequence[float], clean: bool = False
) -> Table:
    """One table, an average by weights; ``clean``: on the queries without overlap."""
    keep = [part.clean if clean else None for part in parts]
    total = sum(len(part.query_ids) for part in parts)
    left = sum(int(mask.sum()) for mask in keep if mask is not None) if clean else total
    if not left:
        return Table(title, 0, total, 0, [])
    names = [name for name in parts[0].values if all(name in part.values for part in parts)]
    arms = [_arm(name, parts, which, base, keep, weights, clean) for name in names]
    corrected = _corrected([arm.difference for arm in arms])
    arms = [replace(arm, p_holm=p) for arm, p in zip(arms, corrected, strict=True)]
    return Table(title, left, total if clean else None, sum(p is not None for p in corrected), arms)


def _arm(
    name: str,
    parts: Sequence[Measured],
    which: str,
    base: str,
    keep: Sequence[np.ndarray | None],
    weights: Sequence[float],
    clean: bool,
) -> Arm:
    first = parts[0]
    untrained = name in first.bases
    of_parts = [[part.bases[name]] if untrained else part.runs[name] for part in parts]
    runs = list({run.folder: run for members in of_parts for run in members}.values())
    point = "base" if untrained else which
    means = [part.values[name][:, slice(None) if m is None else m].mean() for part, m in zip(parts, keep, strict=True)]
    # the model before training has no base; nor has an arm on a data set that none of the base's runs has
    differs = name in first.before if base == BASE else name != base and base in first.values
    return Arm(
        name=name,
        seeds=first.seeds[name],
        ndcg=float(np.average(means, weights=weights)),
        difference=tested(parts, name, base, keep, weights) if differs else None,
        figures={} if clean else _figures(parts, of_parts, point, weights),
        steps=[run.results["steps"][point] for run in runs if run.is_trained],
        pruned=[] if untrained else [run.seed for run in runs if run.results.get("pruned")],
        paired=_paired(first, name, base) if differs else None,
        **({} if untrained else _costs(runs)),
    )


def _figures(
    parts: Sequence[Measured], of_parts: Sequence[Sequence[Run]], point: str, weights: Sequence[float]
) -> dict[str, float]:
    """Metric → mean over data sets and their runs."""
    of_each = [run.metrics(part.dataset) for part, runs in zip(parts, of_parts, strict=True) for run in runs]
    shared = [name for name in headings(of_each[0]) if all(name in names for names in of_each)]
    means = {
        m: [np.mean([r.mean(part.dataset, m, point) for r in runs]) for part, runs in zip(parts, of_parts, strict=True)]
        for m in shared
    }
    return {metric: float(np.average(values, weights=weights)) for metric, values in means.items()}


def _paired(measured: Measured, arm: str, base: str) -> list[int] | None:
    """The seeds that an arm shares with a named base, where either has others, too."""
    if base == BASE:
        return None
    shared = measured.shared_seeds(arm, base)
    return shared if shared and len({*measured.seeds[arm], *measured.seeds[base]}) > len(shared) else None


def _costs(runs: Sequence[Run]) -> dict[str, float | None]:
    """What a run cost, on average; None where not all runs say."""

    def mean(key: str, unit: float) -> float | None:
        values = [run.results[key] for run in runs if run.results.get(key) is not None]
        return float(np.mean(values)) / unit if len(values) == len(runs) else None

    return {
        "minutes": mean("wall_time_s", 60),
        "memory": mean("peak_memory_bytes", 2**30),
        "passages": mean("passages_encoded", 1),
        "tokens": mean("tokens_encoded", 1),
    }


def _forgetting(groups: Mapping[str, Sequence[Run]], measured: dict[str, Measured], base: str) -> list[HomeAndAbroad]:
    """Every arm but the base; empty where no arm has a data set abroad."""
    rows = []
    for arm, [first, *others] in groups.items():
        if arm == base or not first.trained_on or (base == BASE and not first.is_trained):
            continue
        needed = [first, *others, *groups.get(base, ())]
        sides: dict[bool, list[Measured]] = {True: [], False: []}
        for name, part in measured.items():
            if all(name in run.datasets for run in needed) and not first.is_aside(name):
                sides[first.is_home(name)].append(part)
        gain, loss = (
            tested(parts, arm, base, weights=_weights(parts)) if parts else None
            for parts in (sides[True], sides[False])
        )
        home, abroad = ([part.dataset for part in sides[side]] for side in (True, False))
        rows.append(HomeAndAbroad(arm, home, abroad, gain, None, loss, None))
    if not any(row.home for row in rows) or not any(row.abroad for row in rows):
        return []
    corrected = iter(_corrected([test for row in rows for test in (row.gain, row.loss)]))
    return [replace(row, gain_p=next(corrected), loss_p=next(corrected)) for row in rows]


def _weights(parts: Sequence[Measured], at_home: bool = False) -> list[float]:
    """One for each data set: the parts of a set count as one together; at home, the sets of a corpus."""
    counted_as = [_corpus(part) if at_home else _counted_as(part) for part in parts]
    return [1 / counted_as.count(name) for name in counted_as]


def _described(part: Measured) -> Run | None:
    """A run whose configuration says what the data set is; files of other tools have none."""
    return next((run for runs in part.runs.values() for run in runs if part.dataset in run.specs), None)


def _counted_as(part: Measured) -> str:
    """The set as whose part a data set counts."""
    run = _described(part)
    return part.dataset if run is None else run.part_of(part.dataset)


def _corpus(part: Measured) -> str:
    run = _described(part)
    return part.dataset if run is None else corpus_name(run.specs[part.dataset].path)


def _corrected(tests: Sequence[PairedTest | None]) -> list[float | None]:
    """Each test's p-value by Holm's correction over all of them."""
    corrected = iter(holm([test.p for test in tests if test is not None]))
    return [None if test is None else next(corrected) for test in tests]
