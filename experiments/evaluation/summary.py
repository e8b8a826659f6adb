"""One table of all models and sets, with averages and published figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Column, Table

from callbacks.evaluation.metrics import ASKED_AS, MAIN
from datamodules.specs import EvaluationSpec
from experiments.cli.console import wide_console
from experiments.evaluation.models import Model
from experiments.evaluation.published import published_of
from retriever.printable import printable

_MOST = 9  # sets beside each other; more stand below each other
Figures = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Row:
    """A model's figures.

    Attributes:
        name: in the table.
        values: set, as averages count it → value.
        average: over these.
        published: set → the published value, where it is known.
    """

    name: str
    values: dict[str, float]
    average: float
    published: dict[str, float]


def summarise(
    models: Mapping[str, Model], figures: Sequence[Figures], specs: Sequence[EvaluationSpec], metric: str
) -> list[Row]:
    """Put together the figures of one metric; the parts of a set are averaged first.

    Args:
        models: folder → what was evaluated.
        figures: of each model: data set → metric → value.
        specs: the data sets.
        metric: its name, as it is logged.
    """
    members: dict[str, list[EvaluationSpec]] = {}
    for spec in specs:
        members.setdefault(spec.part_of or spec.shown_name, []).append(spec)
    rows = []
    names = [model.name for model in models.values()]
    for (key, model), own in zip(models.items(), figures, strict=True):
        name = model.name if names.count(model.name) == 1 else f"{model.name} ({key})"
        values = {n: float(np.mean([own[s.shown_name][metric] for s in parts])) for n, parts in members.items()}
        known = published_of(model) if metric == MAIN else {}
        published = {
            n: known[parts[0].part_of or parts[0].path]
            for n, parts in members.items()
            if _is_published(parts[0], known)
        }
        rows.append(Row(name, values, float(np.mean(list(values.values()))), published))
    return rows


def _is_published(spec: EvaluationSpec, known: Mapping[str, float]) -> bool:
    return (spec.part_of or spec.path) in known and spec.split == "test" and spec.lists is None


def print_summary(tables: Mapping[str, Sequence[Row]]) -> None:
    """Print metric → rows: all metrics of one set beside each other, or a table for each."""
    console = wide_console()
    first = next(iter(tables.values()))
    labels, sets = [row.name for row in first], list(first[0].values)
    if len(sets) == 1:
        lines = [[f"{rows[n].values[sets[0]]:.4f}" for rows in tables.values()] for n in range(len(first))]
        console.print(_table(sets[0], [ASKED_AS.get(metric, metric) for metric in tables], labels, lines))
    for metric, rows in tables.items() if len(sets) > 1 else ():
        lines = [[f"{value:.4f}" for value in (*row.values.values(), row.average)] for row in rows]
        console.print(_table(ASKED_AS.get(metric, metric), [*sets, "average"], labels, lines))
    for row in first:
        for name, found, value in _beside_published(row):
            said = f"{row.name} on {name}: nDCG@10 {found - value:+.4f} from the published {value:.4f}"
            console.print(escape(printable(said)), highlight=False)


def print_vectors(rows: Sequence[Row], costs: Sequence[Mapping[str, Mapping[str, float]]]) -> None:
    """Print what smaller vectors cost and save: nDCG@10 on each set, bytes of a passage, and time of a search.

    Args:
        rows: of nDCG@10, one a model.
        costs: of each: set → ``bytes_per_passage`` and ``search_ms_per_query``; empty where it has no vectors.
    """
    console = wide_console()
    sets = list(rows[0].values)
    columns = [*(f"nDCG@10, {name}" for name in sets), "bytes a passage", *(f"ms a query, {name}" for name in sets)]
    lines = []
    for row, of_sets in zip(rows, costs, strict=True):
        size = next((f"{of['bytes_per_passage']:,}" for of in of_sets.values()), "")
        times = [f"{of_sets[name]['search_ms_per_query']:.2f}" if name in of_sets else "" for name in sets]
        lines.append([*(f"{value:.4f}" for value in row.values.values()), size, *times])
    console.print(
        _table(
            "smaller vectors; a query's share of a search for all of them, on this machine",
            columns,
            [row.name for row in rows],
            lines,
        )
    )


def _beside_published(row: Row) -> list[tuple[str, float, float]]:
    """Name, figure and published figure of each set where it is known; of the average, where all are."""
    found = [(name, row.values[name], value) for name, value in row.published.items()]
    if len(row.values) == len(found) > 1:
        found.append(
            (f"the average of these {len(found)}", row.average, float(np.mean([value for *_, value in found])))
        )
    return found


def _table(title: str, columns: Sequence[str], labels: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    """A table of models; turned round where its columns are many."""
    if len(columns) > _MOST:
        columns, labels, lines = labels, columns, list(zip(*lines, strict=True))
    heads = (Column(escape(printable(column)), justify="right", overflow="fold") for column in columns)
    view = Table(Column("", overflow="fold"), *heads, title=escape(printable(title)), title_justify="left")
    for label, line in zip(labels, lines, strict=True):
        view.add_row(escape(printable(label)), *line)
    return view


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The table as JSON values."""
    return [dict(vars(row)) for row in rows]
