"""Metrics by name are trec_eval's to the bit; wrong names are explained; a metric of one's own stands beside them."""

import numpy as np
import pytest
import pytrec_eval

from callbacks import Metric, Metrics
from callbacks.evaluation.metrics import in_trec_order, mean_scores, score_run
from retriever.errors import InputError


def drawn(seed, queries=40, passages=300):
    """Judgements with grades 0 to 2, and a run with many equal scores, a query without hits and one it lacks."""
    random = np.random.default_rng(seed)
    ids = [f"d{i}" for i in range(passages)]
    grades = [0, 0, 1, 2]
    qrels = {
        f"q{i}": {d: int(random.choice(grades)) for d in random.choice(ids, 9, replace=False)} for i in range(queries)
    }
    run = {}
    for query in list(qrels)[:-1]:
        found = random.choice(ids, random.integers(1, passages), replace=False)
        run[query] = {d: float(np.round(random.random(), 1)) for d in found}
    return qrels, run | {"q0": {}}


def scores_of_before(qrels, run):
    """How values were computed before metrics had names."""
    complete = {query: run.get(query) or {"": 0.0} for query in qrels}
    values = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "recall.100", "map_cut.100"}).evaluate(complete)
    first = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(
        {query: dict(in_trec_order(hits, 10)) for query, hits in complete.items()}
    )
    measures = {"ndcg@10": "ndcg_cut_10", "recall@100": "recall_100", "map@100": "map_cut_100"}
    per_query = {name: {q: values[q][measure] for q in values} for name, measure in measures.items()}
    per_query["mrr@10"] = {q: first[q]["recip_rank"] for q in first}
    return {name: per_query[name] for name in ("ndcg@10", "recall@100", "mrr@10", "map@100")}


@pytest.mark.parametrize("seed", range(5))
def test_values_are_those_of_before_to_the_bit(seed):
    qrels, run = drawn(seed)
    means, per_query = score_run(qrels, run)
    expected = scores_of_before(qrels, run)
    assert per_query == expected and means == mean_scores(expected)
    assert [list(values) for values in per_query.values()] == [list(values) for values in expected.values()]
    # whatever stands beside them, and in whatever order
    mixed = ["R(rel=2)@1000", "AP@100", "P@5", "RR@3", "RR(rel=2)@10", "RR@10", "R@100", "nDCG@10"]
    found = Metrics(mixed).score(qrels, run)
    assert all(found[name] == expected[name] for name in expected) and len(found) == len(mixed)


def test_a_relevance_level_says_which_grades_count():
    qrels, run = drawn(7)
    names = ["nDCG@10", "R(rel=2)@20", "AP(rel=2)@20", "RR(rel=2)@10", "P(rel=2)@5", "Success(rel=2)@5"]
    found = Metrics(names).score(qrels, run)
    for query, judged in qrels.items():
        wanted = {passage for passage, grade in judged.items() if grade >= 2}
        order = [passage for passage, _ in in_trec_order(run.get(query, {}), 20)]
        hit = [passage in wanted for passage in order]
        precisions = [sum(hit[:place]) / place for place, good in enumerate(hit, 1) if good]
        expected = {
            "R(rel=2)@20": sum(hit) / len(wanted) if wanted else 0,
            "AP(rel=2)@20": sum(precisions) / len(wanted) if wanted else 0,
            "RR(rel=2)@10": next((1 / place for place, good in enumerate(hit[:10], 1) if good), 0),
            "P(rel=2)@5": sum(hit[:5]) / 5,
            "Success(rel=2)@5": float(any(hit[:5])),
        }
        for name, value in expected.items():
            assert found[name][query] == pytest.approx(value, abs=1e-12), (name, query)


def test_names_are_kept_that_were_always_logged():
    assert Metrics().names == ("ndcg@10", "recall@100", "mrr@10", "map@100")
    assert Metrics(["nDCG@10", "R@1000", "R(rel=1)@50", "MRR@10"]).names == ("ndcg@10", "R@1000", "R@50", "mrr@10")
    assert Metrics(["ndcg@10", "recall@100"]).names == ("ndcg@10", "recall@100")


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (["nDCG@10", "nDGC@5"], "'nDGC@5' is no metric that trec_eval computes. Write nDCG@10, R@100"),
        (["nDCG@10", "R(rel=2)"], r"'R\(rel=2\)' is no metric"),
        (["nDCG@10", "R(level=2)@5"], "is no metric"),
        (["nDCG@10", "R@0"], "is no metric"),
        (["nDCG@10", "NumRet"], "is no metric"),
        (["nDCG@10", 5], "'5' is no metric"),
        (["nDCG@10", "R@5", "R(rel=1)@5"], "R@5 is there twice"),
        (["R@100"], r"evaluation.metrics is \[R@100\]; nDCG@10 must be among them: runs are compared by it"),
        (
            ["nDCG@10", "R@1000"],
            "hits is 500; R@1000 looks at 1000 hits of a query. Say evaluation.hits=1000, or",
        ),
    ],
)
def test_wrong_metrics_are_named(metrics, message):
    with pytest.raises(InputError, match=message):
        Metrics(metrics, hits=500)


class Depth(Metric):
    """How many hits there are, of three."""

    name, depth = "found@3", 3

    def __call__(self, qrels, run):
        return {query: len(run[query]) / 3 for query in qrels}


def test_a_metric_of_ones_own_stands_beside_the_others():
    found = Metrics(["nDCG@10", Depth()]).score({"a": {"x": 1}, "b": {"x": 1}}, {"a": {"x": 1.0, "y": 0.5}})
    assert list(found) == ["ndcg@10", "found@3"] and found["found@3"] == {"a": 2 / 3, "b": 0}
    with pytest.raises(InputError, match=r"evaluation\.hits is 2; found@3 looks at 3 hits of a query"):
        Metrics([Depth(), "nDCG@10"], hits=2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"q1": 1.0}, "gives values of 1 queries; 2 are judged"),
        ({"q1": 1.0, "q2": float("nan")}, "gives nan for query 'q2'; expected a number from 0 to 1"),
        ({"q1": 35.0, "q2": 0.0}, "gives 35.0 for query 'q1'"),
    ],
)
def test_values_of_ones_own_metric_are_checked(values, message):
    class Given(Metric):
        name, depth = "given", 1

        def __call__(self, qrels, run):
            return values

    with pytest.raises(InputError, match=message):
        Metrics(["nDCG@10", Given()]).score({"q1": {"a": 1}, "q2": {"b": 1}}, {"q1": {"a": 0.5}})
