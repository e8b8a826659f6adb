"""What evaluates in a run evaluates without one; rankers and metrics of one's own; metrics by name in a run's files."""

import json
import sys

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from omegaconf import OmegaConf

from callbacks import DenseRanker, Evaluation, Evaluator, History, Metrics, Ranking, Reading
from callbacks.evaluation.fusion import FusedRanker
from callbacks.evaluation.sets import open_sets
from datamodules.specs import read_evaluation_specs
from experiments.comparison.formats import csv_text, markdown, print_tables
from experiments.comparison.tables import compare
from experiments.settings.checks import check
from experiments.settings.older_runs import as_now
from experiments.training.train import run_experiment
from helpers.runs import CONF, config_of
from retriever.encoder.text_encoder import TextEncoder
from retriever.errors import InputError

pytestmark = pytest.mark.slow

NAMES = ["nDCG@10", "R@100", "RR@10", "AP@100"]


def evaluator_of(folder, ranker, encoder, corpus, metrics=NAMES, **spec):
    """Without a trainer, a module or a configuration."""
    history = History(folder / "alone", Metrics(metrics))
    history.sets = open_sets(read_evaluation_specs([{"path": str(corpus), **spec}]), Reading(cache_dir=folder / "own"))
    evaluator = Evaluator(ranker, history, Ranking(cache_dir=folder / "own"))
    evaluator.prepare(encoder)
    return evaluator


def test_a_fusion_gets_its_members_hits_whatever_its_metrics_look_at(tiny_encoder, tiny_model, small_scifact, tmp_path):
    other = TextEncoder.from_pretrained(str(tiny_model), pooling="cls", passage_max_length=64)
    found = []
    for name, metrics in {"few": ["nDCG@10"], "all": ["nDCG@10", "AP"]}.items():
        members = {"own": (DenseRanker(), tiny_encoder), "other": (DenseRanker(), other)}
        ranker = FusedRanker(members, {"own": 0.5, "other": 0.5}, depth=110)
        evaluator = evaluator_of(tmp_path / name, ranker, tiny_encoder, small_scifact, metrics)
        evaluator.evaluate(tiny_encoder)
        found.append((tmp_path / name / "alone" / "trec_runs" / "small" / "step-000000.trec").read_text())
    assert found[0] == found[1] and len(found[0].splitlines()) == 20 * 100


def test_a_figure_without_a_trainer_is_that_of_the_run(small_run, small_scifact, tmp_path):
    sample = f"evaluation.datasets=[{{path: {small_scifact}, sample: {{size: 60, depth: 1}}}}]"
    folder = tmp_path / "run"
    results = run_experiment(config_of("module=distillation", *small_run, sample), folder)
    for point, model in {"base": config_of(*small_run).encoder.model, "best": str(folder / "model")}.items():
        encoder = TextEncoder.from_pretrained(model, passage_max_length=64)
        evaluator = evaluator_of(tmp_path / point, DenseRanker(), encoder, small_scifact)
        assert not encoder.training or encoder.train(False)
        figures = evaluator.evaluate(encoder)
        assert figures["small"] == {m: points[point] for m, points in results["datasets"]["small"].items()}
        step = results["steps"][point]
        for kind, ending in {"trec_runs": "trec", "per_query": "json"}.items():
            own = (tmp_path / point / "alone" / kind / "small" / f"step-000000.{ending}").read_text()
            files = folder / kind / "small" / f"step-{step:06d}.{ending}"
            assert own.replace("step-0", "") == files.read_text().replace(f"step-{step}", "")
        assert evaluator.history.per_query("small", 0).keys() == evaluator.history.sets[0].data.queries.keys()
    # by the base model's sample and, unlike the base model's own, without the cache
    encoder = TextEncoder.from_pretrained(config_of(*small_run).encoder.model, passage_max_length=64)
    sampled = {"sample": {"size": 60, "depth": 1}}
    evaluator = evaluator_of(tmp_path / "sampled", DenseRanker(), encoder, small_scifact, **sampled)
    figures = evaluator.evaluate(encoder, 3)
    assert evaluator.history.samples["small"]["passages"] == 60
    for metric, points in results["samples"]["small"]["figures"].items():
        assert figures["small-sample"][metric] == points["base"]["sample"]
    assert list((tmp_path / "sampled" / "alone" / "per_query" / "small-sample").iterdir())


def test_metrics_by_name_are_in_everything_that_a_run_leaves(small_run, tmp_path):
    metrics = "evaluation.metrics=[nDCG@10,'R(rel=2)@1000','P@5']"
    criterion = ["criterion=val/small/P@5", "criterion_mode=max", "allow_test_selection=true"]
    check(config_of(*small_run, metrics, *criterion, "criterion='val/small/R(rel=2)@1000'"))
    with pytest.raises(InputError, match=r"valid values are .*'val/small/P@5'"):
        check(config_of(*small_run, metrics, *criterion, "criterion=val/small/mrr@10"))
    results = run_experiment(config_of(*small_run, metrics, *criterion), tmp_path / "runs" / "a")
    names = ["ndcg@10", "R(rel=2)@1000", "P@5"]
    assert list(results["datasets"]["small"]) == names
    assert results["datasets"]["small"]["R(rel=2)@1000"]["best"] == 0 < results["datasets"]["small"]["P@5"]["best"]
    assert len(results["criterion_by_step"]) == 2
    columns = (tmp_path / "runs" / "a" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {f"val/small/{name}" for name in names} <= set(columns) and "val/small/recall@100" not in columns
    per_query = json.loads((tmp_path / "runs" / "a" / "per_query" / "small" / "step-000000.json").read_text())
    assert list(per_query) == names
    card = (tmp_path / "runs" / "a" / "model" / "README.md").read_text()
    assert "| paired 95% interval | R(rel=2)@1000 | P@5 |" in card and "Recall@100" not in card
    alone = compare([tmp_path / "runs"])
    assert "| R(rel=2)@1000 | P@5 |" in markdown(alone)
    assert csv_text(alone).splitlines()[0].endswith(",pruned,R(rel=2)@1000,P@5")
    # a seed that reports other metrics is another seed of the same arm; tables show what all of them have
    other = ["seed=2", "evaluation.metrics=[nDCG@10,P@5,R@100]", "export=false"]
    run_experiment(config_of(*small_run, *other, *criterion), tmp_path / "runs" / "b")
    [_, arm] = compare([tmp_path / "runs"])["small"]
    assert (arm.seeds, list(arm.figures)) == ([1, 2], ["P@5"])


OWN = """
from callbacks import Metric, Ranker


class Longest(Ranker):
    points = ("base", "last", "best")

    def __init__(self, shortest=False):
        super().__init__()
        self.sign = -1 if shortest else 1

    def rank(self, sets, encoder, step, how):
        for data in sets:
            lengths = [self.sign * len(text) for text in data.corpus.passages.to_pylist()]
            order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)[: how.hits]
            hits = {data.corpus.ids[row].as_py(): float(lengths[row] + step) for row in order}
            yield data, ({query: hits} for query in data.queries)


class Found(Metric):
    name, depth = "found", 1

    def __init__(self, least):
        self.least = least

    def __call__(self, qrels, run):
        return {query: float(len(run[query]) >= self.least) for query in qrels}
"""
YAML = """
defaults: [_evaluation, _self_]
ranker: {_target_: my_evaluation.Longest, shortest: true}
metrics: [nDCG@10, {_target_: my_evaluation.Found, least: 30}]
hits: 30
"""


def test_own_ranker_and_metric_are_a_class_and_a_file(small_run, small_scifact, tmp_path, monkeypatch):
    (tmp_path / "my_evaluation.py").write_text(OWN)
    (tmp_path / "my_conf" / "evaluation").mkdir(parents=True)
    (tmp_path / "my_conf" / "evaluation" / "longest.yaml").write_text(YAML)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "my_evaluation", None)
    del sys.modules["my_evaluation"]

    def config(*options):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            path = f"hydra.searchpath=[file://{tmp_path}/my_conf]"
            return compose("run", ["evaluation=longest", *small_run, path, *options])

    results = run_experiment(config(), tmp_path / "run")
    found = results["datasets"]["small"]
    assert list(found) == ["ndcg@10", "found"] and set(found["found"].values()) == {1.0}
    assert len(set(found["ndcg@10"].values())) == 1 and results["steps"]["last"] == 8
    assert {p.name for p in (tmp_path / "run" / "trec_runs" / "small").iterdir()} == {
        f"step-{step:06d}.trec" for step in (0, 4, 8)
    }
    first = (tmp_path / "run" / "trec_runs" / "small" / "step-000004.trec").read_text().splitlines()
    assert len(first) == 20 * 30 and float(first[0].split()[4]) > float(first[29].split()[4])
    with pytest.raises(InputError, match="unexpected keyword argument 'shortst'"):
        run_experiment(config("+evaluation.ranker.shortst=true"), tmp_path / "wrong")
    with pytest.raises(InstantiationException, match="small has a sample, and Longest searches none"):
        sampled = f"evaluation.datasets=[{{path: {small_scifact}, sample: {{size: 9}}}}]"
        run_experiment(config(sampled), tmp_path / "wrong")
    with pytest.raises(InputError, match=r"evaluation\.hits is 5; ndcg@10 looks at 10 hits"):
        run_experiment(config("evaluation.hits=5"), tmp_path / "wrong")


LONG_FIRST = """
from functools import cached_property

from callbacks import Metric
from datamodules.corpus import load_corpus


class LongFirst(Metric):
    name = "long_first"

    def __init__(self, corpus, words=20):
        self.corpus, self.words = corpus, words

    @cached_property
    def long(self):
        corpus = load_corpus(self.corpus)
        texts = zip(corpus.ids.to_pylist(), corpus.passages.to_pylist())
        return {passage for passage, text in texts if len(text.split()) > self.words}

    def __call__(self, qrels, run):
        first = {query: max(hits, key=lambda p: (hits[p], p)) for query, hits in run.items() if hits}
        return {query: float(first.get(query) in self.long) for query in qrels}


class Judged(Metric):
    name = "judged"

    def __call__(self, qrels, run):
        return {query: 1.0 for query in qrels}
"""


def graded_set(folder, scifact):
    """40 passages, 24 of them of more than 20 words, and 6 queries; the last one has no judgement of grade 2."""
    corpus, queries, _ = scifact
    texts = [
        " ".join(text.split()[: 12 if row % 5 < 2 else 40]) for row, text in enumerate(corpus.texts[:40].to_pylist())
    ]
    (folder / "qrels").mkdir(parents=True)
    passages = [json.dumps({"_id": f"d{row}", "text": text}) for row, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("\n".join(passages))
    asked = [json.dumps({"_id": f"g{n}", "text": text}) for n, text in enumerate(list(queries.values())[-6:])]
    (folder / "queries.jsonl").write_text("\n".join(asked))
    grades = [
        (f"g{n}", f"d{6 * n + k}", grade) for n in range(6) for k, grade in enumerate((2, 1, 0) if n < 5 else (1,))
    ]
    lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, line)) for line in grades)]
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines))
    return {f"d{row}": len(text.split()) for row, text in enumerate(texts)}


def test_graded_recall_and_the_length_of_first_hits_in_two_runs(small_run, scifact, tmp_path, monkeypatch, capsys):
    lengths = graded_set(tmp_path / "graded", scifact)
    (tmp_path / "first_hits.py").write_text(LONG_FIRST)
    monkeypatch.syspath_prepend(tmp_path)
    own = f"{{_target_: first_hits.LongFirst, corpus: {tmp_path}/graded}}, {{_target_: first_hits.Judged}}"
    options = [
        f"evaluation.datasets=[{{path: {tmp_path}/graded}}]",
        f"evaluation.metrics=[nDCG@10,'R(rel=2)@1000',{own}]",
        "export=false",
    ]
    check(config_of(*small_run, *options))
    for module in ("distillation", "infonce"):
        folder = tmp_path / "runs" / module
        results = run_experiment(config_of(*small_run, *options, f"module={module}", f"name={module}"), folder)
        assert set(results["datasets"]["graded"]["R(rel=2)@1000"].values()) == {0.83333}  # all are found, g5 has none
        header = (folder / "metrics.csv").read_text().splitlines()[0].split(",")
        assert {"val/graded/R(rel=2)@1000", "val/graded/long_first"} <= set(header)
        for path in (folder / "trec_runs" / "graded").iterdir():
            lines = [line.split() for line in path.read_text().splitlines()]
            first = {line[0]: float(lengths[line[2]] > 20) for line in lines if line[3] == "1"}
            assert (
                json.loads((folder / "per_query" / "graded" / f"{path.stem}.json").read_text())["long_first"] == first
            )
    comparison = compare([tmp_path / "runs"])
    assert "| R(rel=2)@1000 | long_first | judged |" in markdown(comparison)
    print_tables(comparison)
    shown = capsys.readouterr().out
    assert "R(rel=2)@1000 ┃" in shown and "0.8333 │" in shown
    with pytest.raises(InputError, match="unexpected keyword argument 'least'"):
        check(config_of(*small_run, "evaluation.metrics=[nDCG@10,{_target_: first_hits.Judged, least: 3}]"))


def test_runs_of_before_are_read(small_run, tmp_path):
    for name in ("BeirEvaluation", "RerankEvaluation"):
        group = [] if name == "BeirEvaluation" else ["evaluation=rerank", "evaluation.dense=null"]
        now = OmegaConf.to_container(config_of(*group, *small_run), resolve=True)
        before = {**now, "evaluation": {**now["evaluation"], "_target_": f"callbacks.{name}"}}
        del before["evaluation"]["metrics"]
        assert as_now(before) == now
    evaluation = Evaluation([], tmp_path, ranker=DenseRanker())
    for name in ("BeirEvaluation", "RerankEvaluation"):
        checkpoint = {"callbacks": {name: {"base": {"x": {}}, "history": []}}}
        evaluation.on_load_checkpoint(None, None, checkpoint)
        assert checkpoint["callbacks"].keys() == {evaluation.state_key}
        evaluation.load_state_dict(checkpoint["callbacks"][evaluation.state_key])
        assert evaluation.history.base == {"x": {}} and not evaluation.history.steps
