"""The benchmark: its systems do the same work, its figures are what they say, its report can be read."""

from __future__ import annotations

import ctypes
import json
import time

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from transformers import BertConfig, BertModel

from datamodules.precision import Precision
from experiments.bench import bench
from experiments.benchmarks import measuring
from experiments.benchmarks.corpus_evaluation import run_evaluation
from experiments.benchmarks.cost_model import paper_costs
from experiments.benchmarks.flops import forward_flops
from experiments.benchmarks.measuring import measure, medians, run_worker
from experiments.benchmarks.parts import what_is_measured
from experiments.benchmarks.report import larger_rows, ours_beside, scale_rows
from experiments.benchmarks.scale import WORK, OwnMemory, extrapolated, run_scale
from experiments.benchmarks.settings import SYSTEMS, EvaluationPart
from experiments.benchmarks.system_name import SystemName
from experiments.benchmarks.training_step import run_step
from helpers.runs import CONF
from retriever.encoder.text_encoder import TextEncoder
from retriever.errors import InputError

pytestmark = pytest.mark.slow


NAMED = {"ours": "bf16-mixed", "st": "32-true", "ours@32-true": "32-true", "st@bf16-mixed": "bf16-mixed"}


def job_of(small_scifact, small_lists, tmp_path, **options):
    return {
        "files": [str(small_lists)],
        "corpus": str(small_scifact),
        "size": 20,
        "list_length": 4,
        "token_budget": 200,
        "uncheckpointed_tokens": None,
        "peer_batch": 8,
        "rate_seconds": 0.05,
        "cache_dir": str(tmp_path / "cache"),
        "seed": 1,
        "empty_passages": "error",
        "on_bad_list": "error",
        "gradient": str(tmp_path / "gradient.npy"),
        **options,
    }


@pytest.fixture
def results(tiny_model, small_scifact, small_lists, tmp_path):
    """System → its facts and its gradient."""
    found = {}
    for system in SYSTEMS:
        encoder = TextEncoder.from_pretrained(
            str(tiny_model), pooling="mean", query_max_length=32, passage_max_length=32
        )
        job = job_of(small_scifact, small_lists, tmp_path, system=f"{system}@32-true")
        found[system] = run_step(job, encoder, torch.device("cpu")), np.load(job["gradient"])
    return found


def test_every_system_computes_the_same_gradient(results):
    for ours, others in {"ours_infonce": ["st_infonce", "plain_infonce"], "ours_kl": ["st_kl"]}.items():
        expected = results[ours][1].astype(np.float64)
        for other in others:
            got = results[other][1].astype(np.float64)
            assert expected @ got / np.linalg.norm(expected) / np.linalg.norm(got) > 1 - 1e-9
    assert results["ours_infonce"][0]["loss"] == pytest.approx(results["st_infonce"][0]["loss"], rel=1e-4)
    facts = results["ours_infonce"][0]
    assert (
        0 < facts["distinct_share"] < 0.6
        and 0 <= facts["padding_share"] < 0.03 < results["plain_infonce"][0]["padding_share"]
    )
    assert facts["seconds"] > 0 and 0 < facts["rate_share"] < 1


@pytest.mark.parametrize("system", ["ours", "st", "beir"])
def test_every_system_evaluates_to_the_same_ndcg(tiny_model, small_scifact, system):
    encoder = TextEncoder.from_pretrained(str(tiny_model), pooling="mean", query_max_length=64, passage_max_length=64)
    job = {"system": f"{system}@32-true", "dataset": str(small_scifact), "token_budget": 4096, "peer_batch": 8}
    job |= {"empty_passages": "error", "unknown_qrels": "error"}
    found = run_evaluation(job, encoder, torch.device("cpu"))
    assert found["ndcg@10"] == pytest.approx(_ndcg(tiny_model, small_scifact), abs=1e-5)
    assert found["precision"] == "32-true"
    best = run_evaluation(job | {"peer_batch": "best"}, encoder, torch.device("cpu"))
    assert best.get("peer_batch") in ((None,) if system == "ours" else tuple(map(str, measuring.MICRO_BATCHES)))
    assert best["ndcg@10"] == pytest.approx(found["ndcg@10"], abs=1e-5)


def test_the_fastest_micro_batch_of_a_peer_is_found():
    assert measuring.fastest(lambda size: time.sleep(0.01 * abs(size - 16) ** 0.5), torch.device("cpu")) == 16


def test_ours_takes_the_precision_of_a_run_and_a_peer_its_own(tiny_encoder, tmp_path, monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(measuring, "fastest_precision", lambda *_: Precision("bf16-mixed", "it is faster"))
    took = {s: measuring.precision_of({"system": s, "cache_dir": tmp_path}, tiny_encoder, cpu) for s in NAMED}
    assert took == NAMED and measuring.precision_of({"cache_dir": tmp_path}, tiny_encoder, cpu) == "bf16-mixed"
    results = {name: {"seconds": n + 1.0, "precision": precision} for n, (name, precision) in enumerate(NAMED.items())}
    assert ours_beside(results, "st") == "ours" and ours_beside(results, "st", "32-true") == "ours@32-true"
    assert ours_beside(results, "st@bf16-mixed", "bf16-mixed") == "ours"
    assert ours_beside({"ours_kl": results["ours"]}, "st_kl", "32-true") is None
    for wrong in ({"systems": ["ours@half"]}, {"systems": ["them"]}):
        with pytest.raises(InputError, match="systems: "):
            EvaluationPart("scifact", **wrong, rounds=1, max_length=8)


def _ndcg(tiny_model, small_scifact):
    from callbacks.evaluation.metrics import score_run
    from datamodules.corpus import load_evaluation_set
    from retriever.encoder.encoding import encode

    data = load_evaluation_set(str(small_scifact))
    encoder = TextEncoder.from_pretrained(str(tiny_model), pooling="mean", query_max_length=64, passage_max_length=64)
    with torch.inference_mode():
        queries = encode(encoder, encoder.tokenize(list(data.queries.values()), "query"))
        scores = queries @ encode(encoder, encoder.tokenize(data.corpus.passages.to_pylist(), "passage")).T
    ids = data.corpus.ids.to_pylist()
    run = {query: dict(zip(ids, row.tolist(), strict=True)) for query, row in zip(data.queries, scores, strict=True)}
    return score_run(data.qrels, run)[0]["ndcg@10"]


def test_flops_are_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    config = BertConfig(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96, vocab_size=50)
    config._attn_implementation = "eager"  # whose products torch counts
    backbone = BertModel(config, add_pooling_layer=False)
    ids = torch.ones(5, 17, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        backbone(input_ids=ids)
    assert forward_flops(backbone, np.full(5, 17)) == counter.get_total_flops()


def test_peak_memory_is_that_of_the_call():
    def call():
        return float(torch.ones(50_000_000).sum())

    ctypes.CDLL(None).malloc_trim(0)  # what tests before this one left free would be used again
    _, took = measure(call, torch.device("cpu"))
    assert 190e6 < took["bytes"] < 260e6
    _, less = measure(lambda: torch.ones(10).sum(), torch.device("cpu"))
    assert less["bytes"] < 20e6


def test_medians_are_over_the_rounds():
    assert medians([{"s": 3, "n": "x"}, {"s": 1, "n": "x"}, {"s": 2, "n": "x"}]) == {"s": 2, "n": "x"}
    # a median of numbers of texts would be one that nobody ran
    assert medians([{"peer_batch": "128"}, {"peer_batch": "64"}, {"peer_batch": "128"}]) == {"peer_batch": "128, 64"}


@pytest.mark.parametrize(
    "name, parts, default",
    [
        ("st", ("st", "", ""), "st"),
        ("ours@32-true", ("ours", "", "32-true"), "ours"),
        ("plain_infonce", ("plain", "infonce", ""), "plain_infonce"),
        ("ours_kl@bf16-mixed", ("ours", "kl", "bf16-mixed"), "ours_kl"),
    ],
)
def test_names_of_systems(name, parts, default):
    found = SystemName.parse(name)
    assert found == parts and found.default == default and found.is_ours == name.startswith("ours")


def test_a_precision_that_is_not_named_is_refused():
    EvaluationPart(dataset="scifact", systems=["ours@32-true"], rounds=1, max_length=8)
    with pytest.raises(InputError, match="ours@"):
        EvaluationPart(dataset="scifact", systems=["ours@"], rounds=1, max_length=8)


def test_cost_model_scales_and_counts():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.to_container(compose("bench").cost, resolve=True)
    one, eight = paper_costs(config | {"gpus": [1, 8]}, 16_384, 4e14, 2**30)
    # 6 operations per weight and token, and a little for attention; a third once more for what is not kept
    tokens = 4096 * 20 + 81_920 * 100
    flops = 408 * 6 * 84_934_656 * tokens * (1 + (1 - 16_384 / tokens) / 3)
    assert one["training_hours"] == pytest.approx(flops / 4e14 / 3600, rel=0.05)
    assert one["training_hours"] == pytest.approx(8 * eight["training_hours"])
    weights, embeddings = 16 * 108_891_648, 8 * 768 * (4096 + 81_920)
    assert one["training_gibibytes"] == pytest.approx((weights + embeddings + 2**30) / 2**30)
    assert one["evaluation_gibibytes"] == pytest.approx(8 * eight["evaluation_gibibytes"])


def test_every_step_of_a_preparation_is_measured_once(tmp_path):
    job = {"folder": str(tmp_path / "60"), "passages": 60, "depth": 5, "bm25_queries": 7}
    found = run_scale(job)
    assert list(found["work"]) == list(WORK)
    for took in found["work"].values():
        assert took["cpu_seconds"] > 0 and took["bytes"] >= 0
    assert found["work"]["corpus"]["disk_bytes"] > 60 * 2 * 300 and found["work"]["score"]["disk_bytes"] > 5_000
    assert run_scale(job) == found  # it goes on where it was
    points = {name: [{"passages": n, **took} for n in (30, 60)] for name, took in found["work"].items()}
    points["mine"] = [
        {"passages": n, "cpu_seconds": s, "bytes": 2**30, "disk_bytes": 0} for n, s in ((10, 1.0), (100, 10.0))
    ]
    assert extrapolated(points["mine"], 360_000)["cpu_seconds"] == pytest.approx(36_000)
    larger = {row["step"]: row for row in larger_rows(points, {"encode": 0.24}, [36_000_000])}
    assert larger["mine"]["36,000,000: hours"] == "1,000.0" and larger["mine"]["36,000,000: GiB"] == "1.0"
    assert larger["mine"]["36,000,000: processes for a day"] == "42" and larger["mine"]["shared"] == "in blocks"
    assert larger["encode"]["36,000,000: processes for a day"] == "100"
    mine = {row["step"]: row for row in scale_rows(points)}["mine"]
    assert mine["time grows with n to the"] == "1.00" and mine["bytes a passage"] == "0"


def test_memory_is_the_process_own():
    with OwnMemory() as own:
        held = np.ones(30_000_000)
        time.sleep(0.1)
    assert 230e6 < own.grown < 300e6 and len(held)


def test_failed_worker_says_why(tmp_path):
    with pytest.raises(InputError, match="no_such_device"):
        run_worker({"job": "step", "threads": 1, "device": "no_such_device", "encoder": {}})


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ("scale", "scale with MODEL (folder MODEL)"),
        ("evaluation", "evaluation with MODEL (folder MODEL); evaluation on scifact"),
        ("step,scale", "step, scale with MODEL (folder MODEL); lists of x.parquet over cranfield"),
    ],
)
def test_a_benchmark_names_what_its_parts_read(tiny_model, parts, said):
    typed = [f"parts=[{parts}]", f"encoder.model={tiny_model}", "corpus=cranfield", "files=[x.parquet]"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert what_is_measured(compose("bench", typed)) == said.replace("MODEL", str(tiny_model))


def test_command_writes_a_report_and_goes_on_with_it(tiny_model, small_scifact, small_lists, tmp_path):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(
            "bench",
            [
                "parts=[step]",
                "threads=1",
                "rate_seconds=0.05",
                f"encoder.model={tiny_model}",
                f"corpus={small_scifact}",
                f"files=[{small_lists}]",
                "list_length=4",
                f"cache_dir={tmp_path}/cache",
                "step.cases=[{lists: 8, rounds: 1, systems: [ours_infonce@32-true, st_infonce], peer_batch: best}]",
            ],
        )
    first = bench(config, tmp_path / "bench")
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "bench" / "measured").iterdir()}
    assert len(stamps) == 2
    assert bench(config, tmp_path / "bench") == first
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "bench" / "measured").iterdir()} == stamps
    written = json.loads((tmp_path / "bench" / "report.json").read_text())
    assert written["step"][0]["results"]["st_infonce"]["cosine"] > 0.9999
    assert written["environment"]["packages"]["torch"] == torch.__version__
    page = (tmp_path / "bench" / "report.md").read_text()
    assert "| 8 × 4, 32 tokens, infonce | sentence-transformers | 32-true |" in page
