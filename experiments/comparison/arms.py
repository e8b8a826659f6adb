"""Which runs are one arm: those that differ in their seed alone, or, over several corpora, in these too."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from experiments.cli.sweep import FOLDERS, PLACES
from experiments.comparison.runs import Run
from experiments.settings.encoders import with_effective_encoders
from experiments.settings.fitted_temperatures import without_fitted_numbers
from experiments.settings.walk import walk
from retriever.errors import InputError

log = logging.getLogger(__name__)
_NO_SETTINGS = PLACES | {"seed", "export", "name"}
_READ = {"data.train", "data.dev", "data.evaluation", "evaluation.datasets", "query_lists", "corpus"}
_OF_CORPUS = ("data.", "evaluation.", "trainer.", "scheduler.", "early_stopping.", "query_lists", "corpus", "inputs: ")
_REPORTED = "evaluation.metrics"  # what is reported beside nDCG@10 makes no other arm


def group_runs(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Arm → its runs, which differ in their seed alone; in the order of the first run of each.

    An arm has its runs' name; where runs of one name differ in more than their seed, with the settings that differ.

    Of runs that are equal in all, figures included, the first counts.

    Raises:
        InputError: two runs of one arm and seed have different figures.
    """
    return _grouped(runs, [_with_content(run) for run in runs])


def are_of_several_corpora(runs: Sequence[Run]) -> bool:
    """Whether runs were trained on several corpora, of which none has to do with another, each evaluated on its own."""
    several = len({frozenset(run.trained_on) for run in runs}) > 1 and _overlapping(runs) is None
    return several and all(any(map(run.is_home, run.datasets)) for run in runs)


def _overlapping(runs: Sequence[Run]) -> tuple[Path, Path, frozenset[str]] | None:
    """Folders of two runs that were trained on other corpora, some of them the same; and these."""
    folders = {frozenset(run.trained_on): run.folder for run in runs}
    pairs = ((folders[one], folders[other], one & other) for one, other in combinations(folders, 2))
    return next((pair for pair in pairs if pair[-1]), None)


def group_runs_at_home(runs: Sequence[Run]) -> tuple[dict[str, list[Run]], list[str]]:
    """Arm → its runs over several corpora, each run with only the data sets of the corpus that it was trained on.

    Settings of data, evaluation and training that have one value for each corpus belong to the corpus, and make no
    other arm; those of encoder and objective do.

    Returns:
        Arm → its runs, by seed; and the settings in which runs of one arm differ between corpora, apart from what they
        read.

    Raises:
        InputError: a run was not evaluated at home, or on a corpus beside which others were trained on more.
    """
    at_home = [_at_home(run) for run in runs]
    if overlapping := _overlapping(runs):
        first, second, shared = overlapping
        raise InputError(
            f"--at-home: {first} and {second} were both trained on {', '.join(sorted(shared))}, but not on the same "
            "corpora. Name runs that were, or leave --at-home out."
        )
    settings = [_with_content(run) for run in runs]
    own = _of_corpora(runs, settings)
    of_arms = [
        {key: value for key, value in found.items() if key not in own[run.name]}
        for run, found in zip(runs, settings, strict=True)
    ]
    groups = {arm: sorted(members, key=lambda run: run.seed) for arm, members in _grouped(at_home, of_arms).items()}
    of_folders = {run.folder: found for run, found in zip(runs, settings, strict=True)}
    differing = (_differing([of_folders[run.folder] for run in members]) for members in groups.values())
    return groups, sorted({key for keys in differing for key in keys if key not in _READ and ": " not in key})


def _at_home(run: Run) -> Run:
    home = {shown: own for shown, own in run.datasets.items() if run.is_home(shown)}
    if not home:
        trained_on = ", ".join(sorted(run.trained_on)) or "nothing"
        raise InputError(
            f"--at-home: {run.folder} was trained on {trained_on}, and evaluated on {', '.join(run.datasets)}: it "
            "needs a data set of a corpus that it was trained on. Leave it out, or leave --at-home out."
        )
    return replace(run, datasets=home)


def _of_corpora(runs: Sequence[Run], settings: Sequence[dict[str, Any]]) -> dict[str, set[str]]:
    """Name → settings that may belong to the corpus, and of which each corpus has one value."""
    values: dict[str, dict[tuple[str, frozenset[str]], set[str]]] = {run.name: {} for run in runs}
    for run, found in zip(runs, settings, strict=True):
        for key, value in found.items():
            if key.startswith(_OF_CORPUS):
                values[run.name].setdefault((key, frozenset(run.trained_on)), set()).add(str(value))
    return {
        name: {key for key, _ in of_keys} - {key for (key, _), of_one in of_keys.items() if len(of_one) > 1}
        for name, of_keys in values.items()
    }


def _grouped(runs: Sequence[Run], settings: Sequence[dict[str, Any]]) -> dict[str, list[Run]]:
    """Arm → its runs; a run of the same arm, seed and corpora is a twin."""
    grouped: dict[str, list[Run]] = {}
    for run, label in zip(runs, _labels(runs, settings), strict=True):
        alike = (o for o in grouped.get(label, ()) if o.seed == run.seed and o.trained_on == run.trained_on)
        twin = next(alike, None)
        if twin is not None:
            same = f"{run.folder} and {twin.folder} are both {label!r} with seed {run.seed}"
            if any(run.results[key] != twin.results[key] for key in ("datasets", "steps")):
                raise InputError(f"{same}, and have other figures. Name one of them.")
            log.warning("%s, with the same figures: it counts once", same)
            continue
        grouped.setdefault(label, []).append(run)
    return grouped


def _with_content(run: Run) -> dict[str, Any]:
    """A run's settings in effect, and what they name, by content."""
    return _settings(with_effective_encoders(run.config), run.follows) | run.content


def _labels(runs: Sequence[Run], settings: Sequence[dict[str, Any]]) -> list[str]:
    """Each run's name; where runs of one name differ in more than their seed, with the settings that differ."""
    of_name: dict[str, list[int]] = {}
    for number, run in enumerate(runs):
        of_name.setdefault(run.name, []).append(number)
    labels: dict[int, str] = {}
    for name, numbers in of_name.items():
        arms = {number: str(sorted(settings[number].items())) for number in numbers}
        given = {(arms[number], runs[number].results["name"]) for number in numbers}
        differing = _differing([settings[number] for number in numbers])
        if len(given) == len({name for _, name in given}) == len(set(arms.values())) > 1:  # as their sweep names them
            labels |= {number: runs[number].results["name"] for number in numbers}
        else:
            what = {n: ", ".join(f"{key}={settings[n].get(key)}" for key in differing) for n in numbers}
            labels |= {n: f"{name} ({what[n]})" if what[n] else name for n in numbers}
    return _kept_apart([labels[number] for number in range(len(runs))], runs)


def _kept_apart(labels: Sequence[str], runs: Sequence[Run]) -> list[str]:
    """Labels that are neither those of models before training, nor those of another name's runs."""
    kinds = ("evaluated", "trained")
    found = [
        f"{label} ({kinds[run.is_trained]})" if re.match(r"base($| of )", label) else label
        for label, run in zip(labels, runs, strict=True)
    ]
    names = [run.name for run in runs]
    owners: dict[str, set[str]] = {}
    for label, name in zip(found, names, strict=True):
        owners.setdefault(label, set()).add(name)
    return [f"{x} (named {name})" if len(owners[x]) > 1 else x for x, name in zip(found, names, strict=True)]


def _differing(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Settings of which there are several values; of those that always go together (interpolations) the shortest."""
    kept: dict[str, str] = {}
    for key in sorted(set().union(*settings), key=lambda key: (len(key), key)):
        values = [str(own.get(key)) for own in settings]
        if len(set(values)) > 1:
            kept.setdefault(str(values), key)
    return sorted(kept.values())


def _settings(config: dict[str, Any], follows: Mapping[str, str]) -> dict[str, Any]:
    """A run's configuration as dotted keys, without the seed and what says only where things go."""
    seed = config.get("seed")

    def counts(key: str, value: Any) -> bool:
        first, last = key.partition(".")[0], key.rpartition(".")[2]
        says_where = first in _NO_SETTINGS or last in FOLDERS or f"{key}.".startswith("callbacks.diagnostics.")
        return not (says_where or key.startswith(_REPORTED) or (last == "seed" and value == seed))

    flat = {key: value for key, value in walk(config) if not isinstance(value, dict) and "[" not in key}
    return {key: value for key, value in without_fitted_numbers(flat, follows).items() if counts(key, value)}
