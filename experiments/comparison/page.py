"""The comparison as one HTML file that holds everything, loads nothing and opens offline."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from html import escape

from experiments.comparison.changes import Change, Changes, most_changed
from experiments.comparison.plots import draw
from experiments.comparison.runs import reason
from experiments.comparison.sheets import Sheet, sheets
from experiments.comparison.tables import Comparison

_PLOTS = {
    "intervals": "Difference to the base with its paired 95% interval",
    "curves": "nDCG@10 against the step; the dashed line is the model before training, thin lines are single seeds",
    "queries": "Difference to the base of every query, sorted, per arm",
}

_STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --panel: #f6f8fa; --ink: #1f2328; --faint: #59636e;
  --line: #d1d9e0; --gain: #116329; --loss: #b42318; --link: #0550ae; }
@media (prefers-color-scheme: dark) { :root { --ground: #0d1117; --panel: #161b22; --ink: #e6edf3; --faint: #9198a1;
  --line: #30363d; --gain: #56d364; --loss: #ff8f85; --link: #79b8ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 84rem; padding: 1.5rem 1rem 4rem; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .25rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .25rem; }
p { margin: .25rem 0 .75rem; }
.faint, .caption { color: var(--faint); font-size: .9rem; }
a { color: var(--link); }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1rem; margin: .75rem 0; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
th, td { padding: .35rem .5rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
tr:last-child td { border-bottom: 0; }
th { background: var(--panel); font-weight: 600; vertical-align: bottom; white-space: normal; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--ground);
  max-width: 22rem; white-space: normal; min-width: 9rem; }
th:first-child { background: var(--panel); }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 2px solid var(--link); }
th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
.gain td, .values.gain { color: var(--gain); } .loss td, .values.loss { color: var(--loss); }
figure { margin: 1rem 0 0; } figure img { max-width: 100%; height: auto; display: block; }
figcaption { color: var(--faint); font-size: .9rem; margin-top: .25rem; }
details { border: 1px solid var(--line); border-radius: 8px; padding: .5rem .9rem; margin: .6rem 0; }
summary { cursor: pointer; font-weight: 600; }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 0 2rem; }
@media (max-width: 40rem) { th:first-child, td:first-child { min-width: 8.5rem; max-width: 8.5rem; font-size: .8rem;
  overflow-wrap: anywhere; } figure picture { display: block; overflow-x: auto; }
  figure img { max-width: none; width: 44rem; } }
ol { padding-left: 1.6rem; margin: .4rem 0; } li { margin: .5rem 0; }
.values { font-variant-numeric: tabular-nums; white-space: nowrap; }
"""

# A table is sorted by the first number in a cell, else by its text.
_SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") !== "descending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = row => {
      const text = row.cells[column].textContent.replace(/,(?=\\d{3})/g, "");
      const number = column ? parseFloat(text.replace(/^[<\\[]/, "")) : NaN;
      return [number, text];
    };
    const order = (a, b) => {
      const [x, s] = key(a), [y, t] = key(b);
      if (isNaN(x) !== isNaN(y)) return isNaN(x) ? 1 : -1;
      return (isNaN(x) ? s.localeCompare(t) : x - y) * (down ? -1 : 1);
    };
    body.append(...[...body.rows].sort(order));
  }));
}
"""


def page(comparison: Comparison) -> str:
    """The page. All text of corpora, queries and configurations is escaped; only its own script may run."""
    script = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{script}'"
    changes = most_changed(comparison)
    runs = sum(len(group.runs) for group in comparison.groups)
    body = [
        f"<h1>{runs} runs compared</h1>" if runs != 1 else "<h1>One run</h1>",
        f'<p class="faint">{_arms(comparison)}</p>',
        '<nav><a href="#tables">Tables</a><a href="#plots">Plots</a><a href="#queries">Queries changed most</a></nav>',
        _unfinished(comparison),
        '<h2 id="tables">Tables</h2>',
        '<p class="faint">Green and red: the corrected p-value is below 0.05. W/T/L: queries won, tied and lost '
        "against the base. Click on a column's name to sort.</p>",
        *map(_table, sheets(comparison)),
        '<h2 id="plots">Plots</h2>',
        *_figures(draw(comparison, "light"), draw(comparison, "dark")),
        '<h2 id="queries">Queries changed most</h2>',
        f'<p class="faint">nDCG@10 of {escape(comparison.base)} → of the arm, averaged over seeds.</p>',
        *map(_changes, changes),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Comparison of {runs} runs</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + f"\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def _arms(comparison: Comparison) -> str:
    step = "at the step that its dev lists chose" if comparison.which == "best" else "at its last step"
    names = ", ".join(f"{escape(group.name)} ({len(group.runs)})" for group in comparison.groups)
    return f"Each model {step}; differences are to <b>{escape(comparison.base)}</b>. Arms and their runs: {names}."


def _unfinished(comparison: Comparison) -> str:
    if not comparison.unfinished:
        return ""
    items = "".join(f"<li>{escape(f'{folder}: {reason(folder)}')}</li>" for folder in comparison.unfinished)
    count = len(comparison.unfinished)
    runs = "One run is" if count == 1 else f"{count} runs are"
    return f"<details><summary>{runs} not finished, so in no table</summary><ul>{items}</ul></details>"


def _table(sheet: Sheet) -> str:
    head = f'<h3>{escape(sheet.title)}</h3>\n<p class="caption">{escape(sheet.caption)}</p>'
    if not sheet.rows:
        return head
    columns = "".join(f"<th><button>{escape(column)}</button></th>" for column in sheet.columns)
    rows = "\n".join(
        f'<tr class="{("", "gain", "loss")[sign]}">{"".join(f"<td>{escape(cell)}</td>" for cell in row)}</tr>'
        for row, sign in zip(sheet.rows, sheet.signs, strict=True)
    )
    return (
        f'{head}\n<div class="scroll" tabindex="0"><table><thead><tr>{columns}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table></div>"
    )


def _figures(light: Mapping[str, bytes], dark: Mapping[str, bytes]) -> list[str]:
    return [
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{_data(dark[name])}">'
        f'<img alt="{escape(words)}" src="{_data(light[name])}"></picture>'
        f"<figcaption>{escape(words)}.</figcaption></figure>"
        for name, words in _PLOTS.items()
    ]


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _changes(changes: Changes) -> str:
    return (
        f"<details><summary>{escape(changes.dataset)}: {escape(changes.arm)}</summary>"
        f'<div class="sides"><div><h3>Most hurt</h3>{_list(changes.hurt)}</div>'
        f"<div><h3>Most helped</h3>{_list(changes.helped)}</div></div></details>"
    )


def _list(side: Sequence[Change]) -> str:
    return f"<ol>{''.join(map(_item, side))}</ol>" if side else '<p class="faint">None.</p>'


def _item(change: Change) -> str:
    notes = [f"relevant: {'; '.join(change.relevant)}"] if change.relevant else []
    notes += [f"overlap: it {change.overlap}"] if change.overlap else []
    sign = "gain" if change.value > change.base else "loss"
    return (
        f'<li>{escape(change.query or change.query_id)} <span class="values {sign}">'
        f"{change.base:.3f} → {change.value:.3f}</span>"
        + "".join(f'<br><span class="faint">{escape(note)}</span>' for note in notes)
        + "</li>"
    )
