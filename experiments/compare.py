"""Compare runs: python -m experiments.compare RUN... [--which best|last] [--markdown FILE].

A RUN is a run folder or a folder that holds some (a sweep). Runs that differ in their seed alone are averaged.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from callbacks.beir_evaluation import read_per_query
from callbacks.statistics import Difference, mean_over_seeds, paired_difference
from datamodules.files import atomic_path
from retriever.errors import InputError

log = logging.getLogger(__name__)
POINTS = ("best", "last")
_NO_SETTINGS = {"seed", "output_dir", "cache_dir", "data_dir", "resume", "group", "logger", "export"}
COLUMNS = ("run", "seeds", "nDCG@10", "difference to base", "paired 95% interval", "Recall@100", "step", "minutes")


@dataclass(frozen=True)
class Arm:
    """Runs of one name on one data set, averaged over their seeds.

    Attributes:
        name: of the runs; ``base`` for the model before training.
        seeds: of the runs.
        ndcg: mean nDCG@10 over queries and seeds.
        difference: to the base model, paired by query; None for the base itself.
        recall: mean Recall@100.
        steps: step of each run's model.
        minutes: mean wall time of a run.
    """

    name: str
    seeds: list[int]
    ndcg: float
    difference: Difference | None
    recall: float
    steps: list[int]
    minutes: float | None


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """Run folders named, or found below the folders named.

    Raises:
        InputError: a path without any finished run.
    """
    runs = []
    for path in map(Path, paths):
        found = sorted(p.parent for p in path.rglob("results.json"))
        if not found:
            raise InputError(f"{path}: no results.json in or below it. Name folders of finished runs, or a sweep's.")
        runs += [run for run in found if run not in runs]
    return runs


def compare(paths: Iterable[str | Path], which: str = "best") -> dict[str, list[Arm]]:
    """Data set → arms, the base first, then by name in the order of their first run."""
    runs = [(folder, _read(folder / "results.json")) for folder in find_runs(paths)]
    table: dict[str, list[Arm]] = {}
    for dataset in dict.fromkeys(d for _, results in runs for d in results["datasets"]):
        members = [(folder, results) for folder, results in runs if dataset in results["datasets"]]
        base = [_values(folder, results, dataset, "base") for folder, results in members]
        _check_one_base(members, base, dataset)
        first = members[0][1]["datasets"][dataset]
        arms = [Arm("base", [], _mean(base[0].values()), None, first["recall@100"]["base"], [0], None)]
        labels = _labels([folder for folder, _ in members], [results["name"] for _, results in members])
        for name in dict.fromkeys(labels):
            group = [member for member, label in zip(members, labels, strict=True) if label == name]
            _check_seeds(name, group)
            values = mean_over_seeds([_values(folder, results, dataset, which) for folder, results in group])
            arms.append(
                Arm(
                    name=name,
                    seeds=[results["seed"] for _, results in group],
                    ndcg=_mean(values.values()),
                    difference=paired_difference(values, base[0]),
                    recall=_mean(r["datasets"][dataset]["recall@100"][which] for _, r in group),
                    steps=[r["steps"][which] for _, r in group],
                    minutes=_mean(r["wall_time_s"] for _, r in group) / 60,
                )
            )
        table[dataset] = arms
    return table


def cells(arm: Arm) -> list[str]:
    """One arm as strings, one per column."""
    difference = arm.difference
    return [
        arm.name,
        ", ".join(map(str, arm.seeds)),
        f"{arm.ndcg:.4f}",
        f"{difference.mean:+.4f}" if difference else "",
        f"[{difference.low:+.4f}, {difference.high:+.4f}]" if difference else "",
        f"{arm.recall:.4f}",
        ", ".join(map(str, sorted(set(arm.steps)))),
        f"{arm.minutes:.1f}" if arm.minutes is not None else "",
    ]


def print_tables(table: dict[str, list[Arm]], which: str) -> None:
    """Print one table per data set on the terminal."""
    console = Console(width=None if sys.stdout.isatty() else 132)
    for dataset, arms in table.items():
        view = Table(title=f"{dataset}: {_caption(arms, which)}", title_justify="left")
        for column in COLUMNS:
            view.add_column(column, justify="left" if column == "run" else "right", no_wrap=column == "run")
        for arm in arms:
            clear = arm.difference and (arm.difference.low > 0 or arm.difference.high < 0)
            view.add_row(*cells(arm), style=None if not clear else "green" if arm.difference.mean > 0 else "red")
        console.print(view)


def markdown(table: dict[str, list[Arm]], which: str) -> str:
    """The tables in Markdown."""
    parts = []
    for dataset, arms in table.items():
        rows = [COLUMNS, ["---"] * len(COLUMNS), *map(cells, arms)]
        parts.append(f"**{dataset}**: {_caption(arms, which)}\n\n" + "\n".join(f"| {' | '.join(r)} |" for r in rows))
    return "\n\n".join(parts) + "\n"


class CompareSweep(Callback):
    """Hydra callback: the table of a sweep at its end."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print the comparison of all runs of the sweep, and keep it in the sweep's folder."""
        if rank_zero_only.rank > 0:
            return
        folder = Path(config.hydra.sweep.dir)
        table = compare([folder])
        print_tables(table, "best")
        _write_markdown(folder / "comparison.md", table, "best")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m experiments.compare", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", help="run folders, or folders that hold some")
    parser.add_argument(
        "--which", choices=POINTS, default="best", help="the step that the dev criterion chose, or the last"
    )
    parser.add_argument("--markdown", metavar="FILE", help="write the tables there too")
    options = parser.parse_args(arguments)
    try:
        table = compare(options.runs, options.which)
    except InputError as error:
        sys.exit(f"error: {error}")
    print_tables(table, options.which)
    if options.markdown:
        _write_markdown(Path(options.markdown), table, options.which)


def _caption(arms: list[Arm], which: str) -> str:
    queries = max((a.difference.queries for a in arms if a.difference), default=0)
    chosen = "each model at the step that its dev lists chose" if which == "best" else "each model at its last step"
    return f"{queries} queries; {chosen}"


def _labels(folders: list[Path], names: list[str]) -> list[str]:
    """Each run's name; where runs of one name differ in more than their seed, with the settings that differ."""
    settings = [_settings(folder) for folder in folders]
    labels = []
    for name, own in zip(names, settings, strict=True):
        twins = [other for other, n in zip(settings, names, strict=True) if n == name]
        differing = sorted(key for key in set().union(*twins) if any(twin.get(key) != own.get(key) for twin in twins))
        what = ", ".join(f"{key}={own.get(key)}" for key in differing)
        labels.append(f"{name} ({what})" if what else name)
    return labels


def _settings(folder: Path) -> dict[str, Any]:
    """A run's configuration as dotted keys, without the seed and what says only where things go."""
    path = folder / "config.yaml"
    if not path.is_file():
        return {}
    flat: dict[str, Any] = {}

    def flatten(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                flatten(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            flat[prefix] = value

    flatten("", OmegaConf.to_container(OmegaConf.load(path)))
    return {key: value for key, value in flat.items() if not _NO_SETTINGS & {key.split(".")[0], key.split(".")[-1]}}


def _check_seeds(name: str, group: list[tuple[Path, dict]]) -> None:
    seeds: dict[int, Path] = {}
    for folder, results in group:
        if results["seed"] in seeds:
            raise InputError(
                f"{folder} and {seeds[results['seed']]} are both {name!r} with seed {results['seed']}: the same run "
                "twice. Name one of them."
            )
        seeds[results["seed"]] = folder


def _check_one_base(members: list[tuple[Path, dict]], base: list[dict[str, float]], dataset: str) -> None:
    means = [_mean(values.values()) for values in base]
    for (folder, _), values, mean in zip(members, base, means, strict=True):
        if values.keys() != base[0].keys() or abs(mean - means[0]) > 1e-4:
            raise InputError(
                f"{folder}: its base model has nDCG@10 {mean:.4f} on {len(values)} queries of {dataset}, that of "
                f"{members[0][0]} {means[0]:.4f} on {len(base[0])}. Compare runs with one base model and one query set."
            )


def _values(folder: Path, results: dict, dataset: str, point: str) -> dict[str, float]:
    path = folder / "per_query" / dataset / f"step-{results['steps'][point]:06d}.json"
    if not path.is_file():
        raise InputError(f"{path}: missing, though {folder / 'results.json'} refers to it. Run that experiment again.")
    return read_per_query(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not a whole results file ({error}). Run that experiment again.") from error


def _write_markdown(path: Path, table: dict[str, list[Arm]], which: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(markdown(table, which), encoding="utf-8")


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
