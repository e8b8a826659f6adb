"""nDCG@10 and its companions, as trec_eval and BEIR compute them, with per-query values."""

from __future__ import annotations

from heapq import nlargest

import pytrec_eval

METRICS = ("ndcg@10", "recall@100", "mrr@10", "map@100")
_TREC_MEASURES = {"ndcg@10": "ndcg_cut_10", "recall@100": "recall_100", "map@100": "map_cut_100"}
Run = dict[str, dict[str, float]]
PerQuery = dict[str, dict[str, float]]


def score_run(qrels: dict[str, dict[str, int]], run: Run) -> tuple[dict[str, float], PerQuery]:
    """Score a run with ``pytrec_eval``, trec_eval's own code; the figures are those of ``beir``'s EvaluateRetrieval.

    Linear gain; the ideal ranking is that of all judgements; equal scores are ordered by descending passage id.

    Args:
        qrels: query id → passage id → grade.
        run: query id → passage id → score. A judged query that the run lacks, or that has no hit, counts as 0.

    Returns:
        Metric → mean over all judged queries, in [0, 1], rounded to five digits as in ``beir``, and metric → query id →
        value.
    """
    per_query = score_queries(qrels, run)
    return mean_scores(per_query), per_query


def score_queries(qrels: dict[str, dict[str, int]], run: Run) -> PerQuery:
    """Metric → query id → value, for all judged queries; arguments as for :func:`score_run`."""
    complete = {query: run.get(query) or {"": 0.0} for query in qrels}  # "" is no passage's id, so never relevant
    values = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "recall.100", "map_cut.100"}).evaluate(complete)
    first = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(
        {query: dict(in_trec_order(hits, 10)) for query, hits in complete.items()}
    )
    per_query = {name: {q: values[q][measure] for q in values} for name, measure in _TREC_MEASURES.items()}
    per_query["mrr@10"] = {q: first[q]["recip_rank"] for q in first}
    return {name: per_query[name] for name in METRICS}


def mean_scores(per_query: PerQuery) -> dict[str, float]:
    """Metric → mean over queries, rounded to five digits as in ``beir``."""
    return {name: round(sum(values.values()) / len(values), 5) for name, values in per_query.items()}


def in_trec_order(hits: dict[str, float], k: int) -> list[tuple[str, float]]:
    """The best ``k`` hits of a query in trec_eval's order: by score, ties by descending id."""
    return nlargest(k, hits.items(), key=lambda item: (item[1], item[0]))


def without_self_hits(run: Run, qrels: dict[str, dict[str, int]]) -> Run:
    """Take each query's own id out of its hits (ArguAna and Quora hold their queries among the passages).

    A passage that is judged relevant stays: its id is equal by chance.
    """
    return {
        query: {p: s for p, s in hits.items() if p != query or qrels.get(query, {}).get(p, 0) > 0}
        for query, hits in run.items()
    }
