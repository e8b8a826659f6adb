"""The tables on the terminal, in Markdown and in LaTeX, and their figures in CSV."""

from __future__ import annotations

import csv
import io
import re
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table as View

from callbacks.reporting.markdown import markdown_text
from experiments.comparison.runs import reason
from experiments.comparison.sheets import TERMINAL, Sheet, narrow_sheets, sheets
from experiments.comparison.tables import Comparison, Table
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
COLUMNS = (
    "table",
    "queries",
    "run",
    "seeds",
    "ndcg@10",
    "difference",
    "low",
    "high",
    "p",
    "p_holm",
    "comparisons",
    "wins",
    "ties",
    "losses",
    "recall@100",
    "steps",
    "minutes",
    "peak_memory_gib",
    "passages_encoded",
    "tokens_encoded",
    "pruned",
)


def print_tables(comparison: Comparison) -> None:
    """Print the tables on the terminal, and which runs are not in them."""
    console = Console(width=None if sys.stdout.isatty() else TERMINAL)
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
    parts = []
    for sheet in sheets(comparison):
        lines = [sheet.columns, ["---", *["---:"] * (len(sheet.columns) - 1)], *sheet.rows]
        body = "\n".join(f"| {' | '.join(map(_markdown_cell, line))} |" for line in lines) if sheet.rows else ""
        parts.append(f"**{_markdown_cell(sheet.title)}**: {_markdown_cell(sheet.caption)}\n\n{body}".strip())
    if comparison.unfinished:
        folders = "\n".join(f"* {markdown_text(f'{folder}: {reason(folder)}')}" for folder in comparison.unfinished)
        parts.append(f"Not finished, so in no table:\n\n{folders}")
    return "\n\n".join(parts) + "\n"


def latex(comparison: Comparison) -> str:
    r"""The tables in LaTeX, for ``\usepackage{booktabs}``."""
    parts = ["% \\usepackage{booktabs}"]
    for sheet in sheets(comparison):
        if not sheet.rows:
            parts.append(latex_comment(sheet))
            continue
        lines = [
            r"\begin{table}",
            r"\centering\small",
            rf"\caption{{{_latex_cell(sheet.title)}: {_latex_cell(sheet.caption)}.}}",
            rf"\begin{{tabular}}{{l{'r' * (len(sheet.columns) - 1)}}}",
            r"\toprule",
            _latex_line(sheet.columns),
            r"\midrule",
            *map(_latex_line, sheet.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def records(comparison: Comparison) -> list[tuple[Any, ...]]:
    """Every row of every table with its unrounded figures, in the order of :func:`columns`."""
    found: list[dict[str, Any]] = []
    for table, clean in comparison.all_tables():
        found += _records(table, table.title)
        if clean is not None:
            found += _records(clean, f"{table.title}, without overlap")
    for row in comparison.forgetting:
        for side, test, p in (("home", row.gain, row.gain_p), ("abroad", row.loss, row.loss_p)):
            if test is not None:
                sets = ", ".join(row.home if side == "home" else row.abroad)
                cells = {"difference": test.mean, "low": test.low, "high": test.high, "p": test.p, "p_holm": p}
                cells |= {"wins": test.wins, "ties": test.ties, "losses": test.losses, "queries": test.queries}
                found.append({"table": f"{side}: {sets}", "run": row.name, **cells})
    return [tuple(record.get(column) for column in columns(comparison)) for record in found]


def columns(comparison: Comparison) -> tuple[str, ...]:
    """``COLUMNS``, and the further metrics that runs report."""
    further = dict.fromkeys(name for table, _ in comparison.all_tables() for arm in table.arms for name in arm.figures)
    return (*COLUMNS, *(name for name in further if name not in COLUMNS))


def csv_text(comparison: Comparison) -> str:
    """The records as CSV, with a header."""
    return to_csv([columns(comparison), *records(comparison)])


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


def _records(table: Table, title: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for arm in table.arms:
        test = arm.difference
        cells = {} if test is None else {"difference": test.mean, "low": test.low, "high": test.high, "p": test.p}
        cells |= {} if test is None else {"wins": test.wins, "ties": test.ties, "losses": test.losses}
        found.append(
            {
                "table": title,
                "queries": table.queries,
                "run": arm.name,
                "seeds": " ".join(map(str, arm.seeds)),
                "steps": " ".join(map(str, arm.steps)),
                "comparisons": table.comparisons,
                "p_holm": arm.p_holm,
                "minutes": arm.minutes,
                "peak_memory_gib": arm.memory,
                "passages_encoded": arm.passages,
                "tokens_encoded": arm.tokens,
                "pruned": " ".join(map(str, arm.pruned)),
                "ndcg@10": arm.ndcg,
                **arm.figures,
                **cells,
            }
        )
    return found


def _markdown_cell(text: str) -> str:
    return text if _FIGURES.fullmatch(text) else markdown_text(text)


def latex_comment(sheet: Sheet) -> str:
    """Title and caption in one line, for a line end would end the comment."""
    return "% " + " ".join(f"{sheet.title}: {sheet.caption}".split())


def _latex_cell(text: str) -> str:
    if _FIGURES.fullmatch(text) and re.search("[-+]", text):
        return f"${text.replace(' [', '~[')}$"
    return "".join(_LATEX.get(character, character) for character in text)


def _latex_line(cells: tuple[str, ...]) -> str:
    return " & ".join(map(_latex_cell, cells)) + r" \\"
