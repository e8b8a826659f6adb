"""The comparison as one HTML file that holds everything and opens offline.

It loads nothing, but for one file beside it where the words of many passages would make it large.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from callbacks.reporting.templates import render
from experiments.comparison.changes import most_changed
from experiments.comparison.plots import draw
from experiments.comparison.query_view import QueryView
from experiments.comparison.runs import reason
from experiments.comparison.sheets import sheets
from experiments.comparison.tables import Comparison

_PLOTS = {
    "intervals": "Difference to the base with its paired 95% interval",
    "curves": "nDCG@10 against the step; the dashed line is the model before training, thin lines are single seeds",
    "queries": "Difference to the base of every query, sorted, per arm",
}
_TEMPLATE = Path(__file__).with_suffix(".html")


def page(
    comparison: Comparison,
    plots: Mapping[str, bytes],
    said: Sequence[str] = (),
    view: QueryView | None = None,
) -> str:
    """The page, with plots on white as :func:`~experiments.comparison.plots.draw` gives them, and on dark beside them;
    sentences that it begins with, where there are any; a view of single queries, where there is one.

    All text of corpora, queries and configurations is escaped. Only its own script may run, and what that one loads
    where the view has a file beside the page.
    """
    parts = ("page", "queries") if view is not None else ("page",)
    style, script = ("\n".join(_read(f"{part}{kind}") for part in parts) for kind in (".css", ".js"))
    dark = draw(comparison, on_dark=True)
    return render(
        _TEMPLATE,
        autoescape=True,
        comparison=comparison,
        said=said,
        runs=sum(map(len, comparison.groups.values())),
        trained=any(run.is_trained for members in comparison.groups.values() for run in members),
        step="at the step that its dev lists chose" if comparison.which == "best" else "at its last step",
        unfinished=[(folder, reason(folder)) for folder in comparison.unfinished],
        sheets=sheets(comparison),
        plots=[(words, _data(plots[name]), _data(dark[name])) for name, words in _PLOTS.items() if name in plots],
        changes=most_changed(comparison),
        view=view,
        style=style,
        script=script,
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _read(name: str) -> str:
    return _TEMPLATE.with_name(name).read_text(encoding="utf-8")


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
