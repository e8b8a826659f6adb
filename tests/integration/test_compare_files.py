"""Comparisons of files that other tools wrote: bm25s, BEIR, sentence-transformers, ir_measures, trec_eval and ours."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import bm25s
import ir_measures
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from beir.util import save_runfile
from hydra import compose, initialize_config_dir
from ir_measures import R, nDCG
from scipy import stats
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from callbacks.reporting.statistics import holm
from datamodules.corpus import SHIPPED, load_evaluation_set
from experiments.compare import main
from experiments.comparison.files import _folder_of
from experiments.comparison.formats import markdown
from experiments.comparison.tables import compare
from experiments.evaluate import evaluate
from experiments.evaluation.typed import as_overrides
from helpers.run_folders import values, write_run
from helpers.runs import CONF
from retriever.errors import InputError

pytestmark = pytest.mark.slow

QRELS = SHIPPED / "cranfield" / "qrels" / "test.tsv"
QRELS_OF_D = "query-id\tcorpus-id\tscore\n" + "".join(f"q{i}\tp{i}\t1\n" for i in range(40))


@pytest.fixture(scope="module")
def cranfield():
    return load_evaluation_set(str(SHIPPED / "cranfield"), empty_passages="keep")


@pytest.fixture(scope="module")
def by_bm25s(cranfield, tmp_path_factory):
    """Three rankings of bm25s, of other settings: query → passage → score, and the files that BEIR writes of them."""
    ids, folder, found = cranfield.corpus.ids.to_pylist(), tmp_path_factory.mktemp("bm25s"), {}
    tokens = bm25s.tokenize(cranfield.corpus.passages.to_pylist(), show_progress=False)
    asked = bm25s.tokenize(list(cranfield.queries.values()), show_progress=False)
    for name, b in (("bm25-seed1", 0.4), ("bm25-seed2", 0.75), ("flat", 0.0)):
        index = bm25s.BM25(k1=0.9, b=b, corpus=np.array(ids))
        index.index(tokens, show_progress=False)
        documents, scores = index.retrieve(asked, k=100, show_progress=False, backend_selection="numpy")
        found[name] = bm25s.utils.beir.postprocess_results_for_eval(documents, scores, list(cranfield.queries))
        found[name] = {q: {str(p): score for p, score in hits.items()} for q, hits in found[name].items()}
        save_runfile(str(folder / f"{name}.trec"), found[name])
    return found, folder


@pytest.fixture(scope="module")
def ours(tiny_model, tmp_path_factory):
    """A run folder of experiments.evaluate on Cranfield."""
    folder = tmp_path_factory.mktemp("ours")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(
            "evaluate",
            as_overrides([str(tiny_model), "sets=cranfield", f"output_dir={folder}", "trainer.accelerator=cpu"]),
        )
    return evaluate(config, folder / "out")[0]


def arm_of(comparison, name, dataset="cranfield"):
    return next(arm for arm in comparison[dataset] if arm.name == name)


def ndcg_of(path, qrels=QRELS):
    """Query id → nDCG@10 by ir_measures, on files as they lie there."""
    judged = [
        ir_measures.Qrel(query, passage, int(grade))
        for query, passage, grade in (line.split("\t") for line in qrels.read_text().splitlines()[1:])
    ]
    found = ir_measures.iter_calc([nDCG @ 10], judged, ir_measures.read_trec_run(str(path)))
    return {metric.query_id: metric.value for metric in found}, judged


def test_figures_are_those_of_ir_measures_and_scipy(by_bm25s, ours, capsys):
    """Two rankings of bm25s and one of ours, by one command, from their files alone."""
    [trec] = (ours / "trec_runs" / "cranfield").iterdir()
    files = {"bm25": by_bm25s[1] / "bm25-seed1.trec", "flat": by_bm25s[1] / "flat.trec", "step-000000": trec}
    comparison = compare(list(files.values()), qrels=QRELS)
    assert [arm.name for arm in comparison["cranfield"]] == list(files) and comparison.base == "bm25"
    p_values = []
    of_base, judged = ndcg_of(files["bm25"])
    for name, path in files.items():
        arm, (of_each, _) = arm_of(comparison, name), ndcg_of(path)
        assert comparison.measured["cranfield"].query_ids == sorted(of_each)
        assert comparison.measured["cranfield"].values[name][0].tolist() == [of_each[q] for q in sorted(of_each)]
        recall = ir_measures.calc_aggregate([R @ 100], judged, ir_measures.read_trec_run(str(path)))[R @ 100]
        assert arm.figures == {"recall@100": pytest.approx(recall, abs=1e-5)}
        assert arm.ndcg == pytest.approx(np.mean(list(of_each.values())), abs=1e-12)
        if name == "bm25":
            assert arm.difference is None
            continue
        pairs = np.array([[of_each[q], of_base[q]] for q in of_base]).T
        difference = pairs[0] - pairs[1]
        test = stats.permutation_test(
            pairs,
            lambda a, b, axis: np.mean(a - b, axis=axis),
            permutation_type="samples",
            n_resamples=20_000,
            vectorized=True,
            random_state=np.random.default_rng(5),
        )
        again = stats.bootstrap([difference], np.mean, method="percentile", random_state=np.random.default_rng(5))
        width = again.confidence_interval.high - again.confidence_interval.low
        error = 4 * np.sqrt(2 * max(test.pvalue * (1 - test.pvalue), 1e-4) / 10_000)  # of both, by their draws
        assert arm.difference.mean == pytest.approx(test.statistic, abs=1e-12)
        assert arm.difference.p == pytest.approx(test.pvalue, abs=error)
        assert (arm.difference.low, arm.difference.high) == pytest.approx(again.confidence_interval, abs=0.03 * width)
        assert (arm.difference.wins, arm.difference.losses) == ((difference > 1e-6).sum(), (difference < -1e-6).sum())
        p_values.append(arm.difference.p)
    assert [arm_of(comparison, name).p_holm for name in list(files)[1:]] == holm(p_values)
    main([*map(str, files.values()), "--qrels", str(QRELS)])
    said = capsys.readouterr().out
    assert "difference to bm25" in said and f"{arm_of(comparison, 'flat').ndcg:.4f}" in said
    assert "step-000000" in said and "minutes" not in said and "seeds" not in said


def test_files_and_run_folders_stand_in_one_table(by_bm25s, ours, tmp_path):
    seeds = [by_bm25s[1] / f"bm25-seed{seed}.trec" for seed in (1, 2)]
    comparison = compare([ours, *seeds], qrels=QRELS)
    name = json.loads((ours / "results.json").read_text())["name"]
    assert [(arm.name, arm.seeds) for arm in comparison["cranfield"]] == [(name, [0]), ("bm25", [1, 2])]
    assert comparison.base == name
    ndcg = [np.mean(list(ndcg_of(path)[0].values())) for path in seeds]
    assert arm_of(comparison, "bm25").ndcg == pytest.approx(np.mean(ndcg))
    own = json.loads((ours / "per_query/cranfield/step-000000.json").read_text())["ndcg@10"]
    assert arm_of(comparison, "bm25").difference.mean == pytest.approx(np.mean(ndcg) - np.mean(list(own.values())))
    first = compare([*seeds, ours], qrels=QRELS)
    assert first.base == "bm25" and compare([*seeds, ours], base=name, qrels=QRELS).base == name
    assert "what similarity laws must be obeyed" in next(iter(comparison.measured["cranfield"].texts.values()))["query"]
    cut = tmp_path / "cut.tsv"
    cut.write_text("".join(QRELS.read_text().splitlines(keepends=True)[:300]))
    with pytest.raises(InputError, match=r"no data set of the run folders has these: cranfield 225 \(\d+ the same\)"):
        compare([ours, *seeds], qrels=cut)


def test_a_trained_run_keeps_its_base_and_its_home(tmp_path):
    """Arms of files have no model before training, and are neither at home nor abroad."""
    (tmp_path / "d.tsv").write_text(QRELS_OF_D)
    config = {
        "evaluation": {"datasets": [{"path": "d"}, {"path": "e"}]},
        "data": {"train": [{"path": "l", "corpus": "d"}]},
    }
    write_run(tmp_path / "run", "mine", 1, {"d": values(1), "e": values(2, 20)}, config=config)
    (tmp_path / "other.trec").write_text("".join(f"q{i} Q0 p{i % 30} 1 2.5 x\n" for i in range(40)))
    paths = [tmp_path / "run", tmp_path / "other.trec"]
    comparison = compare(paths, qrels=tmp_path / "d.tsv")
    assert [(arm.name, arm.difference is None) for arm in comparison["d"]] == [
        ("base", True),
        ("mine", False),
        ("other", True),
    ]
    assert arm_of(comparison, "other", "d").ndcg == 0.75 and [arm.name for arm in comparison["e"]] == ["base", "mine"]
    [row] = comparison.forgetting
    assert (row.name, row.home, row.abroad) == ("mine", ["d"], ["e"])
    named = compare(paths, base="other", qrels=tmp_path / "d.tsv")
    assert arm_of(named, "mine", "d").difference.mean == pytest.approx(values(1).mean() - 0.75)
    assert not named.forgetting, "no arm of files has a data set abroad"


def test_every_form_of_a_ranking_gives_the_same_figures(by_bm25s, tmp_path):
    run = by_bm25s[0]["flat"]
    lines = [(q, p, place, score) for q, hits in run.items() for place, (p, score) in enumerate(hits.items(), 1)]
    files = {
        "of_beir.trec": by_bm25s[1] / "flat.trec",
        "shuffled.run": "".join(f"{q} 0 {p} 9 {s!r} x\n" for q, p, _, s in sorted(lines, key=lambda x: x[3])),
        "no_tag.tsv": "".join(f"{q}\t{p}\t{place}\t{s!r}\n" for q, p, place, s in lines),
        "named.tsv": "qid docid score\n" + "".join(f"{q} {p} {s!r}\n" for q, p, _, s in lines),
        "table.csv": "query_id,doc_id,score\n" + "".join(f"{q},{p},{s!r}\n" for q, p, _, s in lines),
        "pairs.jsonl": "".join(json.dumps({"qid": q, "docid": p, "score": s}) + "\n" for q, p, _, s in lines),
        "nested.jsonl": "".join(
            json.dumps({"query": {"qid": q}, "candidates": [{"docid": p, "score": s} for p, s in hits.items()]}) + "\n"
            for q, hits in run.items()
        ),
        "of_bm25s.json": json.dumps(run),
        "of_mteb.json": json.dumps(
            {"mteb_model_meta": {"model_name": "m"}, "default": {"test": run, "dev": {"x": {}}}}
        ),
    }
    pq.write_table(
        pa.table({"query_id": [x[0] for x in lines], "doc_id": [x[1] for x in lines], "score": [x[3] for x in lines]}),
        tmp_path / "table.parquet",
    )
    paths = [tmp_path / "table.parquet"]
    for name, content in files.items():
        paths.append(content if not isinstance(content, str) else tmp_path / name)
        if isinstance(content, str):
            (tmp_path / name).write_text(content)
    comparison = compare([f"{path.name}={path}" for path in paths], qrels=QRELS)
    assert len(comparison.groups) == 10
    expected = ndcg_of(by_bm25s[1] / "flat.trec")[0]
    for arm in comparison.groups:
        found = dict(
            zip(
                comparison.measured["cranfield"].query_ids, comparison.measured["cranfield"].values[arm][0], strict=True
            )
        )
        assert found == expected, arm
    # ranks alone, as MS MARCO has them, order equal scores otherwise
    (tmp_path / "ranks.tsv").write_text("".join(f"{q}\t{p}\t{place}\n" for q, p, place, _ in lines))
    assert arm_of(compare([tmp_path / "ranks.tsv"], qrels=QRELS), "ranks").ndcg == pytest.approx(
        np.mean(list(expected.values())), abs=0.01
    )


def test_every_form_of_figures_gives_what_it_says(by_bm25s, tmp_path):
    trec, figures = by_bm25s[1] / "flat.trec", ndcg_of(by_bm25s[1] / "flat.trec")[0]
    judgements = "".join("{}\t0\t{}\t{}\n".format(*line.split("\t")) for line in QRELS.read_text().splitlines()[1:])
    (tmp_path / "trec.qrels").write_text(judgements)
    of_ir_measures = [
        subprocess.run(
            [sys.executable, "-m", "ir_measures", "-q", "-p-1", *more, tmp_path / "trec.qrels", trec, "AP", "nDCG@10"],
            capture_output=True, text=True, check=True,
        ).stdout
        for more in ((), ("-o", "jsonl"))
    ]  # fmt: skip
    files = {
        "ir_measures.tsv": of_ir_measures[0],
        "ir_measures.jsonl": of_ir_measures[1],
        "trec_eval.txt": "".join(f"map  \t{q}\t0.1\nndcg_cut_10 \t{q}\t{v!r}\n" for q, v in figures.items())
        + "runid\tall\tx\nndcg_cut_10\tall\t0.3\n",
        "table.csv": "query_id,AP,nDCG@10\n" + "".join(f"{q},0.1,{v!r}\n" for q, v in figures.items()),
        "table.tsv": "query_id\tndcg_at_10\n" + "".join(f"{q}\t{v!r}\n" for q, v in figures.items()),
        "ours.json": json.dumps({"ndcg@10": figures, "map@100": dict.fromkeys(figures, 0.1)}),
        "pytrec_eval.json": json.dumps({q: {"map": 0.1, "ndcg_cut_10": v} for q, v in figures.items()}),
        "flat.json": json.dumps(figures),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    comparison = compare([f"{name}={tmp_path / name}" for name in files])
    assert list(comparison.tables) == ["queries"] and list(comparison.groups) == list(files)
    for arm in files:
        assert comparison.measured["queries"].values[arm][0].tolist() == [figures[q] for q in sorted(figures)], arm
    both = compare([trec, *(tmp_path / name for name in ("ours.json", "flat.json"))], qrels=QRELS)
    assert all(arm.ndcg == pytest.approx(np.mean(list(figures.values()))) for arm in both["cranfield"])


def test_predictions_of_sentence_transformers(small_scifact, tiny_encoder, tmp_path):
    """Its evaluator's own nDCG@10 (mean over queries), from the file that it writes of its predictions."""
    data = load_evaluation_set(str(small_scifact))
    from sentence_transformers import SentenceTransformer

    evaluator = InformationRetrievalEvaluator(
        data.queries,
        dict(zip(data.corpus.ids.to_pylist(), data.corpus.passages.to_pylist(), strict=True)),
        {q: {p for p, grade in judged.items() if grade > 0} for q, judged in data.qrels.items()},
        show_progress_bar=False,
        write_predictions=True,
    )
    model = SentenceTransformer(str(tiny_encoder.save(tmp_path / "model")), device="cpu")
    scores = evaluator(model, output_path=str(tmp_path))
    [path] = tmp_path.glob("*predictions*.jsonl")
    comparison = compare([f"st={path}"], qrels=small_scifact / "qrels" / "test.tsv")
    assert arm_of(comparison, "st", "small").ndcg == pytest.approx(scores["cosine_ndcg@10"], abs=1e-9)
    [means] = tmp_path.glob("*results.csv")
    with pytest.raises(InputError, match=r"results\.csv:1: .* is no line of columns' names; it needs _id"):
        compare([means], qrels=small_scifact / "qrels" / "test.tsv")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.trec", "b.trec"], {"a": ["a.trec"], "b": ["b.trec"]}),
        (["a-seed1.trec", "a-seed5.trec", "b.trec.gz"], {"a": [1, 5], "b": [0]}),
        (["x=a.trec", "x=b.trec", "y=c.trec"], {"x": [1, 2], "y": [0]}),
        (["x=*.trec"], {"x": [1, 2]}),
        (["r/one/run.trec", "r/two/run.trec", "r/two/other.trec"], {"one/run": [0], "two/run": [0], "other": [0]}),
        (["r/run.trec", "r/two/run.trec"], {"run": [0], "two/run": [0]}),
        (["input.bm25base.gz", "input.dense.gz"], {"input.bm25base": [0], "input.dense": [0]}),
        (["run.bm25-0.5", "run.bm25-0.7"], {"run.bm25-0.5": [0], "run.bm25-0.7": [0]}),
        (["m.trec", "m.txt"], {"m.trec": [0], "m.txt": [0]}),
        (["lr0.1-seed1", "lr0.2-seed1"], {"lr0.1": [1], "lr0.2": [1]}),
        (["a-seed1.trec", "a-seed2.trec", "a.trec"], {"a": [1, 2], "a.trec": [0]}),
        (["a-seed1.trec", "a-seed1.txt"], {"a-seed1.trec": [1], "a-seed1.txt": [1]}),
        (["a=x.trec", "a.trec"], {"a": [0], "a.trec": [0]}),
        (["x=r/seed3/run.trec", "x=r/seed4/run.trec"], {"x": [3, 4]}),
        (["base=a.trec", "b.trec"], {"base (evaluated)": [0], "b": [0]}),
    ],
)
def test_files_have_names_and_seeds(tmp_path, monkeypatch, names, expected):
    import gzip

    monkeypatch.chdir(tmp_path)
    (tmp_path / "qrels.tsv").write_text("q\tp\t1\nr\tp\t1\n")
    there = [name.partition("=")[2] or name for name in names if "*" not in name] or ["a.trec", "b.trec"]
    for number, name in enumerate(there):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        text = f"q Q0 p 1 1.5 x\nr Q0 {'op'[number % 2]} 1 1 x\n"
        (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    comparison = compare(names, qrels="qrels.tsv")
    seeds = {arm.name: arm.seeds for arm in comparison["qrels"]}
    assert seeds == {name: [0] if isinstance(of[0], str) else of for name, of in expected.items()}


def test_only_seeds_that_names_state_are_pairs(tmp_path):
    (tmp_path / "d.tsv").write_text(QRELS_OF_D)
    of = {name: np.round(values(number), 3) for number, name in enumerate(("a1", "a2", "b1", "b2", "b3"))}
    for name, figures in of.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({f"q{i}": v for i, v in enumerate(figures)}))
        (tmp_path / f"{name[0]}-seed{name[1]}.json").write_text((tmp_path / f"{name}.json").read_text())
    counted = compare([f"{name[0]}={tmp_path / name}.json" for name in of])
    b = arm_of(counted, "b", "queries")
    assert b.seeds == [1, 2, 3] and b.paired is None
    assert b.difference.mean == pytest.approx(
        np.mean([of[n] for n in ("b1", "b2", "b3")]) - np.mean([of["a1"], of["a2"]])
    )
    stated = arm_of(compare(sorted(tmp_path.glob("*-seed*.json"))), "b", "queries")
    assert stated.paired == [1, 2]
    assert stated.difference.mean == pytest.approx(np.mean([of["b1"] - of["a1"], of["b2"] - of["a2"]]))


def test_what_is_missing_counts_0_and_is_told(tmp_path, caplog):
    (tmp_path / "d.tsv").write_text(QRELS_OF_D)
    run = "".join(f"q{i} Q0 p{i} 1 1.5 x\n" for i in range(30)) + "other Q0 p 1 1 x\n"
    (tmp_path / "a.trec").write_text(run)
    assert arm_of(compare([tmp_path / "a.trec"], qrels=tmp_path / "d.tsv"), "a", "d").ndcg == 0.75
    assert np.mean(list(ndcg_of(tmp_path / "a.trec", tmp_path / "d.tsv")[0].values())) == 0.75, "as ir_measures"
    assert "10 of 40 judged queries are not in it, and count 0" in caplog.text
    assert "1 entries of queries without judgements are left out" in caplog.text


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.trec", "q1 Q0 p1 1 1.5 x\nq1 Q0 p1 2 1.0 x\n", r"x\.trec:2: passage 'p1' of query 'q1' was there before"),
        ("x.trec", "q1 Q0 p1 1 1.5 x\nq1 Q0 p2 2 high x\n", r"x\.trec:2: the score of passage 'p2' is 'high'"),
        ("x.trec", "q1 Q0 p1 1 nan x\n", r"x\.trec:1: the score of passage 'p1' is 'nan'; expected a finite number"),
        ("x.trec", "q1 Q0 p1 1 1.5 x\nq2 p2\n", r"x\.trec:2: 'q2 p2' has 2 columns; expected qid Q0 docid rank score"),
        ("x.tsv", "q1 p1 1\nq2 p2 1 0.5\nq2 p3 2\n", None),
        ("x.tsv", "q1 p1 1 0.5\nq2 p2 1\n", r"x\.tsv:2: no score, as the lines before have"),
        ("x.tsv", "q1 p1 0.9\nq1 p2 0.1\n", r"x\.tsv:1: '0\.9' stands where a rank is .* first line: qid docid score"),
        ("x.json", '{"q1": {"p1": 1' + "0" * 400 + "}}", r"the score of passage 'p1' is 1000.*; expected a finite"),
        ("x.trec", "z Q0 p1 1 1.5 x\n", r"x\.trec: none of its queries is judged in .*d\.tsv\. Are these"),
        ("x.trec", "", r"none of its queries is judged"),
        ("x.jsonl", '{"qid": "q1", "docid": "p1", "score": 1}\n{"qid": "q1", "text": "t"}\n', r"jsonl:2: 'docid' has"),
        ("x.jsonl", '{"query_id": "q1", "results": {}}\n', r"x\.jsonl:1: 'results' is \{\}; expected a list"),
        ("x.json", '{"q1": {"p1": true}}', r"x\.json: query 'q1': the score of passage 'p1' is True; expected"),
        ("x.json", '{"task_name": "T", "scores": {"test": [{"ndcg_at_10": 0.4}]}}', r"'task_name' is 'T'; .*Means"),
        ("x.json", '{"default": {"a": {"q1": {}}, "b": {"q2": {}}}}', r"queries in default, a and in default, b"),
        ("x.json", '{"q1": 1.5}', r"x\.json: the nDCG@10 of query 'q1' is 1\.5; expected 0 to 1"),
        ("x.json", "[1]", r"x\.json: a JSON list, where an object is expected"),
        ("x.csv", "query_id,ndcg@10\nq1,0.5\nq1,0.5\n", r"x\.csv:3: a second nDCG@10 of query 'q1'"),
        ("x.txt", "ndcg_cut_10\tq1\t0.5\nndcg_cut_10\tq2\thigh\n", r"x\.txt:2: the nDCG@10 of query 'q2' is 'high'"),
        ("x.parquet", "", r"x\.parquet"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_named_with_its_line(tmp_path, capsys, name, text, message):
    (tmp_path / "d.tsv").write_text(QRELS_OF_D)
    (tmp_path / name).write_text(text)
    if message is None:  # a rank in each line: these decide
        compare([tmp_path / name], qrels=tmp_path / "d.tsv")
        return
    with pytest.raises(InputError, match=message):
        compare([tmp_path / name], qrels=tmp_path / "d.tsv")


def test_what_cannot_be_compared_is_told(tmp_path, capsys):
    (tmp_path / "d.tsv").write_text(QRELS_OF_D)
    (tmp_path / "a.trec").write_text("q1 Q0 p1 1 1.5 x\n")
    (tmp_path / "f.json").write_text('{"q1": 0.5, "q2": 0.5}')
    (tmp_path / "g.json").write_text('{"q1": 0.5}')
    write_run(tmp_path / "run", "a", 1, {"d": values(1)})
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "multirun.yaml").write_text("{}")
    for arguments, message in {
        ("a.trec",): "judgements are needed: --qrels FILE",
        ("run/results.json",): "Name the folder: ",
        ("sweep/multirun.yaml",): "Name the folder: ",
        ("a=a.trec", "b=a.trec", "--qrels", "d.tsv"): "given twice, as 'a' and 'b'",
        ("f.json", "g.json"): "evaluated on 1 queries of queries",
        ("run", "--qrels", "d.tsv"): "--qrels: it is for files of other tools",
        ("mine=run",): "a name is for files of other tools",
        ("nothing.trec",): "nothing.trec: no such folder or file",
        ("a.trec", "--qrels", "nothing.tsv"): "nothing.tsv: no such file",
        ("a.trec", "--qrels", "a.trec"): "a.trec:1: ",
        ("a.trec", "a.trec", "--qrels", "d.tsv", "--base", "b"): "--base is 'b'; valid values are 'base', 'a'.",
    }.items():
        typed = [str(tmp_path / word) if re.search(r"^[\w/]+\.\w+$|^run$", word) else word for word in arguments]
        typed = [re.sub(r"^(\w+)=", rf"\1={tmp_path}/", word) for word in typed]
        with pytest.raises(SystemExit) as ended:
            main(typed)
        assert message in str(ended.value), arguments


def test_the_page_and_files_of_rankings(by_bm25s, tmp_path, capsys):
    out = tmp_path / "report"
    files = [str(by_bm25s[1] / f"{name}.trec") for name in ("bm25-seed1", "bm25-seed2", "flat")]
    main([*files, "--qrels", str(QRELS), "--base", "flat", "--output", str(out)])
    page = (out / "comparison.html").read_text()
    assert "Differences are to <b>flat</b>" in page and "dev lists chose" not in page
    assert "what similarity laws must be obeyed" in page or "boundary layer" in page, "queries are in words"
    assert not (out / "comparison-curves.png").exists() and (out / "comparison-intervals.png").exists()
    with open(out / "comparison-queries.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 225 and list(rows[0])[4:] == ["bm25", "flat"] and all(row["query"] for row in rows)
    text = markdown(compare(files, base="flat", qrels=QRELS))
    assert "| bm25 | 1, 2 |" in text and "intervals over queries and seeds" in text and "step" not in text


def test_recall_is_at_the_relevance_level_of_the_run_folders_set(tmp_path):
    """TREC DL's passages count from grade 2 on; a ranking beside such runs is measured likewise."""
    (tmp_path / "d.tsv").write_text("".join(f"q{i} 0 p 2\nq{i} 0 o 1\n" for i in range(40)))
    (tmp_path / "a.trec").write_text("".join(f"q{i} Q0 o 1 1.5 x\n" for i in range(40)))
    for level, recall in ((1, 0.5), (2, 0.0)):
        config = {"evaluation": {"datasets": [{"path": "d", "relevance_level": level}]}}
        write_run(tmp_path / f"run{level}", "mine", 1, {"d": values(1)}, config=config)
        comparison = compare([tmp_path / f"run{level}", tmp_path / "a.trec"], qrels=tmp_path / "d.tsv")
        assert arm_of(comparison, "a", "d").figures == {"recall@100": recall}


def test_figures_in_a_run_folder_are_read_and_judgements_may_lie_at_the_root(tmp_path):
    write_run(tmp_path / "run", "a", 1, {"d": values(1)})
    [figures] = (tmp_path / "run" / "per_query" / "d").glob("*8.json")
    assert arm_of(compare([figures]), "step-000008", "queries").ndcg == pytest.approx(values(1).mean())
    assert _folder_of(Path("/q.tsv")) is None
