"""What came of an adaptation, in words: whether the tuned model is better here, how sure that is, and what it costs."""

from collections.abc import Sequence
from pathlib import Path

from callbacks.reporting.statistics import CLEAR, FEW, too_few
from experiments.comparison.measured import BASE
from experiments.comparison.runs import Run
from experiments.comparison.tables import Arm, Comparison, Table


def verdict(
    comparison: Comparison, last: Comparison, objectives: Sequence[str], human: bool, corpus: Path
) -> list[str]:
    """Say what a comparison found.

    Args:
        comparison: of the runs, each at the step that its dev lists chose.
        last: the same at their last steps.
        objectives: names of the arms, the one that is recommended first.
        human: whether the queries are people's.
        corpus: the folder of the corpus.

    Returns:
        Sentences, the most important first.
    """
    table, ends = _home(comparison), {arm.name: arm for arm in _home(last).arms}
    arms = {arm.name: arm for arm in table.arms}
    base = arms[BASE]
    better = [arms[name] for name in objectives if name in arms and _is_better(arms[name])]
    shown = better[0] if better else arms[objectives[0]]
    figures = _figures(base, shown, table, human) if any(shown.steps) else _kept(ends[shown.name])
    on = "on this corpus" if human else "at made-up queries of this corpus"
    said = []
    if better:
        run = max(comparison.groups[shown.name], key=_by_dev)
        said.append(f"Take {shown.name}: {on} it is better than the base model. {figures}")
        said.append(
            f"The model: {run.folder / 'model'}. It encodes queries; passages keep the base model's embeddings, so an "
            "index of these stays as it is."
        )
        if len(shown.seeds) > 1:
            said.append(f"Figures are means over {len(shown.seeds)} seeds; this is the one that dev lists prefer.")
    else:
        said.append(f"Keep the base model: {on} no run is significantly better. {shown.name}{_word(shown)}: {figures}")
        if any(shown.steps):
            run = max(comparison.groups[shown.name], key=_by_dev)
            said.append(f"If you want to try {shown.name} all the same, it is in {run.folder / 'model'}.")
    others = [arm for arm in table.arms if arm.difference is not None and arm is not shown]
    said += [
        f"{arm.name}: " + (f"{_difference(arm)}{_word(arm)}." if any(arm.steps) else _kept(ends[arm.name]))
        for arm in others
    ]
    said += _elsewhere(comparison, shown.name)
    said.append(
        "Intervals are 95%, not corrected; p-values are of a paired randomisation test over queries, corrected (Holm) "
        f"over {table.comparisons} objective{'s' * (table.comparisons != 1)}; those of last steps are corrected by "
        "themselves. Of several that are better, the first of your list is named."
    )
    if too_few(table.queries, table.comparisons):
        queries = "1 query is" if table.queries == 1 else f"{table.queries} queries are"
        few = f"{queries} too few to tell: not even a gain on every one would be significant."
        said.append(few + " Judge some fifty." * human)
    elif human and table.queries < FEW:
        said.append(f"{table.queries} queries are few: only large differences show, and intervals are unsure, too.")
    if not human:
        said.append(
            "These queries are not people's: each was cut from a passage, and that passage alone counts as right. "
            "Sentences of one passage count as independent, so p is a little too small, and a model that is better at "
            "them need not be better at questions: on Cranfield, InfoNCE at 0.01 gains 0.05 on such sentences, and "
            "loses 0.01 on what people asked. Judge some fifty real queries: put queries.jsonl and qrels/test.tsv "
            f"beside {corpus / 'corpus.jsonl'}, and adapt to that folder again, before you rely on it."
        )
    return said


def _home(comparison: Comparison) -> Table:
    """The table of the corpus itself, which the runs were trained on."""
    run = next(iter(comparison.groups.values()))[0]
    return next(table for name, table in comparison.tables.items() if run.is_home(name))


def _elsewhere(comparison: Comparison, name: str) -> list[str]:
    run = comparison.groups[name][0]
    abroad = {title: table for title, table in comparison.tables.items() if not run.is_home(title)}
    found = [(title, arm) for title, table in abroad.items() for arm in table.arms if arm.name == name]
    return [f"Elsewhere ({title}): {_difference(arm)}." for title, arm in found]


def _kept(end: Arm) -> str:
    word = ", significantly better, but dev lists did not choose it" if _is_better(end) else _word(end)
    return f"its dev lists kept the base model; its last step is at {_difference(end)}{word}."


def _by_dev(run: Run) -> tuple[bool, float]:
    """Whether a run's step was chosen over the base model, and how good its dev criterion is."""
    value = run.results.get("criterion_value") or 0.0
    sign = 1 if run.config.get("criterion_mode") == "max" else -1
    return run.results["steps"]["best"] > 0, sign * value


def _is_better(arm: Arm) -> bool:
    return arm.difference is not None and arm.p_holm is not None and arm.difference.mean > 0 and arm.p_holm < CLEAR


def _word(arm: Arm) -> str:
    if arm.p_holm is None or arm.difference is None or arm.p_holm >= CLEAR:
        return ""
    return " (better)" if arm.difference.mean > 0 else " (significantly worse than the base model)"


def _figures(base: Arm, arm: Arm, table: Table, human: bool) -> str:
    queries = f"{table.queries:,} {'human' if human else 'made-up'} queries"
    return f"nDCG@10 {base.ndcg:.4f} → {arm.ndcg:.4f} on {queries}: {_difference(arm)}."


def _difference(arm: Arm) -> str:
    test = arm.difference
    assert test is not None  # asked for arms that have one
    return f"{test.mean:+.4f} [{test.low:+.4f}, {test.high:+.4f}], p {arm.p_holm:.3f}"
