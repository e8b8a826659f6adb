"""Tables as words: titles, captions, columns and cells, for every format alike."""

from dataclasses import dataclass

from callbacks.evaluation.metrics import headings
from callbacks.reporting.statistics import CLEAR, FEW, PairedTest, least_p, too_few
from experiments.cli.console import TERMINAL
from experiments.comparison.tables import Arm, Comparison, HomeAndAbroad, Table

_TOO_FEW = "too few for any difference to be significant"
_LONG_NAME = 30  # characters; the heading of a column does not hold more
PRUNED = "†"  # behind a seed


@dataclass(frozen=True)
class Sheet:
    """A table to be written down.

    Attributes:
        title: what it is about.
        caption: how to read it.
        columns: their names; the first holds names, the others figures.
        rows: cells.
        signs: per row, 1 or −1 where the difference is clearly positive or negative, else 0.
    """

    title: str
    caption: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    signs: list[int]


def sheets(comparison: Comparison) -> list[Sheet]:
    """All tables, with all columns."""
    found = [_forgetting(comparison)] if comparison.forgetting else []
    for table, clean in comparison.all_tables():
        found.append(_sheet(comparison, table))
        if clean is not None:
            found.append(_sheet(comparison, clean))
    return found


def narrow_sheets(comparison: Comparison) -> list[Sheet]:
    """The tables as far as they go into a terminal, with further metrics that fit; of *no overlap*, the difference."""
    found = [_narrow(comparison, table, clean) for table, clean in comparison.all_tables()]
    return found + ([_forgetting(comparison)] if comparison.forgetting else [])


def _sheet(comparison: Comparison, table: Table) -> Sheet:
    beside = headings(dict.fromkeys(name for arm in table.arms for name in arm.figures))
    cells = [
        {
            "run": arm.name,
            "seeds": _seeds(arm),
            "nDCG@10": f"{arm.ndcg:.4f}",
            f"difference to {comparison.base}": _difference(arm.difference),
            "paired 95% interval": _interval(arm.difference),
            "p (Holm)": _p(arm.p_holm),
            "W/T/L": _counts(arm.difference),
            **{heading: _number(arm.figures.get(name), ".4f") for name, heading in beside.items()},
            "step": _steps(arm),
            "minutes": _number(arm.minutes, ".1f"),
            "GiB": _number(arm.memory, ".1f"),
            "passages encoded": _number(arm.passages, ",.0f"),
        }
        for arm in table.arms
    ]
    of_each = enumerate(cells[0] if cells else ())
    kept = [name for n, name in of_each if (n < 7 and name != "seeds") or any(c[name] for c in cells)]
    return Sheet(
        table.title if table.of is None else f"{table.title}, without overlap",
        _caption(comparison, table),
        tuple(kept),
        [tuple(of_arm[name] for name in kept) for of_arm in cells],
        [_sign(arm.difference, arm.p_holm) for arm in table.arms],
    )


def _narrow(comparison: Comparison, table: Table, clean: Table | None) -> Sheet:
    few = clean is not None and too_few(clean.queries, clean.comparisons)
    without = {arm.name: arm.difference for arm in clean.arms} if clean and not few else {}
    long = len(comparison.base) > _LONG_NAME
    difference = "difference [95%]" if long else f"difference to {comparison.base} [95%]"
    cells = [
        {
            "run": arm.name,
            "seeds": _seeds(arm),
            "nDCG@10": f"{arm.ndcg:.4f}",
            difference: _with_interval(arm.difference),
            "p": _p(arm.p_holm),
            "W/T/L": _counts(arm.difference),
            **({"no overlap": _difference(without.get(arm.name))} if without else {}),
            "step": _steps(arm),
            "minutes": _number(arm.minutes, ".1f"),
        }
        for arm in table.arms
    ]
    columns, left_out = list(cells[0]), []
    for name in headings(dict.fromkeys(name for arm in table.arms for name in arm.figures)):
        width = sum(max(len(column), *(len(of_arm[column]) for of_arm in cells)) + 3 for column in columns) + 1
        if name == "recall@100":
            continue
        if width + len(name) + 3 > TERMINAL:
            left_out.append(name)
            continue
        columns.append(name)
        for of_arm, arm in zip(cells, table.arms, strict=True):
            of_arm[name] = _number(arm.figures.get(name), ".4f")
    columns = [name for name in columns if name not in ("seeds", "step", "minutes") or any(c[name] for c in cells)]
    caption = f"differences to {comparison.base}; " if long else ""
    caption += _caption(comparison, table)
    if clean is not None and clean.queries:
        left = _queries(clean.queries)
        caption += (
            f"; no overlap: not shown, for training here came close to all but {left}, {_TOO_FEW}"
            if few
            else f"; no overlap: the difference on the {left} that no training here came close to"
        )
    elif clean is not None:
        caption += "; the training of these runs came close to every query"
    if left_out:
        caption += f"; no room here for {', '.join(left_out)}: see the runs' results.json"
    rows = [tuple(of_arm[name] for name in columns) for of_arm in cells]
    return Sheet(table.title, caption, tuple(columns), rows, [_sign(a.difference, a.p_holm) for a in table.arms])


def _forgetting(comparison: Comparison) -> Sheet:
    columns: tuple[str, ...] = ("run", "at home", "p", "abroad", "p")
    rows: list[tuple[str, ...]] = [
        (row.name, _with_interval(row.gain), _p(row.gain_p), _with_interval(row.loss), _p(row.loss_p))
        for row in comparison.forgetting
    ]
    places = dict.fromkeys((tuple(row.home), tuple(row.abroad)) for row in comparison.forgetting)
    if len(places) > 1:  # arms were trained on different corpora
        columns += ("home", "foreign")
        rows = [
            (*cells, ", ".join(row.home), ", ".join(row.abroad))
            for cells, row in zip(rows, comparison.forgetting, strict=True)
        ]
        where = "home: corpora that the arm was trained on"
    else:
        [(home, abroad)] = places
        where = f"home: {', '.join(home)}; abroad (not trained on): {', '.join(abroad)}"
    count = sum(test is not None for row in comparison.forgetting for test in (row.gain, row.loss))
    caption = (
        f"mean nDCG@10 difference to {comparison.base} with its paired 95% interval; {where}; "
        f"p: randomisation test, Holm over {count} {_comparisons(count)}"
    )
    return Sheet(
        "gain at home, loss abroad", caption, columns, rows, [_forgotten(row) for row in comparison.forgetting]
    )


def _caption(comparison: Comparison, table: Table) -> str:
    if not table.arms:
        return f"none of the {table.of} queries is left: the training of the runs compared came close to all of them"
    what = _queries(table.queries)
    if table.of is not None:
        what = (
            f"{table.queries} of {table.of} queries, those that share neither a relevant passage nor near-equal "
            "wording with the training of any run compared"
        )
    step = "the step that its dev lists chose" if comparison.which == "best" else "its last step"
    trained = any(run.is_trained for runs in comparison.groups.values() for run in runs)
    parts = [what, f"each model at {step}"] if trained else [what]
    if comparison.differing is not None:
        parts.append("each run on the corpus that it was trained on")
    if comparison.differing and table in (comparison.average, comparison.clean_average):
        parts.append(f"between corpora, runs of one arm differ in {', '.join(comparison.differing)}")
    if table.comparisons:
        most = max((len(arm.seeds) for arm in table.arms), default=0)
        parts.append(
            "intervals over queries and seeds" if most > 1 else "one seed each, so intervals are about these very runs"
        )
        parts.append(f"p: randomisation test, Holm over {table.comparisons} {_comparisons(table.comparisons)}")
        if too_few(table.queries, table.comparisons):
            parts.append(f"these queries are {_TOO_FEW} (p is {least_p(table.queries, table.comparisons):.2g} at best)")
        elif table.queries < FEW:
            parts.append("few queries: intervals from so few are themselves unsure")
    parts += [
        f"{arm.name}: difference over seed {', '.join(map(str, arm.paired))} alone, which {comparison.base} has, too; "
        "its nDCG@10 over all of its seeds"
        for arm in table.arms
        if arm.paired
    ]
    kept = [arm.name for arm in table.arms if arm.difference is not None and arm.seeds and 0 in arm.steps]
    if kept and comparison.which == "best":
        parts.append(f"step 0: no later one was better by the dev criterion, so {', '.join(kept)} kept the base model")
    if any(arm.pruned for arm in table.arms):
        parts.append(f"{PRUNED}: stopped early by the sweep's pruner")
    return "; ".join(parts)


def _queries(count: int) -> str:
    return f"{count} {'query' if count == 1 else 'queries'}"


def _comparisons(count: int) -> str:
    return "comparison" if count == 1 else "comparisons"


def _sign(test: PairedTest | None, p: float | None) -> int:
    return 0 if test is None or p is None or p >= CLEAR else 1 if test.mean > 0 else -1


def _forgotten(row: HomeAndAbroad) -> int:
    """−1 where something was clearly lost abroad; else as at home."""
    return -1 if _sign(row.loss, row.loss_p) < 0 else _sign(row.gain, row.gain_p)


def _seeds(arm: Arm) -> str:
    if not arm.steps and len(arm.seeds) == 1:  # a model that was evaluated, not trained
        return ""
    return ", ".join(f"{seed}{PRUNED if seed in arm.pruned else ''}" for seed in arm.seeds)


def _steps(arm: Arm) -> str:
    return ", ".join(map(str, sorted(set(arm.steps))))


def _difference(test: PairedTest | None) -> str:
    return "" if test is None else f"{test.mean:+.4f}"


def _interval(test: PairedTest | None) -> str:
    return "" if test is None else f"[{test.low:+.4f}, {test.high:+.4f}]"


def _with_interval(test: PairedTest | None) -> str:
    return f"{_difference(test)} {_interval(test)}".strip()


def _counts(test: PairedTest | None) -> str:
    return "" if test is None else f"{test.wins}/{test.ties}/{test.losses}"


def _p(p: float | None) -> str:
    return "" if p is None else "<.001" if p < 0.001 else f"{p:.3f}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
