"""The teacher card: is this teacher worth distilling? Its order of the candidates beside the retrievers'."""

from dataclasses import asdict
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from callbacks.evaluation.block_search import run_of
from callbacks.evaluation.metrics import Run, score_run
from callbacks.reporting.statistics import paired_difference
from datamodules.corpus import find_dataset, load_evaluation_set
from datamodules.hits import Hits
from datamodules.pipeline.stages.mine import table_to_hits
from experiments.preparation.pipeline import Pipeline


def teacher_card(pipeline: Pipeline) -> dict[str, Any]:
    """nDCG@10 of each order of the same candidates, for the groups of judged queries, before any filter.

    Args:
        pipeline: with the outputs of mine and score.

    Returns:
        Group → ``queries``, ``candidates`` (mean), ``ndcg@10`` (order → value; the ideal is that of all judgements,
        ``oracle`` is the best order of these candidates) and ``teacher minus`` (order → paired difference with its 95%
        interval); empty where no group is judged.
    """
    scored = pipeline.outputs["score"].table("scored.parquet")
    card = {}
    for group, split in pipeline.judged_groups().items():
        folder = find_dataset(pipeline.config.corpus, pipeline.config.data_dir)
        judged = load_evaluation_set(str(folder), split, corpus=pipeline.corpus, unknown_qrels="keep")
        inside = np.flatnonzero(np.array(scored["group"].to_pylist(), dtype=object) == group)
        table = scored.take(inside)
        runs = _orders(pipeline, table, inside)
        runs["oracle"] = {
            query: {p: float(judged.qrels[query].get(p, 0)) for p in hits} for query, hits in runs["teacher"].items()
        }
        values = {name: score_run(judged.qrels, run)[1]["ndcg@10"] for name, run in runs.items()}
        card[group] = {
            "queries": len(judged.qrels),
            "candidates": float(np.mean([len(hits) for hits in runs["teacher"].values()])),
            "ndcg@10": {name: float(np.mean(list(found.values()))) for name, found in values.items()},
            "teacher minus": {
                name: asdict(paired_difference(values["teacher"], found))
                for name, found in values.items()
                if name not in ("teacher", "oracle")
            },
        }
    return card


def print_card(card: dict[str, Any], console: Console) -> None:
    """One table per group."""
    for group, facts in card.items():
        title = f"Teacher card: {group}, {facts['queries']} queries, {facts['candidates']:.0f} candidates each"
        table = Table("order of the candidates", "nDCG@10", "teacher's lead", "paired 95% interval", title=title)
        for name, value in sorted(facts["ndcg@10"].items(), key=lambda item: -item[1]):
            lead = facts["teacher minus"].get(name)
            words = (f"{lead['mean']:+.4f}", f"[{lead['low']:+.4f}, {lead['high']:+.4f}]") if lead else ("", "")
            table.add_row(name, f"{value:.4f}", *words)
        console.print(table)


def _orders(pipeline: Pipeline, table: Any, inside: np.ndarray) -> dict[str, Run]:
    """Order → run over the same candidates."""
    query_ids, candidates = table["query_id"].to_pylist(), table["passage_ids"].to_pylist()
    orders: dict[str, Run] = {}
    scores = {"teacher": "teacher_scores"} | {
        n.removeprefix("scores."): n for n in table.column_names if n.startswith("scores.")
    }
    for name, column in scores.items():
        found = zip(query_ids, candidates, table[column].to_pylist(), strict=True)
        orders[name] = {query: dict(zip(ids, values, strict=True)) for query, ids, values in found}
    mined = pipeline.outputs["mine"]
    for file in sorted(mined.manifest["outputs"]):
        name = "fused" if file == "candidates.parquet" else file.removeprefix("run.").removesuffix(".parquet")
        hits = table_to_hits(mined.table(file))
        run = run_of(pipeline.corpus, query_ids, Hits(hits.scores[inside], hits.rows[inside]))
        # a candidate that this retriever lacks comes last
        lowest = {query: min(found.values(), default=0.0) - 1.0 for query, found in run.items()}
        wanted = zip(query_ids, candidates, strict=True)
        orders[name] = {query: {p: run[query].get(p, lowest[query]) for p in ids} for query, ids in wanted}
    return orders
