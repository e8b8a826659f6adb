"""What came of an adaptation, in words: whether the tuned model is better here, how sure that is, and what it costs."""

from collections.abc import Sequence

from callbacks.reporting.statistics import PairedTest
from experiments.comparison.measured import BASE
from experiments.comparison.tables import Arm, Comparison, Table

_SURE = 0.05  # corrected p-value


def verdict(comparison: Comparison, objectives: Sequence[str], human: bool) -> list[str]:
    """Say what a comparison found.

    Args:
        comparison: of the runs.
        objectives: names of the arms, the one that is recommended first.
        human: whether the queries are people's.

    Returns:
        Sentences, the most important first.
    """
    table = _home(comparison)
    arms = {arm.name: arm for arm in table.arms}
    base = arms[BASE]
    better = [arms[name] for name in objectives if name in arms and _is_better(arms[name])]
    said = []
    shown = better[0] if better else arms[objectives[0]]
    figures = _figures(base, shown, table, human) if any(shown.steps) else "its dev lists kept the base model."
    if better:
        said.append(f"Take {shown.name}: on this corpus it is better than the base model. {figures}")
        said.append(
            f"The model: {comparison.groups[shown.name][0].folder / 'model'}. It encodes queries; passages keep the "
            "base model's embeddings, so an index of these stays as it is."
        )
    else:
        said.append(f"Keep the base model: no run is better on this corpus beyond chance. {shown.name}: {figures}")
    others = [arm for arm in table.arms if arm.difference is not None and arm is not shown]
    said += [f"{arm.name}: {_difference(arm.difference)}, p {arm.p_holm:.3f}{_word(arm)}." for arm in others]
    said += _elsewhere(comparison, shown.name)
    said.append(
        "Intervals are 95%; p-values are of a paired randomisation test, corrected over "
        f"{table.comparisons} runs (Holm)."
    )
    if not human:
        said.append(
            "These queries are not people's: each was cut from a passage, and that passage alone counts as right. A "
            "model that is better at them need not be better at questions. Judge some fifty real queries "
            "(queries.jsonl, qrels/test.tsv) and run the same command before you rely on it."
        )
    return said


def _home(comparison: Comparison) -> Table:
    """The table of the corpus itself; where it has several sets, their average."""
    run = next(iter(comparison.groups.values()))[0]
    home = [name for name in comparison.tables if run.is_home(name)]
    if len(home) == 1:
        return comparison.tables[home[0]]
    return max((comparison.tables[name] for name in home), key=lambda table: table.queries)


def _elsewhere(comparison: Comparison, name: str) -> list[str]:
    rows = [row for row in comparison.forgetting if row.name == name and row.loss is not None]
    return [f"Elsewhere ({', '.join(row.abroad)}): {_difference(row.loss)}, p {row.loss_p:.3f}." for row in rows]


def _is_better(arm: Arm) -> bool:
    return arm.difference is not None and arm.p_holm is not None and arm.difference.mean > 0 and arm.p_holm < _SURE


def _word(arm: Arm) -> str:
    if arm.p_holm is None or arm.difference is None or arm.p_holm >= _SURE:
        return ""
    return " (better)" if arm.difference.mean > 0 else " (worse than the base model)"


def _figures(base: Arm, arm: Arm, table: Table, human: bool) -> str:
    queries = f"{table.queries:,} {'human' if human else 'made-up'} queries"
    return f"nDCG@10 {base.ndcg:.4f} → {arm.ndcg:.4f} on {queries}: {_difference(arm.difference)}, p {arm.p_holm:.3f}."


def _difference(test: PairedTest | None) -> str:
    assert test is not None  # asked for arms that have one
    return f"{test.mean:+.4f} [{test.low:+.4f}, {test.high:+.4f}]"
