"""Histograms of a file of query lists, by query type."""

from itertools import cycle
from pathlib import Path

import numpy as np

from datamodules.list_summary import ListSummary
from datamodules.storage.files import atomic_path

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#555555", "#e69f00", "#56b4e9", "#000000")


def draw(summary: ListSummary, path: Path, title: str) -> None:
    """Draw histograms of list length, query length, scores and best scores, by query type, to a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    panels = {
        "passages in a list": "lengths",
        "words in a query": "words",
        "raw teacher score, all passages": "scores",
        "raw teacher score, best of each list": "best",
    }
    for axes, (label, name) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
        values = [getattr(t, name) for t in summary.types]
        edges = _edges(np.concatenate(values), whole=name in ("lengths", "words"))
        for part, kind, colour in zip(values, summary.types, cycle(_COLOURS), strict=False):
            if not len(part):
                continue
            share = np.histogram(part, edges)[0] / len(part)
            axes.stairs(share, edges, color=colour, linewidth=1.5, label=f"{kind.query_type} ({len(kind.lengths):,})")
            if len(values) == 1:
                axes.stairs(share, edges, color=colour, alpha=0.15, fill=True)
        axes.set_xlabel(label)
        axes.set_ylabel(f"share of {'passages' if name == 'scores' else 'lists'}")
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(f"{title}: {len(summary.total.lengths):,} lists, by query type")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _edges(values: np.ndarray, whole: bool) -> np.ndarray:
    """Bins for all types: one per whole number where there are few of them, else forty."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if whole:
        step = max(1, int(np.ceil((high - low + 1) / 40)))
        margin = 3 if low == high else 0  # one bar is not drawn as wide as the panel
        return np.arange(low - 0.5 - margin, high + step + margin, step)
    return np.linspace(low, high, 41) if high > low else np.linspace(low - 0.5, low + 0.5, 41)
