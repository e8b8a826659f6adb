"""experiments.evaluate: models as they are typed, their figures, tables and averages, jobs, ranks, and going on."""

import json
import logging
import re
import shutil

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from omegaconf import OmegaConf
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from callbacks.evaluation.metrics import score_run
from callbacks.evaluation.vectors import PassageIndex, Vectors
from callbacks.reporting.statistics import paired_test
from datamodules.caches import embed
from datamodules.corpus import load_evaluation_set
from datamodules.hits import Hits, bm25_search, fuse_scores
from datamodules.specs import read_evaluation_specs
from experiments.cli.errors import explain
from experiments.evaluate import evaluate, show
from experiments.evaluation.models import Model
from experiments.evaluation.published import published_figures, published_of
from experiments.evaluation.summary import print_summary, summarise
from experiments.evaluation.typed import as_overrides
from experiments.training.train import run_experiment
from helpers.processes import start
from helpers.runs import CONF, config_of
from retriever.encoder.text_encoder import TextEncoder
from retriever.errors import InputError

pytestmark = pytest.mark.slow


def config(*typed):
    """The configuration of ``experiments.evaluate`` with this behind it."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("evaluate", as_overrides(typed))


def figures(folder, dataset="small"):
    """Metric → figure, from a model's folder."""
    found = json.loads((folder / "results.json").read_text())["datasets"][dataset]
    return {metric: points["best"] for metric, points in found.items()}


@pytest.fixture
def options(small_scifact, tmp_path):
    return [f"sets={small_scifact}", f"output_dir={tmp_path}", "trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_model, small_scifact, small_lists):
    """Arm → the folder of its run, two-sided and with frozen passages."""
    folder = tmp_path_factory.mktemp("runs")
    data = f"data.train=[{{path: {small_lists}, corpus: {small_scifact}}}]"
    common = [f"encoder.model={tiny_model}", "encoder.passage_max_length=64", data, "data.dev_fraction=0.25"]
    common += ["data.dev=null", "data.batch_size=8", f"evaluation.datasets=[{{path: {small_scifact}}}]"]
    common += ["module.learning_rate=1e-2", "trainer.max_epochs=1", "trainer.accelerator=cpu", "logger=csv"]
    common += ["early_stopping.patience=null", f"output_dir={folder}", "module=distillation"]
    for arm, frozen in {"two_sided": "true", "query_side": "false"}.items():
        run_experiment(config_of(*common, f"name={arm}", f"module.train_passage_encoder={frozen}"), folder / arm)
    return {arm: folder / arm for arm in ("two_sided", "query_side")}


def test_a_run_has_the_figures_that_it_recorded(runs, options, tmp_path):
    typed = [str(runs["two_sided"]), str(runs["query_side"] / "model")]
    for folder, arm in zip(evaluate(config(*typed, *options), tmp_path / "out"), runs, strict=True):
        recorded = json.loads((runs[arm] / "results.json").read_text())
        assert figures(folder) == {metric: points["best"] for metric, points in recorded["datasets"]["small"].items()}
        assert (folder / "queries" / "small.json").read_text() == (runs[arm] / "queries" / "small.json").read_text()
        step = recorded["steps"]["best"]
        trec = (runs[arm] / "trec_runs" / "small" / f"step-{step:06d}.trec").read_text()
        assert (folder / "trec_runs" / "small" / "step-000000.trec").read_text() == trec.replace(
            f" step-{step}\n", " step-0\n"
        )


def test_models_bm25_and_fusions_are_what_a_plain_computation_gives(tiny_model, small_scifact, options, tmp_path):
    folders = evaluate(config(str(tiny_model), "bm25", f"bm25+{tiny_model.name}", *options), tmp_path)
    data = load_evaluation_set(str(small_scifact))
    passages, queries = data.corpus.passages.to_pylist(), list(data.queries.values())
    encoder = TextEncoder.from_pretrained(str(tiny_model))
    texts = {"query": queries, "passage": passages}
    embedded = [embed(encoder.tokenize(of, kind), encoder, 4096) for kind, of in texts.items()]
    cosines = embedded[0] @ embedded[1].T
    order = np.argsort(-cosines, axis=1, kind="stable")
    dense, bm25 = Hits(np.take_along_axis(cosines, order, 1), order), bm25_search(passages, queries, 1000)
    best = [Hits(hits.scores[:, :100], hits.rows[:, :100]) for hits in (bm25, dense)]
    for folder, hits in zip(folders, (dense, bm25, fuse_scores(best, [0.5, 0.5], 200)), strict=True):
        run = {
            query: {data.corpus.ids[int(r)].as_py(): float(s) for s, r in zip(*found, strict=True) if r >= 0}
            for query, *found in zip(data.queries, hits.scores, hits.rows, strict=True)
        }
        assert figures(folder) == pytest.approx(score_run(data.qrels, run)[0], abs=1e-5)


def test_the_table_pairs_models_with_the_base(tiny_model, runs, options, tmp_path, capsys):
    typed = config(str(tiny_model), str(runs["two_sided"]), "bm25", *options, "base=bm25")
    folders = evaluate(typed, tmp_path / "out")
    show(typed, tmp_path / "out")
    said = capsys.readouterr().out
    assert "difference to bm25" in said and "comparison.html" in said and "seeds" not in said and "step" not in said
    for folder, name in zip(folders, ("tiny_model0", "two_sided", "bm25"), strict=True):
        shown = re.search(rf"│ {name} +│ +(\d\.\d+) │", said.split("difference to")[1])
        assert float(shown[1]) == pytest.approx(figures(folder)["ndcg@10"], abs=1e-4)
    values = [json.loads((f / "per_query/small/step-000000.json").read_text())["ndcg@10"] for f in folders]
    test = paired_test(
        [np.array([[v[q] for q in sorted(v)] for v in (values[1],)])],
        [np.array([[values[2][q] for q in sorted(values[2])]])],
    )
    rows = {
        row.split("|")[1].strip(): row
        for row in (tmp_path / "out" / "comparison.md").read_text().splitlines()
        if row.startswith("| ")
    }
    assert f"{test.mean:+.4f}" in rows["two_sided"] and f"[{test.low:+.4f}, {test.high:+.4f}]" in rows["two_sided"]
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert page.count("<figure>") == 2 and "against the step" not in page  # nothing was trained, so there are no curves
    assert not (tmp_path / "out" / "comparison-curves.png").exists()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [row["name"] for row in summary["ndcg@10"]] == ["tiny_model0", "two_sided", "bm25"]
    assert [row["values"]["small"] for row in summary["mrr@10"]] == [figures(f)["mrr@10"] for f in folders]


def test_what_is_evaluated_is_not_again_until_it_changes(tiny_model, small_scifact, options, tmp_path, caplog):
    model, data = (
        shutil.copytree(source, tmp_path / name / source.name)
        for source, name in ((tiny_model, "m"), (small_scifact, "d"))
    )
    typed = config(
        str(model), "bm25", *options[1:], f"sets=[{{path: {data}}}, {{path: {data}, split: train, name: other}}]"
    )
    out = tmp_path / "out"
    first = {f: (figures(f), figures(f, "other")) for f in evaluate(typed, out)}

    caplog.set_level(logging.INFO)

    def evaluated():
        caplog.clear()
        evaluate(typed, out)
        return sorted(
            r.getMessage().split(" nDCG")[0]
            for r in caplog.records
            if "nDCG@10" in r.getMessage() and r.name.endswith("work")
        )

    assert evaluated() == []
    assert {f: (figures(f), figures(f, "other")) for f in first} == first
    (out / "bm25" / "evaluated" / "other.json").write_text("{")  # torn
    (out / "bm25" / "results.json").unlink()
    assert evaluated() == ["bm25: other"]
    judged = data / "qrels" / "test.tsv"
    judged.write_text("\n".join(judged.read_text().splitlines()[:-1]) + "\n")
    assert evaluated() == ["bm25: small", f"{model.name}: small"]
    encoder = TextEncoder.from_pretrained(str(model))
    with torch.no_grad():
        next(encoder.backbone.parameters()).mul_(1.5)
    encoder.save(model)
    assert evaluated() == [f"{model.name}: other", f"{model.name}: small"]


def test_parts_of_a_set_count_as_one_in_averages():
    specs = read_evaluation_specs(
        [{"path": "a"}, {"path": "f/x", "part_of": "forums"}, {"path": "f/y", "part_of": "forums"}]
    )
    values = {"a": {"ndcg@10": 0.6}, "x": {"ndcg@10": 0.1}, "y": {"ndcg@10": 0.3}}
    [row] = summarise({"m": Model("m", 0, {}, tuple)}, [values], specs, "ndcg@10")
    assert row.values == pytest.approx({"a": 0.6, "forums": 0.2}) and row.average == pytest.approx(0.4)


def test_a_weighted_difference_is_that_of_the_average(tmp_path, small_scifact, tiny_model, options):
    forum = f"path: {small_scifact}, split: train, part_of: forums"
    sets = f"sets=[{{path: {small_scifact}}}, {{{forum}, name: x}}, {{{forum}, name: y}}]"
    typed = config(str(tiny_model), "bm25", *options[1:], sets)
    folders = evaluate(typed, tmp_path / "out")
    show(typed, tmp_path / "out")
    averages = [(figures(f)["ndcg@10"] + figures(f, "x")["ndcg@10"]) / 2 for f in folders]
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "average of small, forums" in text
    row = next(line for line in text.split("average of small, forums")[1].splitlines() if line.startswith("| bm25"))
    assert f"| {averages[1]:.4f} | {averages[1] - averages[0]:+.4f} |" in row


def test_what_is_typed_becomes_settings(tmp_path, runs):
    assert as_overrides(["bm25+minilm", "sets=scifact,cranfield", "--cfg", "job"]) == [
        "--cfg",
        "job",
        "+models.bm25={bm25: {k1: 0.9, b: 0.4, language: 'english'}}",
        "+encoder@models.minilm.encoder=minilm",
        "+models.bm25_minilm={fusion: {bm25: 0.5, minilm: 0.5}}",
        "sets=[scifact,cranfield]",
        "order=[bm25,minilm,bm25_minilm]",
    ]
    assert as_overrides(["-m", "a/b-c", "bm25"])[-1] == "only=b_c,bm25"
    models = config(str(runs["query_side"]), str(runs["query_side"] / "model"), "org/name", "minilm", "minilm").models
    assert set(models) == {"query_side", "name", "minilm"}
    assert models.name.encoder.model == "org/name" and models.query_side.run == str(runs["query_side"])
    with pytest.raises(InputError, match=r"is no model: it holds 2 run\(s\)\. Name one, such as .*query_side\.$"):
        as_overrides([str(runs["query_side"].parent)])
    bm25 = config("bm25", "models.bm25.bm25.k1=1.2").models.bm25
    assert bm25 == {"bm25": {"k1": 1.2, "b": 0.4, "language": "english"}}
    mixed = config("bm25", "sets=[scifact,{path: a b, relevance_level: 2},c]").sets
    assert [[*part.datasets] for part in mixed.values()] == [
        [{"path": "scifact"}],
        [{"path": "a b", "relevance_level": 2}, {"path": "c"}],
    ]
    everything = config("bm25", "sets=beir14").sets
    specs = read_evaluation_specs([spec for part in everything.values() for spec in part.datasets])
    assert len({spec.part_of or spec.shown_name for spec in specs}) == 14 and len(specs) == 25
    for path in sorted((CONF / "sets").glob("*.yaml")):
        assert read_evaluation_specs(
            [s for part in config("bm25", f"sets={path.stem}").sets.values() for s in part.datasets]
        )


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ([], "There is no model to evaluate. Name some"),
        (["bm25", "base=minilm"], "base is 'minilm'"),
        (["bm25", "evaluation.hits=0"], "evaluation.hits is 0"),
        (["bm25", "evaluation.metrics=[nDCG@10,R@2000]"], "evaluation.hits=2000"),
        (["bm25", "sets=nowhere"], "There is no data set 'nowhere'"),
        (["bm25", "sets=cranfeild"], "Names are .* Did you mean 'cranfield'[?]"),
        (["bm25", "sets=nanobier"], "Names are arguana, beir14, .* Did you mean 'nanobeir'[?]"),
        (["bm25", "sets=[{ir_dataset: a}]"], "there are path, .*, ir_datasets, hub. Did you mean 'ir_datasets'[?]"),
        (["bm52", "sets=cranfield"], "'bm52' is no model: .* Did you mean 'bm25'[?]"),
        (["minlim+bm25"], "Did you mean 'minilm'[?]"),
        (["bm25", "sets=[{hub: a/b},scifact,{hub: a/c}]"], "hub:a/b is not on this machine.* Nor can .* had: hub:a/c."),
        (["bm25", "+models.x={fusion: {bm25: 1, minilm: 1}}"], "models.x.fusion: a member is 'minilm'"),
        (["bm25", "+models.x={bm25: {}, run: a}"], "give exactly one of them"),
        (["+models.x={encoder: {modle: a}}"], "modle"),
    ],
)
def test_what_is_wrong_is_said(typed, said, tmp_path):
    with pytest.raises(InputError, match=re.sub(r"\.(?![*])", r"\.", said)):
        evaluate(config(*typed, f"output_dir={tmp_path}", "trainer.accelerator=cpu"), tmp_path)


def test_published_figures_stand_beside():
    minilm = Model("m", 0, {"encoder": {"model": "sentence-transformers/all-MiniLM-L6-v2"}}, tuple)
    assert published_of(minilm)["scifact"] == pytest.approx(0.6451)
    assert published_of(Model("m", 0, {"encoder": {"model": "x"}}, tuple)) == {}
    specs = read_evaluation_specs([{"path": "scifact"}, {"path": "nfcorpus", "split": "dev"}])
    [row] = summarise({"m": minilm}, [{"scifact": {"ndcg@10": 0.6}, "nfcorpus": {"ndcg@10": 0.3}}], specs, "ndcg@10")
    assert row.published == {"scifact": pytest.approx(0.6451)}
    assert all(0 < value < 1 for sets in published_figures().values() for value in sets.values())


@pytest.mark.parametrize(
    ("model", "average"),
    [
        ("BAAI/bge-base-en-v1.5", 0.5407),
        ("Alibaba-NLP/gte-base-en-v1.5", 0.5491),
        ("intfloat/e5-base-v2", 0.5091),
        ("sentence-transformers/all-MiniLM-L6-v2", 0.4233),
        ("manveertamber/cadet-embed-base-v1", 0.5516),
    ],
)
def test_published_averages_over_the_papers_fourteen_sets(model, average, capsys):
    specs = read_evaluation_specs([s for part in config("bm25", "sets=beir14").sets.values() for s in part.datasets])
    figure = {spec.shown_name: {"ndcg@10": 0.5} for spec in specs}
    [row] = summarise({"m": Model("m", 0, {"encoder": {"model": model}}, tuple)}, [figure], specs, "ndcg@10")
    published = np.mean(list(row.published.values()))
    assert published == pytest.approx(average, abs=1e-4)
    print_summary({"ndcg@10": [row]})
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == f"m on the average of these 14: nDCG@10 {0.5 - published:+.4f} from the published {published:.4f}"


def test_jobs_and_ranks_give_the_same(tiny_model, options, tmp_path):
    """The command itself: a job for each model, and two processes that share each corpus."""
    typed = [str(tiny_model), "bm25", f"bm25+{tiny_model.name}", *options]
    evaluate(config(*typed), tmp_path / "plain")
    jobs = start(tmp_path, *typed, "-m", f"hydra.sweep.dir={tmp_path / 'jobs'}", module="experiments.evaluate")
    jobs.join()
    assert jobs.exitcode == 0
    ranks = [*typed, "trainer.devices=2", f"hydra.run.dir={tmp_path / 'ranks'}"]  # Lightning starts the other one
    two = start(tmp_path, *ranks, module="experiments.evaluate")
    two.join()
    assert two.exitcode == 0
    for name in ("tiny_model0", "bm25", f"bm25_{tiny_model.name}"):
        for other in ("jobs", "ranks"):
            assert figures(tmp_path / other / name) == figures(tmp_path / "plain" / name)
    assert (tmp_path / "jobs" / "comparison.html").is_file() and (tmp_path / "ranks" / "summary.json").is_file()


def test_a_run_folder_of_others_calls_no_code_of_theirs(runs, tmp_path, monkeypatch, options):
    folder = tmp_path / "evil_run"
    shutil.copytree(runs["query_side"], folder)
    (folder / "evil.py").write_text("def encoder(**_):\n    open('ran', 'w').close()\n")
    settings = OmegaConf.load(folder / "config.yaml")
    settings.encoder = {"_target_": "evil_run.evil.encoder", "model": "x"}
    OmegaConf.save(settings, folder / "config.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match=r"evil_run\.evil\.encoder.*may not call"):
        evaluate(config(str(folder), *options), tmp_path / "out")
    assert not (tmp_path / "ran").exists()


def test_a_cross_encoder_reranks_alone_and_fused(tmp_path, tiny_model, options, small_scifact):
    torch.manual_seed(2)
    cross = tmp_path / "cross"
    BertForSequenceClassification(BertConfig.from_pretrained(tiny_model, num_labels=1)).save_pretrained(cross)
    BertTokenizer.from_pretrained(tiny_model).save_pretrained(cross)
    target = "retriever.cross_encoder.CrossEncoder.from_pretrained"
    spec = f"+models.cross={{encoder: {{_target_: {target}, model: {cross}, pair_max_length: 64}}}}"
    fused = "+models.both={fusion: {bm25: 0.5, cross: 0.5}}"
    typed = config("bm25", spec, fused, *options, "evaluation.rerank_depth=10")
    bm25, alone, both = (evaluated_run(f) for f in evaluate(typed, tmp_path / "out"))
    assert len({*map(str, (bm25, alone, both))}) == 3
    for query, hits in alone.items():
        assert set(hits) == set(list(bm25[query])[:10]) and list(hits) != list(bm25[query])[:10]


def evaluated_run(folder):
    """Query id → passage ids, best first."""
    path = max((folder / "trec_runs" / "small").glob("*.trec"))  # of a re-ranker, behind the order that it is given
    found = {}
    for line in path.read_text().splitlines():
        query, _, passage, *_ = line.split(" ")
        found.setdefault(query, []).append(passage)
    return found


def test_other_prompts_are_evaluated_anew(tiny_model, options, tmp_path):
    first = evaluate(config(str(tiny_model), *options), tmp_path / "out")
    before = figures(first[0])
    prompt = "models.tiny_model0.encoder.query_prompt='what about the claim that '"
    again = evaluate(config(str(tiny_model), *options, prompt), tmp_path / "out")
    assert again == first and figures(again[0]) != before


def test_an_error_of_an_encoder_names_its_place(tiny_model, options, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "plain", ignore=shutil.ignore_patterns("modules.json", "1_Pooling"))
    with pytest.raises(InstantiationException) as raised:
        evaluate(config(str(model), *options), tmp_path / "out")
    assert "set models.plain.encoder.pooling to one of cls, mean, last" in explain(raised.value)
    evaluate(config(str(model), *options, "models.plain.encoder.pooling=mean"), tmp_path / "out")


def test_a_path_is_a_model_whatever_is_in_it(tmp_path, monkeypatch):
    (tmp_path / "lr=0.1" / "m").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert as_overrides(["lr=0.1/m"])[1] == "models.m.encoder.model='lr=0.1/m'"


def test_lists_that_ship_are_a_set(tmp_path):
    sets = "sets=[{path: scifact, lists: scifact/lists/synthetic.dev.parquet, types: [keywords]}]"
    [folder] = evaluate(config("bm25", sets, "trainer.accelerator=cpu", f"output_dir={tmp_path}"), tmp_path)
    assert 0 < figures(folder, "scifact")["ndcg@10"] < 1


def test_rows_of_one_name_are_told_apart():
    models = {key: Model("distillation", seed, {}, tuple) for key, seed in (("a", 1), ("b", 2))}
    figures_of = [{"d": {"ndcg@10": value}} for value in (0.1, 0.2)]
    rows = summarise(models, figures_of, read_evaluation_specs([{"path": "d"}]), "ndcg@10")
    assert [row.name for row in rows] == ["distillation (a)", "distillation (b)"]


def test_smaller_vectors_stand_in_one_table(tiny_model, runs, options, tmp_path, capsys):
    forms = "vectors=[int8,binary,binary_rescored,16,16_int8]"
    typed = config(str(tiny_model), str(runs["query_side"]), "bm25", *options, forms)
    folders = evaluate(typed, tmp_path / "out")
    names = ["tiny_model0", "query_side"]
    suffixes = ["", "_int8", "_binary", "_binary_rescored", "_16", "_16_int8"]
    assert [f.name for f in folders] == [*(name + form for name in names for form in suffixes), "bm25"]
    width = TextEncoder.from_pretrained(str(tiny_model)).dimension
    sizes = [4 * width, width, width // 8, width // 8, 64, 16]
    data = load_evaluation_set(options[0].removeprefix("sets="))
    encoder = TextEncoder.from_pretrained(str(tiny_model))
    texts = {"query": list(data.queries.values()), "passage": data.corpus.passages.to_pylist()}
    queries, passages = (embed(encoder.tokenize(of, kind), encoder, 4096) for kind, of in texts.items())
    for folder, form, size in zip(folders, suffixes, sizes, strict=False):
        results = json.loads((folder / "results.json").read_text())
        assert results["search"]["small"]["bytes_per_passage"] == size
        assert results["search"]["small"]["search_ms_per_query"] > 0
        index = PassageIndex(passages, Vectors.of(form[1:]) if form else None)
        scores, rows = index.search(queries, 1000)
        ids = data.corpus.ids.to_pylist()
        run = {
            q: {ids[r]: float(s) for s, r in zip(*of, strict=True)}
            for q, *of in zip(data.queries, scores, rows, strict=True)
        }
        assert figures(folder)["ndcg@10"] == pytest.approx(score_run(data.qrels, run)[0]["ndcg@10"], abs=2e-3)
    assert json.loads((folders[-1] / "results.json").read_text())["search"] == {}
    show(typed, tmp_path / "out")
    said = capsys.readouterr().out
    assert "smaller vectors" in said and "bytes a passage" in said and "ms a query, small" in said
    assert re.search(rf"│ tiny_model0 binary_rescored +│ +\d\.\d+ │ +{width // 8} │ +\d+\.\d+ │", said)
    assert "difference to tiny_model0" in said, "with intervals, as models have them"
    only = config(str(tiny_model), "bm25", *options, forms, "only=tiny_model0")
    assert [f.name for f in evaluate(only, tmp_path / "out")] == [f"tiny_model0{form}" for form in suffixes]
    with pytest.raises(InputError, match="'int4' is no form of vectors"):
        evaluate(config(str(tiny_model), *options, "vectors=[int4]"), tmp_path / "wrong")
