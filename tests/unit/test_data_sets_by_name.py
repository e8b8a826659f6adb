"""Data sets by their names on the hub and in ir_datasets: real readers, on tiny data in the layouts of both."""

import json
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_dir

import experiments
from callbacks.evaluation.metrics import Metrics
from callbacks.evaluation.sets import Reading, open_sets
from datamodules.corpus import dataset_on_disk, find_dataset, load_corpus, load_evaluation_set
from datamodules.specs import read_evaluation_specs
from experiments.evaluate import evaluate
from experiments.evaluation.typed import as_overrides
from helpers.runs import CONF, config_of
from retriever.errors import InputError

TEXTS = {"p1": "wings in a slipstream", "p2": "shear flow past a plate", "p3": ""}
QUERIES = {"q1": "a wing in a propeller slipstream", "q2": "shear flow"}
QRELS = [("q1", "p1", 1), ("q2", "p2", 2), ("q2", "p1", 1)]


def on_hub(folder, split="train", graded=True, **ids):
    """Write a repository of the hub's: a card that names the files of each subset, and these in Parquet."""
    columns = {"query-id": [q for q, _, _ in QRELS], "corpus-id": [p for _, p, _ in QRELS]}
    tables = {
        "corpus": {"_id": list(TEXTS), "text": list(TEXTS.values())},
        "queries": {"_id": list(QUERIES), "text": list(QUERIES.values())},
        "qrels": columns | ({"score": [g for _, _, g in QRELS]} if graded else {}),
    }
    for subset, table in tables.items():
        (folder / subset).mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), folder / subset / f"{split}-00000-of-00001.parquet")
    splits = sorted(path.name.partition("-0")[0] for path in (folder / "corpus").iterdir())
    files = [
        {"config_name": subset, "data_files": [{"split": s, "path": f"{subset}/{s}-*"} for s in splits]}
        for subset in tables
    ]
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(files)}\n---\n")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder, in which a repository of the hub is found by its name as on the hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def test_a_set_of_the_hub_is_read_once(place, monkeypatch):
    on_hub(place / "zeta-alpha-ai" / "NanoTiny", graded=False)
    name = "hub:zeta-alpha-ai/NanoTiny"
    folder = find_dataset(name, place / "data")
    assert folder == place / "data" / "hub" / "zeta-alpha-ai" / "NanoTiny"
    data = load_evaluation_set(name, data_dir=place / "data", empty_passages="keep")
    assert data.name == "NanoTiny" and data.queries == QUERIES
    assert data.qrels == {"q1": {"p1": 1}, "q2": {"p2": 1, "p1": 1}}  # without grades all are 1
    assert dict(zip(data.corpus.ids.to_pylist(), data.corpus.passages.to_pylist(), strict=True)) == TEXTS
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert find_dataset(name, place / "data") == folder
    assert not list((place / "data").rglob(".*.lock"))


def test_each_split_of_the_hub_is_a_set_of_its_own(place):
    for split in ("NanoA", "NanoB"):
        on_hub(place / "owner" / "NanoBEIR-en", split)
    data = load_evaluation_set("hub:owner/NanoBEIR-en/NanoA", empty_passages="keep")
    assert data.name == "NanoA" and data.qrels["q2"] == {"p2": 2, "p1": 1}
    with pytest.raises(InputError, match=r"has the splits NanoA, NanoB\. Say which: hub:owner/NanoBEIR-en/SPLIT"):
        find_dataset("hub:owner/NanoBEIR-en")
    assert not (place / "data" / "hub" / "owner" / "NanoBEIR-en").exists()


def test_what_cannot_be_had_is_one_sentence(place, monkeypatch):
    with pytest.raises(InputError, match="hub:owner/nothing is not on this machine and could not be fetched"):
        find_dataset("hub:owner/nothing")
    assert not (place / "data").exists()  # not even a lock
    for name in ("hub:../up", "hub:", "hub:alone", "ir_datasets:/etc", "ir_datasets:a//b"):
        with pytest.raises(InputError, match="is no data set's name"):
            find_dataset(name)
    monkeypatch.setitem(sys.modules, "ir_datasets", None)
    with pytest.raises(InputError, match=r"ir_datasets:a/b needs the package .*: pip install -e '\.\[ir_datasets\]'"):
        find_dataset("ir_datasets:a/b")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"needs the package .*: pip install -e '\.\[beir\]'"):
        find_dataset("hub:owner/other")


@pytest.fixture
def registered(tmp_path):
    """A tiny data set in ir_datasets' own registry: passages ``tiny``, judged in ``tiny/test`` and ``tiny/other``."""
    ir_datasets = pytest.importorskip("ir_datasets", reason="the extra 'ir_datasets'")
    source = tmp_path / "source"
    source.mkdir()
    (source / "docs.tsv").write_text("".join(f"{i}\t{text or 'a plate'}\n" for i, text in TEXTS.items()))
    (source / "queries.tsv").write_text("".join(f"{i}\t{text}\n" for i, text in QUERIES.items()))
    (source / "qrels").write_text("".join(f"{q} 0 {p} {grade}\n" for q, p, grade in QRELS))
    docs = ir_datasets.formats.TsvDocs(ir_datasets.util.LocalDownload(str(source / "docs.tsv")))
    judged = [
        ir_datasets.formats.TsvQueries(ir_datasets.util.LocalDownload(str(source / "queries.tsv"))),
        ir_datasets.formats.TrecQrels(ir_datasets.util.LocalDownload(str(source / "qrels")), {}),
    ]
    names = {"tiny": [], "tiny/test": judged, "tiny/other": judged}
    for name, of in names.items():
        ir_datasets.registry.register(name, ir_datasets.datasets.base.Dataset(docs, *of))
    yield
    for name in names:
        del ir_datasets.registry._registered[name]


@pytest.mark.slow
@pytest.mark.usefixtures("registered")
def test_a_set_of_ir_datasets(place):
    data = load_evaluation_set("ir_datasets:tiny/test")
    assert data.name == "tiny-test" and data.queries == QUERIES
    assert data.qrels == {"q1": {"p1": 1}, "q2": {"p2": 2, "p1": 1}}
    assert data.corpus.texts.to_pylist() == ["wings in a slipstream", "shear flow past a plate", "a plate"]
    other = find_dataset("ir_datasets:tiny/other")
    assert (other / "corpus.jsonl").samefile(place / "data" / "ir_datasets" / "tiny-test" / "corpus.jsonl")
    with pytest.raises(InputError, match="Name one that has: tiny/test, tiny/other"):
        find_dataset("ir_datasets:tiny")
    with pytest.raises(InputError, match=r"ir_datasets has no data set 'tiny/tset'.* Did you mean 'tiny/test'\?"):
        find_dataset("ir_datasets:tiny/tset")


@pytest.mark.usefixtures("registered")
def test_evaluate_takes_both_by_name(place):
    on_hub(place / "zeta-alpha-ai" / "NanoTiny")
    typed = ["bm25", "sets=[{ir_datasets: tiny/test}, {hub: zeta-alpha-ai/NanoTiny}]", "trainer.accelerator=cpu"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        [folder] = evaluate(compose("evaluate", as_overrides(typed)), place / "out")
    found = json.loads((folder / "results.json").read_text())["datasets"]
    assert set(found) == {"tiny-test", "NanoTiny"} and found["tiny-test"]["recall@100"]["best"] > 0


def test_only_one_source_is_named():
    [spec] = read_evaluation_specs([{"ir_datasets": "beir/scifact/test"}])
    assert spec.path == "ir_datasets:beir/scifact/test" and spec.shown_name == "beir-scifact-test"
    with pytest.raises(InputError, match=r"sets\[0\]: path, ir_datasets and hub: give one of them"):
        read_evaluation_specs([{"ir_datasets": "a", "path": "b"}], "sets")


def specs_of(name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return read_evaluation_specs(compose("evaluate", as_overrides(["bm25", f"sets={name}"])).sets[name].datasets)


def test_the_sets_that_are_fetched_by_name():
    nano = specs_of("nanobeir")
    assert len({spec.path for spec in nano}) == 13 and {spec.part_of for spec in nano} == {"nanobeir"}
    assert [(spec.shown_name, spec.relevance_level) for spec in specs_of("msmarco")] == [
        ("msmarco-dev", 1),
        ("dl19", 2),
        ("dl20", 2),
    ]
    registry = pytest.importorskip("ir_datasets", reason="the extra 'ir_datasets'").registry
    assert all(spec.path.removeprefix("ir_datasets:") in registry for spec in specs_of("msmarco"))


def test_grades_below_the_level_are_not_relevant(place):
    on_hub(place / "a" / "b")
    levels = [{"hub": "a/b", "name": f"level{n}", "relevance_level": n} for n in (1, 2)]
    one, two = (opened.data for opened in open_sets(read_evaluation_specs(levels), Reading(empty_passages="keep")))
    run = {"q1": {"p1": 1.0}, "q2": {"p1": 2.0, "p2": 1.0, "p3": 0.5}}
    metrics = Metrics(["nDCG@10", "RR@10", "R@100", "AP(rel=2)@10"])
    first, second = (metrics.score(data.qrels, run, data.relevance_level) for data in (one, two))
    asked = Metrics(["nDCG@10", "RR(rel=2)@10", "R(rel=2)@100"]).score(one.qrels, run)
    assert first["mrr@10"] == {"q1": 1, "q2": 1} and second["mrr@10"] == {"q1": 0, "q2": 0.5} == asked["RR(rel=2)@10"]
    assert second["recall@100"] == asked["R(rel=2)@100"]
    for unchanged in ("ndcg@10", "AP(rel=2)@10"):
        assert first[unchanged] == second[unchanged]
    with pytest.raises(InputError, match=r"datasets\[0\]\.relevance_level is 0"):
        read_evaluation_specs([{"path": "a", "relevance_level": 0}])
    assert load_corpus(place / "data" / "hub" / "a" / "b", empty_passages="keep").name == "b"


def test_git_ignores_what_is_downloaded():
    assert f"/{config_of().data_dir}/" in (Path(experiments.__file__).parents[1] / ".gitignore").read_text().split()


def test_what_is_not_on_disk_is_not_fetched_by_looking(tmp_path):
    assert dataset_on_disk("ir_datasets:beir/none", tmp_path) is None
    assert dataset_on_disk("nfcorpus", tmp_path) is None and not list(tmp_path.iterdir())
    for name, folder in {
        "ir_datasets:beir/none": "ir_datasets/beir-none",
        "hub:a/b": "hub/a/b",
        "nfcorpus": "nfcorpus",
    }.items():
        (tmp_path / folder).mkdir(parents=True)
        assert dataset_on_disk(name, tmp_path) == tmp_path / folder
    assert dataset_on_disk("cranfield", tmp_path).name == "cranfield"
