"""Search and scores by blocks equal those at once; processes share encoding; samples and storage as they are set."""

import csv
import json
import os
import re
import signal
import sys
import threading
import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
from beir.retrieval.evaluation import EvaluateRetrieval

from callbacks import DenseEvaluation, Metrics, RunRecord
from callbacks.evaluation import block_search, dense
from callbacks.evaluation.block_search import score_runs, search_blocks, trec_file
from callbacks.evaluation.metrics import mean_scores, score_run
from datamodules import caches
from datamodules.caches import cached_embeddings, embed
from datamodules.corpus import Corpus, EvaluationSet, load_evaluation_set
from datamodules.sampled_corpus import draw_sample
from datamodules.specs import SampleSpec
from datamodules.storage.made_ahead import made_ahead
from experiments.training.train import run_experiment
from helpers.kills import killed_at
from helpers.processes import FORKED, finish, free_port, on_two_ranks, start_ranks
from helpers.runs import config_of
from retriever.encoder.encoding import encode
from retriever.encoder.text_encoder import TextEncoder
from retriever.errors import InputError
from retriever.search import exact_search

pytestmark = pytest.mark.slow


def logged_steps(folder, column):
    with open(folder / "metrics.csv") as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row.get(column)]


def made_up(queries, passages, dimension=8):
    """An evaluation set with random embeddings; every third query's id is a passage's, too."""
    random = np.random.default_rng(0)
    ids = [f"p{i}" for i in range(passages)]
    names = [ids[i] if i % 3 == 0 else f"q{i}" for i in range(queries)]
    qrels = {q: {str(p): int(g) for p, g in zip(random.choice(ids, 3), (0, 1, 2), strict=True)} for q in names}
    empty = pa.array([""] * passages)
    data = EvaluationSet("made-up", Corpus("made-up", pa.array(ids), empty, empty), dict.fromkeys(names, ""), qrels)
    return data, *(random.normal(size=(n, dimension)).astype("f") for n in (queries, passages))


def expected_run(data, queries, passages, hits, own):
    scores, rows = exact_search(queries, passages, hits + 1)
    ids = data.corpus.ids.to_pylist()
    return {
        query: {ids[r]: float(s) for r, s in zip(rows[n], scores[n], strict=True) if own or ids[r] != query}
        for n, query in enumerate(data.queries)
    }


@pytest.mark.parametrize("seed", range(3))
def test_means_are_those_of_beir(seed):
    random = np.random.default_rng(seed)
    ids = [f"d{i}" for i in range(200)]
    qrels = {f"q{i}": {d: int(random.integers(0, 3)) for d in random.choice(ids, 7, replace=False)} for i in range(41)}
    found = {q: random.permutation(ids)[:150].tolist() for q in qrels}
    run = {q: dict(zip(passages, random.random(150).tolist(), strict=True)) for q, passages in found.items()}
    means, _ = score_run(qrels, run)
    ndcg, average_precision, recall, _ = EvaluateRetrieval.evaluate(qrels, run, [10, 100], ignore_identical_ids=False)
    assert means == {
        "ndcg@10": ndcg["NDCG@10"],
        "recall@100": recall["Recall@100"],
        "mrr@10": EvaluateRetrieval.evaluate_custom(qrels, run, [10], "mrr")["MRR@10"],
        "map@100": average_precision["MAP@100"],
    }


@pytest.mark.parametrize("own", [False, True])
def test_blocks_of_queries_give_the_scores_and_the_run_file_of_all_at_once(tmp_path, monkeypatch, own):
    monkeypatch.setattr(block_search, "_SEARCHED", 23)
    monkeypatch.setattr(block_search, "_SCORED", 5)
    data, queries, passages = made_up(60, 300)
    expected = expected_run(data, queries, passages, 150, own)
    with trec_file(tmp_path / "run.trec", "tag", 20) as keep_run:
        runs = search_blocks(data, queries, passages, 151)
        per_query = score_runs(data, runs, Metrics(), ignore_identical_ids=not own, keep_run=keep_run)
        assert not (tmp_path / "run.trec").exists()
    means, values = score_run(data.qrels, expected)
    assert per_query == values and mean_scores(per_query) == means
    lines = (tmp_path / "run.trec").read_text().splitlines()
    assert len(lines) == 60 * 20
    for line, (query, hits) in zip(lines[::20], expected.items(), strict=True):
        best = max(hits, key=hits.get)
        assert line == f"{query} Q0 {best} 1 {hits[best]:.9g} tag"


@pytest.mark.parametrize(("searched", "scored"), [(64, 64), (2048, 32)])
def test_memory_does_not_grow_with_the_queries(monkeypatch, searched, scored):
    monkeypatch.setattr(block_search, "_SEARCHED", searched)
    monkeypatch.setattr(block_search, "_SCORED", scored)
    peaks = []
    for count in (128, 1024):
        data, queries, passages = made_up(count, 2000)
        tracemalloc.start()
        score_runs(data, search_blocks(data, queries, passages, 501), Metrics())
        peaks.append(tracemalloc.get_traced_memory()[1] - min(count, searched) * 500 * 12)
        tracemalloc.stop()
    # 896 more queries: a few floats each, beside 12 bytes for each hit searched, and not the 100 of a Python object
    assert peaks[1] - peaks[0] < 896 * 500 * 12


def searching_rank(rank, port, folder):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    block_search._SEARCHED, block_search._SCORED = 23, 5
    data, queries, passages = made_up(60, 300)
    own = slice(0, 40) if rank == 0 else slice(40, 300)  # fewer passages on the first rank than hits
    runs = {}
    found = search_blocks(data, queries, passages[own], 151, first_row=own.start)
    per_query = score_runs(data, found, Metrics(), keep_run=lambda run: runs.update(run))
    (folder / f"{rank}.json").write_text(json.dumps([per_query, runs]))
    dist.destroy_process_group()


def test_two_ranks_find_what_one_finds(tmp_path):
    on_two_ranks(searching_rank, free_port(), tmp_path)
    data, queries, passages = made_up(60, 300)
    expected = expected_run(data, queries, passages, 150, own=False)
    per_query, runs = json.loads((tmp_path / "0.json").read_text())
    assert {q: list(hits) for q, hits in runs.items()} == {q: list(hits) for q, hits in expected.items()}
    assert per_query == score_run(data.qrels, expected)[1]
    assert json.loads((tmp_path / "1.json").read_text()) == [{}, {}]


TEXTS = [f"text {'word ' * (i % 7)} {i}" for i in range(41)]


def load_tiny(model):
    return TextEncoder.from_pretrained(str(model), pooling="mean", query_max_length=64, passage_max_length=64)


def wait_until(condition, seconds=120):
    """Wait, but not for ever."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def encoding_process(rank, model, folder, seconds):
    """Encode with others; note each block in a file."""
    caches._EMBEDDING_BLOCK = 4
    encoder = load_tiny(model)

    def slow(*args, **kwargs):
        (folder / f"block-{os.getpid()}-{time.monotonic_ns()}").touch()
        time.sleep(seconds)
        return encode(*args, **kwargs)

    caches.encode = slow
    (folder / f"ready-{rank}").touch()
    wait_until(lambda: len(list(folder.glob("ready-*"))) == 2)
    got = cached_embeddings(encoder.tokenize(TEXTS, "passage"), encoder, folder / "cache", 100, "encode")
    np.save(folder / f"result-{rank}.npy", got)


def test_two_processes_share_the_blocks_and_have_one_result(tiny_model, tiny_encoder, tmp_path):
    on_two_ranks(encoding_process, tiny_model, tmp_path, 0.3)
    blocks = [path.name.split("-")[1] for path in tmp_path.glob("block-*")]
    assert len(blocks) == 11, "each block is encoded once"
    assert len(set(blocks)) == 2 and min(blocks.count(process) for process in blocks) >= 3
    expected = embed(tiny_encoder.tokenize(TEXTS, "passage"), tiny_encoder, 100)
    first, second = (np.load(tmp_path / f"result-{rank}.npy") for rank in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, expected, atol=1e-6)
    assert not list((tmp_path / "cache" / "embeddings").glob("*/blocks"))


def test_the_block_of_a_killed_process_is_taken_again(tiny_model, tiny_encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(caches, "_EMBEDDING_BLOCK", 4)
    (tmp_path / "ready-main").touch()
    other = FORKED.Process(target=encoding_process, args=(0, tiny_model, tmp_path, 600))
    other.start()
    wait_until(lambda: list(tmp_path.glob("block-*")))  # it now holds its first block, and sleeps
    done = []
    monkeypatch.setattr(caches, "encode", lambda *args, **kwargs: done.append(1) or encode(*args, **kwargs))

    def kill_when_all_else_is_done():
        wait_until(lambda: len(done) >= 10)
        os.kill(other.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_when_all_else_is_done)
    killer.start()
    tokens = tiny_encoder.tokenize(TEXTS, "passage")
    got = cached_embeddings(tokens, tiny_encoder, tmp_path / "cache", 100, "encode")
    killer.join()
    other.join()
    monkeypatch.undo()
    assert len(done) == 11
    np.testing.assert_allclose(got, embed(tokens, tiny_encoder, 100), atol=1e-6)


def test_half_precision_takes_half_the_space_and_has_a_file_of_its_own(tiny_encoder, tmp_path):
    tokens = tiny_encoder.tokenize(TEXTS, "passage")
    whole, half = (cached_embeddings(tokens, tiny_encoder, tmp_path, 999, "encode", t) for t in ("float32", "float16"))
    assert whole.dtype == np.float32 and half.dtype == np.float16 and isinstance(half, np.memmap)
    np.testing.assert_array_equal(half, whole.astype(np.float16))
    sizes = [path.stat().st_size - 128 for path in (tmp_path / "embeddings").glob("*/embeddings.npy")]
    assert sorted(sizes) == [len(TEXTS) * 32 * width for width in (2, 4)]
    _, rows = exact_search(np.asarray(whole), half, 1)
    np.testing.assert_array_equal(rows[:, 0], np.arange(len(TEXTS)))


def test_embedding_part_by_part_changes_nothing(tiny_encoder, monkeypatch):
    tokens = tiny_encoder.tokenize(TEXTS, "passage")
    expected = embed(tokens, tiny_encoder, 100)
    monkeypatch.setattr(caches, "_EMBED_PART", 7)
    out = np.empty((len(TEXTS), 32), np.float16)
    assert embed(tokens, tiny_encoder, 100, out=out) is out and tiny_encoder.training
    np.testing.assert_allclose(out, expected, atol=1e-3)


def test_the_next_result_is_made_meanwhile_and_errors_come_as_they_are():
    has_first = threading.Event()

    def work(item):
        if item == 1:
            assert has_first.wait(30), "the second is made while the caller has the first"
        if item == 2:
            raise InputError("the third")
        return item * 10

    results = made_ahead(work, range(4))
    assert next(results) == 0
    has_first.set()
    assert next(results) == 10
    with pytest.raises(InputError, match="the third"):
        next(results)
    started = threading.Event()
    results = made_ahead(lambda item: item or started.set(), [1, 0])
    assert next(results) == 1 and started.wait(30)
    assert list(made_ahead(work, [])) == [] and list(made_ahead(work, [5])) == [50]


def test_a_tokenizer_serves_two_threads(tiny_encoder):
    tiny_encoder.spec = replace(tiny_encoder.spec, query_max_length=5)
    texts = ["some words that go on and on for more than five tokens"] * 20
    expected = {kind: {int(tiny_encoder.tokenize(texts, kind).lengths[0])} for kind in ("query", "passage")}
    assert expected["query"] == {5} and max(expected["passage"]) > 5
    found, errors = {"query": set(), "passage": set()}, []

    def tokenize(kind):
        try:
            for _ in range(300):
                found[kind].update(tiny_encoder.tokenize(texts, kind).lengths.tolist())
        except RuntimeError as error:  # "Already borrowed"
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        threads = [threading.Thread(target=tokenize, args=(kind,)) for kind in found]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not errors and found == expected


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_embeddings_on_disk_give_the_figures_of_those_in_memory(small_run, tmp_path, monkeypatch, dtype):
    found, search = {}, search_blocks
    figures = {}
    for storage in ("memory", "disk"):
        seen = found[storage] = []

        def spied(data, queries, passages, *args, seen=seen, **kwargs):
            seen.append((type(passages.stored), passages.stored.dtype.name))
            return search(data, queries, passages, *args, **kwargs)

        monkeypatch.setattr(dense, "search_blocks", spied)
        options = [f"evaluation.embedding_storage={storage}", f"evaluation.embedding_dtype={dtype}", "export=false"]
        options += ["module=distillation", "trainer.max_epochs=1", f"cache_dir={tmp_path}/cache"]
        figures[storage] = run_experiment(config_of(*small_run, *options), tmp_path / storage)["datasets"]
    assert figures["memory"] == figures["disk"]
    assert found["memory"] == [(np.memmap, dtype), (np.ndarray, dtype)]
    assert found["disk"] == [(np.memmap, dtype)] * 2
    kinds = {path.name for path in (tmp_path / "cache").iterdir()}
    assert kinds == {"corpora", "embeddings", "query_lists", "tokens"}, "none of tuned weights is left"


def test_sample_holds_what_is_judged_and_found_and_a_random_rest(small_scifact):
    data = load_evaluation_set(str(small_scifact))
    judged = set(data.corpus.rows([p for passages in data.qrels.values() for p in passages]))
    random = np.random.default_rng(0)
    base, bm25 = (random.integers(-1, 120, (20, 2)) for _ in range(2))
    found = (set(base.flat) | set(bm25.flat) | judged) - {-1}
    sample, counts = draw_sample(data, base, bm25, SampleSpec(size=100, depth=2, seed=1))
    assert len(sample) == 100 == sum(counts.values()) and found <= set(sample)
    assert counts["judged"] == len(judged)
    assert counts["base"] == len(set(base.flat) - judged - {-1})
    assert counts["random"] == 100 - len(found)
    (again, _), (other, _) = (draw_sample(data, base, bm25, SampleSpec(100, 2, seed)) for seed in (1, 2))
    np.testing.assert_array_equal(again, sample)
    assert set(other) != set(sample)
    small, counts = draw_sample(data, base, bm25, SampleSpec(size=1, depth=2, seed=1))
    assert set(small) == found and counts["random"] == 0


def sampled_run(small_run, small_scifact, sample, *options):
    datasets = f"evaluation.datasets=[{{path: {small_scifact}, sample: {sample}}}]"
    return config_of("module=distillation", *small_run, datasets, *options)


@pytest.mark.parametrize("frozen", [False, True])
def test_sample_of_everything_is_the_whole_corpus(small_run, small_scifact, tmp_path, frozen):
    options = [f"module.train_passage_encoder={not frozen}", "export=false"]
    results = run_experiment(sampled_run(small_run, small_scifact, "{size: 500}", *options), tmp_path / "run")
    sample = results["samples"]["small"]
    assert sample["passages"] == sample["of"] == 120
    for metric, figures in sample["figures"].items():
        for point, values in figures.items():
            assert values["sample"] == values["whole"] == results["datasets"]["small"][metric][point]
            assert values["error"] == 0
    assert {len(set(logged_steps(tmp_path / "run", f"val/small-sample/{m}"))) for m in sample["figures"]} == {3}


def test_sampled_runs_report_the_whole_corpus_and_validate_on_the_sample(
    small_run, small_scifact, tmp_path, monkeypatch
):
    record, at_the_end = RunRecord.on_train_end, []

    def spied(self, trainer, pl_module):
        at_the_end.append({key: tensor.clone() for key, tensor in pl_module.state_dict().items()})
        return record(self, trainer, pl_module)

    monkeypatch.setattr(RunRecord, "on_train_end", spied)
    # the dev loss is lowest long before the end
    options = ["trainer.max_epochs=4", "module.learning_rate=3e-2"]
    plain = run_experiment(config_of("module=distillation", *small_run, *options), tmp_path / "plain")
    sampled = run_experiment(
        sampled_run(small_run, small_scifact, "{size: 60, depth: 1}", *options), tmp_path / "sampled"
    )
    assert plain["steps"]["best"] < plain["steps"]["last"] == 16
    assert sampled["datasets"] == plain["datasets"] and sampled["steps"] == plain["steps"]
    assert plain["samples"] == {}
    facts = sampled["samples"]["small"]
    assert facts["passages"] == 60 == sum(facts[name] for name in ("judged", "base", "bm25", "random"))
    assert facts["of"] == 120 and facts["depth"] == 1 and facts["judged"] == 17
    errors = {point: values["error"] for point, values in facts["figures"]["ndcg@10"].items()}
    assert list(errors) == ["base", "best", "last"] and max(errors.values()) > 0 and min(errors.values()) >= 0
    best, last = sampled["steps"]["best"], 16
    folder = tmp_path / "sampled"
    assert set(logged_steps(folder, "val/small-sample/ndcg@10")) == {0, 4, 8, 12, 16}
    assert set(logged_steps(folder, "val/small/ndcg@10")) == {0, best, last}
    files = {n: sorted((folder / "trec_runs" / n).iterdir()) for n in ("small", "small-sample")}
    steps = {name: {int(path.stem.removeprefix("step-")) for path in paths} for name, paths in files.items()}
    assert steps == {"small": {0, best, last}, "small-sample": {0, 4, 8, 12, 16}}
    searched = {line.split()[2] for path in files["small-sample"] for line in path.read_text().splitlines()}
    assert len(searched) <= 60
    # after the best step's weights were looked at, the last step's are there again
    expected, got = at_the_end
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    exported = [(tmp_path / n / "model" / "model.safetensors").read_bytes() for n in ("plain", "sampled")]
    assert exported[0] == exported[1]
    card = (folder / "model" / "README.md").read_text()
    base = plain["datasets"]["small"]["ndcg@10"]["base"]
    assert re.search(rf"\| small \(test\) \| \d+ \| {base:.4f} \|", card) and "small-sample" not in card


def test_two_ranks_draw_one_sample_and_have_the_figures_of_one(small_run, small_scifact, tmp_path):
    datasets = f"evaluation.datasets=[{{path: {small_scifact}, sample: {{size: 60, depth: 1}}}}]"
    extra = ["encoder.dropout=0", "export=false", "trainer.max_epochs=1", "evaluation.embedding_storage=disk"]
    found = {}
    for devices in (1, 2):
        folder = tmp_path / f"devices{devices}"
        own = [*small_run, datasets, *extra, f"cache_dir={folder}/cache"]
        if devices == 1:
            run_experiment(config_of(*own), folder)
        else:
            finish(folder, *start_ranks(folder, *own, f"hydra.run.dir={folder}"))
            assert not any("Traceback" in log.read_text() for log in tmp_path.glob("*.log"))
        found[devices] = json.loads((folder / "results.json").read_text())["samples"]["small"]
    one, two = (found[devices].pop("figures") for devices in (1, 2))
    assert found[1] == found[2]
    for metric in one:
        assert two[metric]["base"] == one[metric]["base"]
        assert two[metric]["last"]["whole"] == pytest.approx(one[metric]["last"]["whole"], abs=0.03)
        assert two[metric]["last"]["sample"] == pytest.approx(one[metric]["last"]["sample"], abs=0.03)


def test_resumed_run_keeps_its_sample(small_run, small_scifact, tmp_path):
    sample = "{size: 60, depth: 1}"
    options = ["trainer.max_epochs=3", "export=false"]
    whole = run_experiment(sampled_run(small_run, small_scifact, sample, *options), tmp_path / "whole")
    drawn = {path.parent.name for path in (tmp_path / "cache" / "samples").glob("*/whole.json")}
    with killed_at(6):
        run_experiment(sampled_run(small_run, small_scifact, sample, *options), tmp_path / "cut")
    config = sampled_run(small_run, small_scifact, sample, *options, f"resume={tmp_path}/cut")
    resumed = run_experiment(config, tmp_path / "cut")
    assert resumed["samples"] == whole["samples"] and resumed["datasets"] == whole["datasets"]
    assert {path.parent.name for path in (tmp_path / "cache" / "samples").glob("*/whole.json")} == drawn and len(
        drawn
    ) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"datasets": [{"path": "scifact", "sample": 5}]},
            r"datasets\[0\].sample is 5; it must be a mapping with size or null",
        ),
        ({"datasets": [{"path": "scifact", "sample": {"depth": 5}}]}, r"datasets\[0\].sample: size is missing"),
        (
            {"datasets": [{"path": "scifact", "sample": {"size": 0}}]},
            r"datasets\[0\].sample.size is 0; it must be a whole number of at least 1",
        ),
        (
            {"datasets": [{"path": "scifact", "sample": {"size": 1.5}}]},
            r"datasets\[0\].sample.size is 1.5; it must be a whole number",
        ),
        ({"datasets": [{"path": "scifact", "sample": {"size": 9, "dept": 1}}]}, "Did you mean 'depth'"),
        (
            {"datasets": [{"path": "scifact", "sample": {"size": 9}}, {"path": "scifact", "name": "scifact-sample"}]},
            "two sets have one name",
        ),
        ({"datasets": [{"path": "scifact"}], "embedding_dtype": "float61"}, "Did you mean 'float16'"),
        ({"datasets": [{"path": "scifact"}], "embedding_storage": "ram"}, "valid values are 'memory', 'disk'"),
    ],
)
def test_wrong_options_are_named(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        DenseEvaluation(folder=tmp_path, **options)


def test_a_sampled_dev_set_chooses_by_its_sample(small_run, small_scifact, tmp_path):
    dev = f"{{path: {small_scifact}, split: train, name: dev, queries: dev, sample: {{size: 60, depth: 5}}}}"
    options = [o for o in small_run if not o.startswith("evaluation")] + [f"evaluation.datasets=[{dev}]"]
    with pytest.raises(InputError, match="Choose by 'val/dev-sample/ndcg@10'"):
        run_experiment(config_of(*options, "criterion=val/dev/ndcg@10", "criterion_mode=max"), tmp_path / "run")
    chosen = ["criterion=val/dev-sample/ndcg@10", "criterion_mode=max", "export=false"]
    assert run_experiment(config_of(*options, *chosen), tmp_path / "run")["samples"]["dev"]["passages"] >= 60


def test_a_sample_depends_on_whether_own_ids_are_hits(small_run, small_scifact, tmp_path):
    options = [o for o in small_run if not o.startswith("evaluation")] + [
        f"evaluation.datasets=[{{path: {small_scifact}, sample: {{size: 40, depth: 3}}}}]",
        "trainer.max_epochs=1",
        "export=false",
    ]
    for ignore in (True, False):
        run_experiment(config_of(*options, f"evaluation.ignore_identical_ids={ignore}"), tmp_path / str(ignore))
    samples = sorted((tmp_path / "cache" / "samples").glob("*/whole.json"))
    assert len(samples) == 2


def test_the_sample_of_a_test_set_chooses_no_checkpoint(small_run, small_scifact, tmp_path):
    config = sampled_run(small_run, small_scifact, "{size: 60}", "criterion=val/small-sample/ndcg@10")
    with pytest.raises(InputError, match="the queries that are reported would choose the checkpoint"):
        run_experiment(config, tmp_path / "run")
