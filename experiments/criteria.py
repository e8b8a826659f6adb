"""Which figure of dev lists goes with nDCG@10 on test queries: python -m experiments.criteria RUN….

For a study of finished runs. It looks at test queries, so it must choose nothing for the same queries.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Column, Table

from callbacks.evaluation.metrics import MAIN
from callbacks.reliability.termination import terminate_gracefully
from experiments.cli.console import wide_console
from experiments.cli.errors import KindParser
from experiments.comparison.runs import Run, find_runs, read_runs
from retriever.errors import InputError, choose
from retriever.printable import printable

_RESAMPLES = 2000
# of all others, losses and divergences, lower is better
_HIGHER_IS_BETTER = ("dev/top1_agreement", "dev/teacher_ndcg@10", "dev/ndcg@10", "dev/mrr")
_SAME = 1e-3  # relative; one model's figure on two machines differs by less

Curve = dict[int, float]  # step → value


@dataclass(frozen=True)
class Criterion:
    """How well one figure goes with nDCG@10 on test queries.

    Attributes:
        name: as it is logged.
        runs: that logged it.
        correlation: Spearman's, over every validation of every run and the base model once; 1 is perfect; NaN where
            ``why_none`` says why.
        low: of its 95% interval, from a bootstrap over runs; NaN with one run.
        high: likewise.
        chosen: nDCG@10 on test queries less the base model's, at the step that the figure chooses in each run (the base
            model is one of them), mean over runs.
        possible: the same at the step that test queries would choose.
        last: the same at the last step.
        why_none: why there is no correlation; empty where there is one.
    """

    name: str
    runs: int
    correlation: float
    low: float
    high: float
    chosen: float
    possible: float
    last: float
    why_none: str


def criteria(runs: Sequence[Run], dataset: str, seed: int = 0) -> list[Criterion]:
    """Measure every figure that dev lists, and other data sets, gave at the validations of some runs.

    Args:
        runs: finished ones of one base model.
        dataset: whose nDCG@10 is to be predicted.
        seed: of the bootstrap.

    Returns:
        The figures with three validations of trained models, the highest correlation first.

    Raises:
        InputError: there is none.
    """
    logged, targets = zip(*(_figures(run, dataset) for run in runs), strict=True)
    found, short = [], []
    for name in sorted({name for of in logged for name in of}):
        pairs = [_pair(of[name], target, name) for of, target in zip(logged, targets, strict=True) if name in of]
        pairs = [pair for pair in pairs if pair.shape[1] > 1]
        if sum(pair.shape[1] - 1 for pair in pairs) < 3:
            short.append(name)
        else:
            found.append(_criterion(name, pairs, seed))
    if not found and short:
        raise InputError(
            f"{', '.join(short)}: fewer than three validations of trained models, of which nothing can be said."
        )
    if not found:
        raise InputError("These runs logged no figure of dev lists: their data had none, or metrics.csv is missing.")
    return sorted(found, key=lambda c: float("inf") if np.isnan(c.correlation) else -c.correlation)


def _figures(run: Run, dataset: str) -> tuple[dict[str, Curve], Curve]:
    """What may choose: figures of dev lists, and nDCG@10 on other sets than the one to be predicted; and its own."""
    logged, own = run.logged(), run.datasets[dataset]
    target = logged.pop(f"val/{own}/{MAIN}", {})
    logged.pop(f"val/{own}-sample/{MAIN}", None)
    kept = {n: curve for n, curve in logged.items() if not n.startswith("val/") or n.endswith(f"/{MAIN}")}
    return kept, target


def _pair(figure: Curve, target: Curve, name: str) -> np.ndarray:
    """The figure, higher is better, and nDCG@10: [2, validations], the base model first."""
    steps = sorted(set(figure) & set(target))
    sign = 1 if name in _HIGHER_IS_BETTER or name.startswith("val/") else -1
    return np.array([[sign * figure[step] for step in steps], [target[step] for step in steps]])


def _criterion(name: str, pairs: list[np.ndarray], seed: int) -> Criterion:
    why_none = _why_none(pairs)
    correlation, low, high = float("nan"), float("nan"), float("nan")
    if not why_none:
        correlation = _spearman(pairs)
    if not why_none and len(pairs) > 1:
        draws = np.random.default_rng(seed).integers(len(pairs), size=(_RESAMPLES, len(pairs)))
        resampled = [_spearman([pairs[i] for i in draw]) for draw in draws]
        low, high = map(float, np.nanquantile(resampled, (0.025, 0.975)))
    gains = [pair[1] - pair[1, 0] for pair in pairs]
    chosen = [gain[np.argmax(_without_nan(pair[0]))] for gain, pair in zip(gains, pairs, strict=True)]
    return Criterion(
        name, len(pairs), correlation, low, high, float(np.mean(chosen)),
        float(np.mean([gain.max() for gain in gains])), float(np.mean([gain[-1] for gain in gains])), why_none,
    )  # fmt: skip


def _without_nan(figure: np.ndarray) -> np.ndarray:
    """Values, higher is better, of which a NaN is never chosen."""
    return np.where(np.isnan(figure), -np.inf, figure)


def _why_none(pairs: Sequence[np.ndarray]) -> str:
    """Why figures of some runs have no common correlation; empty where they have one."""
    points = np.concatenate(pairs, axis=1)
    if np.isnan(points).any():
        return "some values are no numbers"
    if (points.min(1) == points.max(1)).any():
        return "it, or nDCG@10, is the same at all steps"
    if not all(np.allclose(pair[:, 0], pairs[0][:, 0], rtol=_SAME) for pair in pairs):
        return "the runs give their base model different values (other objectives, dev lists, or models)"
    return ""


def _spearman(pairs: Sequence[np.ndarray]) -> float:
    """Spearman's rank correlation; the base model, which all runs share, counts once."""
    from scipy.stats import rankdata  # the import takes a second

    points = np.concatenate([pairs[0][:, :1], *(pair[:, 1:] for pair in pairs)], axis=1)
    ranks = np.array([rankdata(row) for row in points])
    if (ranks.std(1) == 0).any():  # in a resample
        return float("nan")
    return float(np.corrcoef(ranks)[0, 1])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = KindParser(prog="python -m experiments.criteria", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", help="run folders, or folders that hold some (a sweep's)")
    parser.add_argument("--on", metavar="DATASET", help="the data set to predict (default: the first of the runs)")
    options: argparse.Namespace = parser.parse_args(arguments)
    terminate_gracefully()
    try:
        runs = [run for run in read_runs(find_runs(options.runs)[0]) if run.is_trained]
        if not runs:
            raise InputError("No trained run is among these. Name run folders of experiments.run, or a sweep's.")
        names = list(runs[0].datasets)
        on = choose("--on: a data set", options.on, names) if options.on else names[0]
        found = criteria([run for run in runs if on in run.datasets], on)
    except InputError as error:
        sys.exit(printable(f"error: {error}"))
    titles = ("runs", "correlation", "its 95%", "chosen", "possible", "last")
    table = Table(
        "figure", *(Column(name, justify="right") for name in titles), title=printable(f"with nDCG@10 on {on}")
    )
    for c in found:
        between = "-" if np.isnan(c.low) else f"{c.low:+.2f}, {c.high:+.2f}"
        table.add_row(
            c.name,
            str(c.runs),
            "-" if c.why_none else f"{c.correlation:+.2f}",
            between,
            f"{c.chosen:+.4f}",
            f"{c.possible:+.4f}",
            f"{c.last:+.4f}",
        )
    wide_console().print(table)
    for c in found:
        if c.why_none:
            print(printable(f"{c.name}: no correlation, for {c.why_none}."))
    print(
        "correlation: Spearman's, over all validations and the base model; interval: over runs. chosen: nDCG@10 less "
        "the base\nmodel's at the step that the figure chooses in each run; possible: at the best step; last: at the "
        "last one."
    )


if __name__ == "__main__":
    main()
