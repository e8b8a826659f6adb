"""Plots of a comparison: intervals, learning curves, per-query differences."""

import io
import re
from collections.abc import Callable
from math import ceil
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.comparison.changes import compared_arms, differences
from experiments.comparison.tables import Comparison

# told apart by most who are colour-blind (Okabe & Ito 2008), and light enough for a dark ground
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
_LINES = ("-", "--", ":", "-.")
_INK, _INK_ON_DARK = "#1f2328", "#e6edf3"
_LABEL = 40
_WIDTH, _HANDLE = 0.09, 0.7  # inches of a letter, and of what a legend puts before a name


def draw(comparison: Comparison, on_dark: bool = False) -> dict[str, bytes]:
    """Name → PNG, on white or, without a ground of its own, for a dark page; no curves where nothing was trained."""
    ink = _INK_ON_DARK if on_dark else _INK
    settings: dict[str, Any] = {"savefig.transparent": on_dark, "font.size": 10, "axes.spines.top": False}
    settings |= {"axes.spines.right": False, "axes.facecolor": "none" if on_dark else "white"}
    settings |= dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), ink)
    style = _styles(comparison)
    plots = {"intervals": _intervals, "curves": _curves, "queries": _sorted}
    measured = comparison.measured.items()
    if not any(run.curve(name) for name, part in measured for runs in part.runs.values() for run in runs):
        del plots["curves"]
    with matplotlib.rc_context(settings):
        return {name: _png(_panels(comparison, fill, style, ink)) for name, fill in plots.items()}


def _panels(comparison: Comparison, fill: Callable[..., None], style: dict[str, dict], ink: str) -> Figure:
    """One panel a data set, with the arms' names beside it or in a legend below all."""
    longest = _WIDTH * max(len(_short(arm)) for arm in comparison.groups)
    names: list[str | None] = list(comparison.measured)
    if fill is _intervals and comparison.average is not None:
        names.insert(0, None)
    columns = min(len(names), 3)
    rows = ceil(len(names) / columns)
    most = max(len(part.values) for part in comparison.measured.values())
    width = max(6.4, (max(5.2, 3.2 + longest) if fill is _intervals else 5.2) * columns)
    figure = Figure(figsize=(width, rows * max(3.4, 0.34 * most + 1.4)), layout="constrained")
    for number, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, number + 1)
        fill(axes, comparison, name, style, ink)
        axes.set_title("average" if name is None else _short(name), fontsize=11)
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if handles:
        figure.legend(
            handles.values(),
            map(_short, handles),
            loc="outside lower center",
            ncols=max(1, min(3, len(handles), int(width / (longest + _HANDLE)))),
            frameon=False,
        )
    return figure


def _intervals(axes: Axes, comparison: Comparison, dataset: str | None, style: dict, ink: str) -> None:
    """Fill in the differences on a data set; None: those of the average."""
    table = comparison.average if dataset is None else comparison.tables[dataset]
    rows = table.arms if table is not None else []
    arms = [(arm.name, arm.difference) for arm in reversed(rows) if arm.difference is not None]
    for place, (name, d) in enumerate(arms):
        axes.plot([d.low, d.high], [place, place], color=style[name]["color"], linewidth=2.2)
        axes.plot(d.mean, place, marker="o", markersize=6, color=style[name]["color"])
    axes.axvline(0, color=ink, linewidth=0.9)
    axes.locator_params(axis="x", nbins=4)
    axes.set_yticks(range(len(arms)), [_short(name) for name, _ in arms])
    axes.set_ylim(-0.6, len(arms) - 0.4)
    axes.set_xlabel(f"nDCG@10, difference to {_short(comparison.base)}")


def _curves(axes: Axes, comparison: Comparison, dataset: str, style: dict, ink: str) -> None:
    part = comparison.measured[dataset]
    for arm, runs in part.runs.items():
        curves = [curve for curve in (run.curve(dataset) for run in runs) if curve]
        if not curves:
            continue
        shared = sorted(set.intersection(*map(set, curves)))
        means = [np.mean([curve[step] for curve in curves]) for step in shared]
        axes.plot(shared, means, label=arm, marker="o", markersize=3, **style[arm])
        if len(curves) > 1:
            for curve in curves:
                axes.plot(list(curve), list(curve.values()), alpha=0.35, linewidth=0.8, color=style[arm]["color"])
    for base in part.bases:
        axes.axhline(part.values[base].mean(), color=ink, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.set_xlabel("step")
    axes.set_ylabel("nDCG@10")


def _sorted(axes: Axes, comparison: Comparison, dataset: str, style: dict, ink: str) -> None:
    part = comparison.measured[dataset]
    for arm in compared_arms(part, comparison.base):
        values = np.sort(differences(part, arm, comparison.base))
        axes.plot(np.linspace(0, 100, len(values)), values, label=arm, drawstyle="steps-mid", **style[arm])
    axes.axhline(0, color=ink, linewidth=0.9)
    axes.set_xlabel("queries, most hurt to most helped, %")
    axes.set_ylabel("difference in nDCG@10")


def _styles(comparison: Comparison) -> dict[str, dict]:
    """Arm → colour and line, the same in all plots."""
    styles = {base: {"color": "#808080", "linestyle": "-"} for m in comparison.measured.values() for base in m.bases}
    for number, arm in enumerate(comparison.groups):
        line = _LINES[number // len(_COLOURS) % len(_LINES)]
        styles[arm] = {"color": _COLOURS[number % len(_COLOURS)], "linestyle": line}
    return styles


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=150)
    return out.getvalue()


def _short(text: str) -> str:
    """A label of bounded length, settings by the last part of their names, in which nothing is mathematics."""
    text = re.sub(r"[\w.]+\.(\w+=)", r"\1", text)
    if len(text) > _LABEL:  # names of a grid differ at their ends, and in what stands before the settings
        head = min(text.find(" (") + 2, _LABEL - 12) if " (" in text else _LABEL // 2
        text = text[:head] + "…" + text[head + 1 + len(text) - _LABEL :]
    return text.replace("$", r"\$")
