"""The tables on the terminal, in Markdown and in LaTeX, and their figures in CSV."""

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table as View

from callbacks.reporting.markdown import markdown_text
from callbacks.reporting.statistics import PairedTest
from callbacks.reporting.templates import render
from experiments.cli.console import wide_console
from experiments.comparison.runs import reason
from experiments.comparison.sheets import narrow_sheets, sheets
from experiments.comparison.tables import Arm, Comparison, Table
from retriever.printable import printable

_NUMBER = re.compile(r"[-+]?[0-9]+([.,][0-9]+)?([eE][-+]?[0-9]+)?")
_FIGURES = re.compile(r"[-+0-9.,/:\[\]\s]*")
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "→": r"$\to$",
    "†": r"$\dagger$",
    "−": "$-$",
    "<": "$<$",
    ">": "$>$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def print_tables(comparison: Comparison) -> None:
    """Print the tables on the terminal, and which runs are not in them."""
    console = wide_console()
    for sheet in narrow_sheets(comparison):
        view = View(title=escape(printable(f"{sheet.title}: {sheet.caption}")), title_justify="left")
        for number, column in enumerate(sheet.columns):
            # figures stay whole; a long name folds
            view.add_column(
                escape(printable(column)), justify="right" if number else "left", no_wrap=number > 0, overflow="fold"
            )
        for row, sign in zip(sheet.rows, sheet.signs, strict=True):
            view.add_row(*(escape(printable(cell)) for cell in row), style={1: "green", -1: "red"}.get(sign))
        console.print(view)
    if comparison.unfinished:
        console.print("Not finished, so in no table:")
        for folder in comparison.unfinished:
            console.print(f"  {escape(printable(f'{folder}: {reason(folder)}'))}", soft_wrap=True)


def markdown(comparison: Comparison) -> str:
    """The tables in Markdown."""
    return _rendered(comparison, ".md", _markdown_cell)


def latex(comparison: Comparison) -> str:
    r"""The tables in LaTeX, for ``\usepackage{booktabs}``."""
    return _rendered(comparison, ".tex", _latex_cell)


def _rendered(comparison: Comparison, kind: str, cell: Callable[[str], str]) -> str:
    unfinished = [f"{folder}: {reason(folder)}" for folder in comparison.unfinished]
    template = Path(__file__).with_name(f"tables{kind}")
    return render(template, sheets=sheets(comparison), unfinished=unfinished, cell=cell)


def records(comparison: Comparison) -> list[dict[str, Any]]:
    """Every row of every table with its unrounded figures: column → value, the same columns in all."""
    found: list[dict[str, Any]] = []
    for table, clean in comparison.all_tables():
        found += [_record(table, table.title, arm) for arm in table.arms]
        if clean is not None:
            found += [_record(clean, f"{table.title}, without overlap", arm) for arm in clean.arms]
    for row in comparison.forgetting:
        sides = {"home": (row.home, row.gain, row.gain_p), "abroad": (row.abroad, row.loss, row.loss_p)}
        for side, (sets, test, p) in sides.items():
            if test is not None:
                place = {"table": f"{side}: {', '.join(sets)}", "queries": test.queries, "run": row.name}
                found.append(place | _tested(test, p))
    columns = dict.fromkeys(name for record in found for name in record)
    return [dict.fromkeys(columns) | record for record in found]


def csv_text(comparison: Comparison) -> str:
    """The records as CSV, with a header."""
    rows = records(comparison)
    return to_csv([rows[0], *(row.values() for row in rows)])


def query_csv(comparison: Comparison) -> str:
    """nDCG@10 of every query, averaged over seeds: one row a query, one column an arm."""
    arms = dict.fromkeys(name for part in comparison.measured.values() for name in part.values)
    lines: list[list[Any]] = [["dataset", "query_id", "query", "overlap", *arms]]
    for part in comparison.measured.values():
        means = {arm: values.mean(axis=0) for arm, values in part.values.items()}
        for number, query in enumerate(part.query_ids):
            values = [float(means[arm][number]) if arm in means else None for arm in arms]
            text = part.texts.get(query, {}).get("query", "")
            lines.append([part.dataset, query, text, (part.overlap or {}).get(query, ""), *values])
    return to_csv(lines)


def to_csv(lines: list[Any]) -> str:
    """Lines as CSV; None is an empty cell.

    A text that a spreadsheet would take for a formula gets an apostrophe in front; one that is a number stays as it is.
    """
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([[_cell(value) for value in line] for line in lines])
    return out.getvalue()


def _cell(value: Any) -> Any:
    formula = isinstance(value, str) and value.lstrip()[:1] in tuple("=+-@") and not _NUMBER.fullmatch(value)
    return f"'{value}" if formula else value


def _record(table: Table, title: str, arm: Arm) -> dict[str, Any]:
    return {
        "table": title,
        "queries": table.queries,
        "run": arm.name,
        "seeds": " ".join(map(str, arm.seeds)),
        "ndcg@10": arm.ndcg,
        **_tested(arm.difference, arm.p_holm, table.comparisons),
        "recall@100": arm.figures.get("recall@100"),
        "steps": " ".join(map(str, arm.steps)),
        "minutes": arm.minutes,
        "peak_memory_gib": arm.memory,
        "passages_encoded": arm.passages,
        "tokens_encoded": arm.tokens,
        "pruned": " ".join(map(str, arm.pruned)),
        **arm.figures,
    }


def _tested(test: PairedTest | None, p_holm: float | None, comparisons: int | None = None) -> dict[str, Any]:
    names = {"difference": "mean", "low": "low", "high": "high", "p": "p"}
    cells = {column: getattr(test, name, None) for column, name in names.items()}
    counts = {name: getattr(test, name, None) for name in ("wins", "ties", "losses")}
    return {**cells, "p_holm": p_holm, "comparisons": comparisons, **counts}


def _markdown_cell(text: str) -> str:
    return text if _FIGURES.fullmatch(text) else markdown_text(text)


def _latex_cell(text: str) -> str:
    if _FIGURES.fullmatch(text) and re.search("[-+]", text):
        return f"${text.replace(' [', '~[')}$"
    return "".join(_LATEX.get(character, character) for character in text)
