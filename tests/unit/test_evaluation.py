"""Scores equal trec_eval's; search is exact; statistics equal scipy's and a hand-made case."""

import math
from functools import partial

import numpy as np
import pytest
import pytrec_eval

from callbacks import DenseEvaluation
from callbacks.evaluation.block_search import score_runs, search_blocks, trec_file
from callbacks.evaluation.metrics import Metrics, score_run, without_self_hits
from callbacks.reporting.statistics import paired_difference
from datamodules.corpus import load_evaluation_set
from experiments.compare import main as compare_main
from experiments.comparison.formats import markdown
from experiments.comparison.runs import find_runs, reason
from experiments.comparison.tables import compare
from helpers.run_folders import make_run
from retriever.errors import InputError
from retriever.search import exact_search, merge_hits


def test_ideal_ranking_is_that_of_all_judgements():
    # one relevant at rank 2 of three judged: trec_eval 0.296, an ideal from the retrieved alone would say 0.631
    qrels = {"q": {"a": 1, "b": 1, "c": 1}}
    means, per_query = score_run(qrels, {"q": {"x": 0.9, "a": 0.8}})
    expected = (1 / math.log2(3)) / (1 + 1 / math.log2(3) + 1 / 2)
    assert means["ndcg@10"] == pytest.approx(expected, abs=1e-5) and round(expected, 3) == 0.296
    assert per_query["ndcg@10"]["q"] == pytest.approx(expected)
    assert means["mrr@10"] == 0.5 and means["recall@100"] == pytest.approx(1 / 3, abs=1e-5)


def test_ties_are_broken_by_descending_passage_id():
    tied = {"q": {"a": 1.0, "b": 1.0}}
    assert score_run({"q": {"b": 1}}, tied)[0]["ndcg@10"] == 1.0
    assert score_run({"q": {"a": 1}}, tied)[0]["ndcg@10"] == pytest.approx(1 / math.log2(3), abs=1e-5)


def test_grades_are_linear_gains():
    qrels = {"q": {"a": 2, "b": 1}}
    got = score_run(qrels, {"q": {"b": 2.0, "a": 1.0}})[0]["ndcg@10"]
    assert got == pytest.approx((1 + 2 / math.log2(3)) / (2 + 1 / math.log2(3)), abs=1e-5)


def test_query_without_results_counts_as_zero():
    qrels = {"q1": {"a": 1}, "q2": {"a": 1}, "q3": {"b": 1}}
    means, per_query = score_run(qrels, {"q1": {"a": 1.0}, "q2": {}})
    assert means["ndcg@10"] == pytest.approx(1 / 3, abs=1e-5) and means["recall@100"] == pytest.approx(1 / 3, abs=1e-5)
    assert per_query["ndcg@10"] == {"q1": 1.0, "q2": 0.0, "q3": 0.0}


@pytest.mark.parametrize("judged", [{"a": 1}, {"a": 1, "q": 0}, {"a": 1, "q": -1}])
def test_own_id_is_taken_out(judged):
    run = {"q": {"q": 9.0, "a": 1.0}, "r": {"b": 1.0}}
    assert without_self_hits(run, {"q": judged}) == {"q": {"a": 1.0}, "r": {"b": 1.0}}
    assert score_run({"q": judged}, without_self_hits(run, {"q": judged}))[0]["ndcg@10"] == 1.0


def test_own_id_that_is_judged_relevant_stays():
    run = {"q": {"q": 9.0, "a": 1.0}}
    assert without_self_hits(run, {"q": {"q": 1}}) == run
    assert score_run({"q": {"q": 1}}, without_self_hits(run, {"q": {"q": 1}}))[0]["ndcg@10"] == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_pytrec_eval_on_random_runs(seed):
    random = np.random.default_rng(seed)
    ids = [f"d{i}" for i in range(150)]
    qrels = {f"q{i}": {d: int(random.integers(0, 3)) for d in random.choice(ids, 8, replace=False)} for i in range(30)}
    run = {
        q: {d: float(np.round(random.random(), 1)) for d in random.choice(ids, random.integers(1, 120), replace=False)}
        for q in qrels
    }
    means, per_query = score_run(qrels, run)
    reference = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut_10", "recall_100", "map_cut_100"}).evaluate(run)
    for name, measure in {"ndcg@10": "ndcg_cut_10", "recall@100": "recall_100", "map@100": "map_cut_100"}.items():
        assert per_query[name] == {q: reference[q][measure] for q in qrels}
        assert means[name] == pytest.approx(np.mean([reference[q][measure] for q in qrels]), abs=6e-6)


def test_streamed_search_equals_the_full_score_matrix():
    random = np.random.default_rng(0)
    queries, passages = random.normal(size=(7, 16)).astype("f"), random.normal(size=(53, 16)).astype("f")
    order = np.argsort(-(queries @ passages.T), axis=1)[:, :10]
    for chunk in (5, 53, 1000):
        scores, rows = exact_search(queries, passages, 10, chunk=chunk)
        np.testing.assert_array_equal(rows, order)
        np.testing.assert_allclose(scores, np.take_along_axis(queries @ passages.T, order, 1), rtol=1e-5)
    halves = [exact_search(queries, passages[:20], 10), exact_search(queries, passages[20:], 10, first_row=20)]
    np.testing.assert_array_equal(merge_hits(halves, 10)[1], order)
    assert exact_search(queries, passages[:3], 10)[1].shape == (7, 3)
    assert exact_search(queries, passages[:0], 10)[1].shape == (7, 0)


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        (
            [{"path": "scifact", "splitt": "test"}],
            r"datasets\[0\]: .splitt. is no setting here; .* Did you mean .split.",
        ),
        ([{"path": "scifact", "queries": "test"}], r"datasets\[0\].queries is 'test'; it must be 'dev' or null"),
        ([{"path": "scifact"}, {"path": "scifact", "split": "train"}], "two sets have one name"),
    ],
)
def test_wrong_evaluation_sets_are_named(tmp_path, datasets, message):
    with pytest.raises(InputError, match=message):
        DenseEvaluation(datasets, tmp_path)


def test_paired_interval_covers_and_is_paired():
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        base = random.random(100)
        values = base + random.normal(0.05, 0.2, 100)
        ids = [f"q{i}" for i in range(100)]
        got = paired_difference(dict(zip(ids, values, strict=True)), dict(zip(ids, base, strict=True)), resamples=500)
        assert got.mean == pytest.approx((values - base).mean()) and got.queries == 100
        covered += got.low <= 0.05 <= got.high
    assert 180 <= covered <= 199  # 95% of 200, within four standard errors
    # a constant gain on wildly different queries is certain, because the queries are paired
    exact = paired_difference({"a": 0.11, "b": 0.91}, {"a": 0.01, "b": 0.81})
    assert exact.low == pytest.approx(0.1) and exact.high == pytest.approx(0.1)
    with pytest.raises(InputError, match="different queries"):
        paired_difference({"a": 1.0}, {"b": 1.0})


def test_compare_averages_seeds_and_pairs_with_the_base(tmp_path, capsys):
    make_run(tmp_path / "a1", "infonce", 1, (0.3, 0.3))
    make_run(tmp_path / "a2", "infonce", 2, (0.5, 0.5))
    make_run(tmp_path / "b", "combined", 1, (0.1, 0.3))
    base, infonce, combined = compare([tmp_path])["d"]
    assert base.ndcg == pytest.approx(0.3) and base.difference is None
    assert infonce.seeds == [1, 2] and infonce.ndcg == pytest.approx(0.4)
    assert infonce.difference.mean == pytest.approx(0.1) and infonce.steps == [5, 5] and infonce.minutes == 2
    assert [combined.difference.low, combined.difference.high] == pytest.approx([-0.1, -0.1])
    assert compare([tmp_path / "b"], "last")["d"][1].ndcg == 0
    compare_main([str(tmp_path), "--markdown", str(tmp_path / "t.md")])
    assert "infonce" in capsys.readouterr().out
    assert (tmp_path / "t.md").read_text() == markdown(compare([tmp_path]))
    assert "| combined | 1 | 0.2000 | -0.1000 | [-0.1000, -0.1000] |" in (tmp_path / "t.md").read_text()


def test_compare_keeps_settings_apart_and_counts_the_same_run_once(tmp_path, caplog):
    for number, rate in enumerate((1e-5, 2e-5)):
        for seed in (1, 2):
            config = f"module: {{learning_rate: {rate}}}\ncache_dir: c{number}{seed}\nlogger: {{wandb: {seed}}}\n"
            make_run(tmp_path / f"{number}{seed}", "infonce", seed, (0.3 + number / 10, 0.3), config=config)
    names = [(arm.name, arm.seeds) for arm in compare([tmp_path])["d"]]
    rates = [f"infonce (module.learning_rate={rate})" for rate in (1e-05, 2e-05)]
    assert names == [("base", []), (rates[0], [1, 2]), (rates[1], [1, 2])]
    again = tmp_path / "again"
    make_run(again, "infonce", 2, (0.3, 0.3), config="module: {learning_rate: 1e-5}\n")
    assert [(arm.name, arm.seeds) for arm in compare([tmp_path])["d"]] == names
    assert f"{again} and {tmp_path / '02'} are both '{rates[0]}' with seed 2" in caplog.text
    (again / "results.json").write_text((again / "results.json").read_text().replace("0.6", "0.61"))
    with pytest.raises(InputError, match="have other figures"):
        compare([tmp_path])


def test_compare_refuses_what_cannot_be_compared(tmp_path):
    with pytest.raises(InputError, match=r"no results\.json"):
        find_runs([tmp_path])
    make_run(tmp_path / "a", "infonce", 1, (0.3, 0.3))
    make_run(tmp_path / "b", "combined", 1, (0.3, 0.3), base=(0.9, 0.9))
    with pytest.raises(InputError, match="one base model"):
        compare([tmp_path])
    with pytest.raises(SystemExit, match="error: "):
        compare_main([str(tmp_path)])
    (tmp_path / "b" / "results.json").write_text("{")
    assert compare([tmp_path]).unfinished == [tmp_path / "b"]
    assert reason(tmp_path / "b") == "results.json is not a whole results file"


@pytest.mark.parametrize("seed", range(3))
def test_the_hits_that_are_looked_at_have_the_figures_of_all(small_scifact, tmp_path, seed):
    data, random = load_evaluation_set(str(small_scifact)), np.random.default_rng(seed)
    # few values, so that many scores are level where the hits are cut
    sizes = (len(data.queries), 4), (len(data.corpus), 4)
    queries, passages = (random.integers(-1, 2, size).astype(np.float32) for size in sizes)
    metrics, files, given = Metrics(["nDCG@10", "RR@10", "R@20"]), [], []
    for number, looked_at in enumerate((None, 21)):

        def keep(run, append):
            given.append(sum(map(len, run.values())))
            append(run)

        with trec_file(tmp_path / str(number), "tag", 20) as append:
            runs = search_blocks(data, queries, passages, 101, looked_at=looked_at)
            files.append(score_runs(data, runs, metrics, keep_run=partial(keep, append=append)))
    assert files[0] == files[1] and metrics.depth == 20 and given[0] == 20 * 101 > given[1] > 20 * 21
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text()
    assert [Metrics(["nDCG@10", name]).depth for name in ("AP", "P(judged_only=True)@5")] == [None, None]
