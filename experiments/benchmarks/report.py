"""Tables (terminal and Markdown) and plots of what a benchmark measured."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from rich.console import Console
from rich.table import Column, Table

from datamodules.storage.files import atomic_path
from experiments.benchmarks.scale import IN_BLOCKS, bytes_a_passage, exponent, extrapolated
from experiments.benchmarks.system_name import SystemName

_WORDS = {"ours": "this project", "st": "sentence-transformers", "plain": "plain loop", "beir": "beir"}


def print_and_collect(title: str, rows: Sequence[dict[str, str]], console: Console) -> str:
    """Print a table, each row of it column → cell, and give it as Markdown."""
    columns = list(rows[0])
    table = Table(*(Column(name, justify="left" if i == 0 else "right") for i, name in enumerate(columns)), title=title)
    for row in rows:
        table.add_row(*row.values())
    console.print(table)
    lines = [f"| {' | '.join(columns)} |", f"|{'|'.join(['---'] + ['--:'] * (len(columns) - 1))}|"]
    lines += [f"| {' | '.join(row.values())} |" for row in rows]
    return f"### {title}\n\n" + "\n".join(lines) + "\n"


def step_rows(cases: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Rows of the table of training steps."""
    rows = []
    for case in cases:
        for name, result in case["results"].items():
            system = SystemName.parse(name)
            rows.append(
                {
                    "step": f"{case['lists']} × {case['list_length']}, {case['max_length']} tokens, {system.loss}",
                    "system": _WORDS[system.kind] + (case["variant"] if system.is_ours else ""),
                    "precision": result["precision"],
                    "texts of a micro-batch": result.get("peer_batch", ""),
                    "seconds": f"{result['seconds']:.1f}",
                    "least, most": _spread([one["seconds"] for one in case["each_round"][name]]),
                    **_ratios(case["results"], name),
                    "GiB of the step": f"{result['bytes'] / 2**30:.2f}",
                    "share of matmul rate": _share(result.get("rate_share")),
                    "with what is computed twice": _share(result.get("rate_share_with_recomputed")),
                    "distinct": _share(result.get("distinct_share")),
                    "padding": _share(result.get("padding_share")),
                    "gradient cosine to ours": f"{result['cosine']:.7f}" if "cosine" in result else "",
                }
            )
    return rows


def evaluation_rows(results: dict[str, dict[str, Any]]) -> list[dict[str, str]]:
    """Rows of the table of evaluations."""
    return [
        {
            "system": _WORDS[SystemName.parse(name).kind],
            "precision": result["precision"],
            "texts of a micro-batch": result.get("peer_batch", ""),
            "seconds": f"{result['seconds']:.1f}",
            "least, most": _spread(result["seconds_of_rounds"]),
            **_ratios(results, name),
            "GiB of the evaluation": f"{result['bytes'] / 2**30:.2f}",
            "nDCG@10": f"{result['ndcg@10']:.5f}",
        }
        for name, result in results.items()
    ]


def cost_rows(estimates: Sequence[dict[str, float]]) -> list[dict[str, str]]:
    """Rows of the table of what the paper's run would cost."""
    return [
        {
            "GPUs": str(found["gpus"]),
            "training, hours": f"{found['training_hours']:.2f}",
            "one evaluation, hours": f"{found['evaluation_hours']:.2f}",
            "GiB per GPU in training": f"{found['training_gibibytes']:.2f}",
            "GiB of passage embeddings per GPU": f"{found['evaluation_gibibytes']:.2f}",
        }
        for found in estimates
    ]


def scale_rows(points: Mapping[str, Sequence[dict[str, Any]]]) -> list[dict[str, str]]:
    """Rows of the table of what the steps of a preparation took at each size."""
    rows = []
    for name, found in points.items():
        row = {"step": name.replace("_", ", ")}
        row |= {f"{p['passages']:,}: CPU s": f"{p['cpu_seconds']:.1f}" for p in found}
        row["time grows with n to the"] = f"{exponent(found):.2f}" if len(found) > 1 else ""
        row |= {f"{p['passages']:,}: GiB": f"{p['bytes'] / 2**30:.2f}" for p in found}
        row["bytes a passage"] = f"{bytes_a_passage(found):,.0f}" if len(found) > 1 else ""
        row["GiB left on disk"] = f"{found[-1]['disk_bytes'] / 2**30:.2f}"
        rows.append(row)
    return rows


def larger_rows(
    points: Mapping[str, Sequence[dict[str, Any]]], rates: Mapping[str, float], sizes: Sequence[int]
) -> list[dict[str, str]]:
    """Rows of the table of what larger corpora would take.

    Args:
        points: step → what it took at each size.
        rates: work of a network → seconds a passage.
        sizes: numbers of passages.
    """
    rows = []
    for name in (*points, *rates):
        row = {"step": name.replace("_", ", "), "shared": "in blocks" if name in IN_BLOCKS else "one process"}
        for size in sizes:
            found = extrapolated(points[name], size) if name in points else {"cpu_seconds": rates[name] * size}
            hours = found["cpu_seconds"] / 3600
            processes = math.ceil(hours / 24)
            row[f"{size:,}: hours"] = f"{hours:,.1f}"
            row[f"{size:,}: GiB"] = f"{found['bytes'] / 2**30:.1f}" if "bytes" in found else ""
            row[f"{size:,}: GiB of disk"] = f"{found['disk_bytes'] / 2**30:.0f}" if "bytes" in found else ""
            one = name in IN_BLOCKS or processes == 1
            row[f"{size:,}: processes for a day"] = f"{processes:,}" if one else "takes longer"
        rows.append(row)
    return rows


def plot_curves(curves: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Time and peak memory against each thing that grows, one column of panels each."""
    figure, axes = plt.subplots(2, len(curves), figsize=(4 * len(curves), 6), squeeze=False)
    for column, (name, points) in enumerate(curves.items()):
        for group in dict.fromkeys(p.get("group", "") for p in points):
            chosen = [p for p in points if p.get("group", "") == group]
            x = [p["x"] for p in chosen]
            axes[0][column].plot(x, [p["seconds"] for p in chosen], marker="o", label=group)
            axes[1][column].plot(x, [p["bytes"] / 2**30 for p in chosen], marker="o", label=group)
        values = sorted({p["x"] for p in points})
        for row, what in enumerate(("seconds", "GiB above what was held before")):
            axes[row][column].margins(y=0.1)
            axes[row][column].set(xlabel=name, ylabel=what, xscale="log", ylim=(0, None))
            axes[row][column].set_xticks(values, [f"{value:,}" for value in values])
            axes[row][column].minorticks_off()
            axes[row][column].grid(alpha=0.3)
        if any("group" in p for p in points):
            axes[0][column].legend()
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)


def ours_beside(results: Mapping[str, dict[str, Any]], name: str, precision: str | None = None) -> str | None:
    """The system of ours that computes what another one does: at its default, or in a precision; None: not measured."""
    default = SystemName.parse(name)._replace(kind="ours").default
    named = [default, *(f"{default}@{precision}" for _ in range(precision is not None))]
    return next((n for n in named if n in results and precision in (None, results[n]["precision"])), None)


def _spread(seconds: Sequence[float]) -> str:
    return f"{min(seconds):.1f}, {max(seconds):.1f}" if len(seconds) > 1 else ""


def _ratios(results: Mapping[str, dict[str, Any]], name: str) -> dict[str, str]:
    """Our time as a share of a peer's: ours by default, and ours in the peer's precision."""
    if SystemName.parse(name).is_ours:
        return {"ours / it": "", "in its precision": ""}
    precision, seconds = results[name]["precision"], results[name]["seconds"]
    beside = {"ours / it": ours_beside(results, name), "in its precision": ours_beside(results, name, precision)}
    return {column: f"{results[n]['seconds'] / seconds:.3f}" if n else "" for column, n in beside.items()}


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}%"
