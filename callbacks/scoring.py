"""nDCG@10 and its companions, as trec_eval and BEIR compute them, with per-query values."""

from __future__ import annotations

import logging

import pytrec_eval
from beir.retrieval.evaluation import EvaluateRetrieval

METRICS = ("ndcg@10", "recall@100", "mrr@10", "map@100")
_TREC_MEASURES = {"ndcg@10": "ndcg_cut_10", "recall@100": "recall_100", "map@100": "map_cut_100"}


def score_run(
    qrels: dict[str, dict[str, int]], run: dict[str, dict[str, float]]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Score a run with ``beir``'s EvaluateRetrieval (pytrec_eval).

    Linear gain; the ideal ranking is that of all judgements; equal scores are ordered by descending passage id.

    Args:
        qrels: query id → passage id → grade.
        run: query id → passage id → score. A judged query that the run lacks, or that has no hit, counts as 0.

    Returns:
        Metric → mean over all judged queries, in [0, 1], and metric → query id → value (mrr@10 has no per-query values
        in ``beir``; it is left out there).
    """
    complete = {query: run.get(query) or {"": 0.0} for query in qrels}  # "" is no passage's id, so never relevant
    logging.disable(logging.INFO)  # beir prints every figure to the root logger
    try:
        ndcg, average_precision, recall, _ = EvaluateRetrieval.evaluate(
            qrels, complete, [10, 100], ignore_identical_ids=False
        )
        mrr = EvaluateRetrieval.evaluate_custom(qrels, complete, [10], "mrr")
    finally:
        logging.disable(logging.NOTSET)
    means = {
        "ndcg@10": ndcg["NDCG@10"],
        "recall@100": recall["Recall@100"],
        "mrr@10": mrr["MRR@10"],
        "map@100": average_precision["MAP@100"],
    }
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "recall.100", "map_cut.100"})
    values = evaluator.evaluate(complete)
    per_query = {name: {q: values[q][measure] for q in values} for name, measure in _TREC_MEASURES.items()}
    return means, per_query


def without_self_hits(run: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Take each query's own id out of its hits (ArguAna and Quora hold their queries among the passages)."""
    return {query: {p: s for p, s in hits.items() if p != query} for query, hits in run.items()}
