"""What a GPU computes is what the CPU computes: embeddings, gradients, whole runs, teachers, answers, search.

Skipped where there is no GPU: ``pytest tests/integration/test_gpu.py`` on a machine that has one.
"""

import inspect
import json
import subprocess
import sys

import faiss
import numpy as np
import pytest
import torch
from torch.nn.attention.varlen import varlen_attn
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from datamodules.caches import embed
from datamodules.pipeline.engines.transformers import TransformersEngine
from experiments import run as run_module
from experiments.training.train import run_experiment
from helpers.encoders import LENGTHS, TEXTS, gradients, save_backbone
from helpers.kills import killed_at
from helpers.processes import finish, start
from helpers.runs import config_of, error_of, metrics, weights
from retriever.encoder.encoding import encode
from retriever.encoder.text_encoder import TextEncoder
from retriever.search import exact_search
from retriever.teachers.sequence_classifier import SequenceClassifier

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]
needs_gpu_faiss = pytest.mark.skipif(not hasattr(faiss, "StandardGpuResources"), reason="this faiss is for CPUs alone")
needs_grouped_queries = pytest.mark.skipif(
    "enable_gqa" not in inspect.signature(varlen_attn).parameters,
    reason="this torch's flash attention groups no queries",
)
BFLOAT16 = torch.autocast("cuda", torch.bfloat16)


@pytest.fixture
def gpu_run(small_run):
    """Overrides for a run of seconds on the GPU, without dropout."""
    return [*small_run, "trainer.accelerator=gpu", "trainer.devices=1", "export=false"]


def train_losses(folder):
    return [float(row["train/loss"]) for row in metrics(folder) if row["train/loss"]]


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("attention", ["sdpa", "packed"])
def test_embeddings_and_gradients_are_the_cpus(tiny_model, attention):
    encoder = TextEncoder.from_pretrained(str(tiny_model), pooling="mean", attention=attention, **LENGTHS)
    tokens = encoder.tokenize(TEXTS * 5, "passage")
    expected, embeddings = gradients(encoder, tokens, 60), embed(tokens, encoder, 60)
    encoder.cuda()
    np.testing.assert_allclose(embed(tokens, encoder, 60), embeddings, atol=2e-6)
    for budget in (60, 10**6):
        found = gradients(encoder, tokens, budget)
        assert found.is_cuda and (found.cpu() - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize(
    ("kind", "pooling"),
    [("bert", "cls"), ("roberta", "mean"), pytest.param("llama", "last", marks=needs_grouped_queries)],
)
def test_flash_attention_over_packed_texts_in_bfloat16(tiny_model, tmp_path, kind, pooling):
    folder = str(tiny_model) if kind == "bert" else save_backbone(kind, tiny_model, tmp_path)
    padded, packed = (
        TextEncoder.from_pretrained(folder, pooling=pooling, attention=a, **LENGTHS) for a in ("sdpa", "packed")
    )
    tokens = padded.tokenize(TEXTS * 5, "passage")
    expected = gradients(padded, tokens, 10**6)
    errors = []
    for encoder in (padded.cuda(), packed.cuda()):
        with BFLOAT16:
            found = gradients(encoder, tokens, 60).cpu()
        errors.append(((found - expected).norm() / expected.norm()).item())
    assert 0 < errors[1] < max(0.05, 1.5 * errors[0])


def test_dropout_replays_in_checkpointed_micro_batches(tiny_model):
    encoder = TextEncoder.from_pretrained(str(tiny_model), pooling="mean", dropout=0.3, **LENGTHS).cuda()
    tokens = encoder.tokenize(TEXTS * 5, "passage")

    def gradient(kept, seed=0):
        encoder.zero_grad()
        torch.manual_seed(seed)
        embeddings = encode(encoder, tokens, 40, uncheckpointed_tokens=kept)
        (embeddings * torch.arange(embeddings.numel(), device="cuda").reshape(embeddings.shape).sin()).sum().backward()
        return torch.cat([p.grad.flatten() for p in encoder.parameters()])

    kept, again = gradient(10**6), gradient(0)
    assert (kept - again).norm() < 1e-5 * kept.norm() < (kept - gradient(0, seed=1)).norm()


def test_step_memory_does_not_grow_with_the_batch(tiny_encoder):
    tiny_encoder.cuda()

    def peak(texts):
        tokens = tiny_encoder.tokenize([TEXTS[2] * 8] * texts, "passage")
        encode(tiny_encoder, tokens, 8192).sum().backward()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        encode(tiny_encoder, tokens, 8192).sum().backward()
        return torch.cuda.max_memory_allocated() - before

    assert peak(2000) < 1.2 * peak(200)


def test_compiled_backbone_gives_the_same_gradients(tiny_model):
    plain, compiled = (
        TextEncoder.from_pretrained(str(tiny_model), pooling="mean", compile=options, **LENGTHS).cuda()
        for options in (None, {"dynamic": True})
    )
    tokens = plain.tokenize(TEXTS * 5, "passage")
    expected, found = gradients(plain, tokens, 60), gradients(compiled, tokens, 60)
    assert (found - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("frozen", [False, True])
def test_run_has_the_cpus_losses_and_says_where_it_ran(small_run, gpu_run, tmp_path, frozen):
    options = ["module=combined", f"module.train_passage_encoder={not frozen}"]
    expected = run_experiment(config_of(*small_run, *options, "export=false"), tmp_path / "cpu")
    found = run_experiment(config_of(*gpu_run, *options), tmp_path / "gpu")
    assert train_losses(tmp_path / "gpu") == pytest.approx(train_losses(tmp_path / "cpu"), rel=1e-3)
    for which in ("base", "last"):
        figures = [r["datasets"]["small"]["ndcg@10"][which] for r in (expected, found)]
        assert figures[1] == pytest.approx(figures[0], abs=0.02)
    said = json.loads((tmp_path / "gpu" / "environment.json").read_text())
    assert said["device"] == torch.cuda.get_device_name() and said["cuda"]["version"] == torch.version.cuda
    assert "On a GPU some kernels add in an order" in said["same_figures"]
    assert 0 < found["peak_memory_bytes"] < expected["peak_memory_bytes"]  # the CPU's holds the libraries, too


@pytest.mark.parametrize("more", [[], ["encoder.attention=packed"], ["trainer=fsdp"]], ids=["sdpa", "packed", "fsdp"])
def test_bfloat16_run_has_nearly_the_losses_of_float32(small_run, gpu_run, tmp_path, more):
    run_experiment(config_of(*small_run, "export=false"), tmp_path / "cpu")
    folder = tmp_path / "gpu"
    finish(folder, start(folder, "trainer=gpu", *gpu_run, *more, "export=true", f"hydra.run.dir={folder}"))
    results = json.loads((folder / "results.json").read_text())
    assert train_losses(tmp_path / "gpu") == pytest.approx(train_losses(tmp_path / "cpu"), rel=0.05)
    assert train_losses(tmp_path / "gpu") != train_losses(tmp_path / "cpu")
    assert results["datasets"]["small"]["ndcg@10"]["last"] > 0
    assert TextEncoder.from_pretrained(str(tmp_path / "gpu" / "model"), passage_max_length=64).dimension == 32


def test_float16_run_ends(gpu_run, tmp_path):
    results = run_experiment(
        config_of(*gpu_run, "trainer.precision=16-mixed", "trainer.max_epochs=1"), tmp_path / "run"
    )
    assert results["steps"]["last"] == 4 and np.isfinite(train_losses(tmp_path / "run")).all()


def test_same_seed_gives_the_same_weights(gpu_run, tmp_path):
    options = ["encoder.dropout=0.1", "trainer.precision=bf16-mixed", "trainer.deterministic=true"]
    for name, seed in {"a": 1, "b": 1, "c": 2}.items():
        run_experiment(config_of(*gpu_run, *options, f"seed={seed}"), tmp_path / name)
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert same(a, b) and not same(a, c)


def test_killed_run_resumes_to_the_same_weights_or_goes_on_on_the_cpu(gpu_run, tmp_path):
    options = [*gpu_run, "encoder.dropout=0.1", "trainer.max_epochs=4", "trainer.deterministic=true"]
    whole = run_experiment(config_of(*options), tmp_path / "whole")
    for name, device in {"cut": "gpu", "moved": "cpu"}.items():
        with killed_at(11):
            run_experiment(config_of(*options), tmp_path / name)
        more = [f"resume={tmp_path / name}", f"trainer.accelerator={device}"]
        resumed = run_experiment(config_of(*options, *more), tmp_path / name)
        assert resumed["steps"]["last"] == whole["steps"]["last"] == 16
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    moved = weights(tmp_path / "moved")
    assert all(torch.isfinite(value).all() and not value.is_cuda for value in moved.values())


@needs_gpu_faiss
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_search_finds_what_a_plain_one_finds(dtype):
    random = np.random.default_rng(0)
    queries, passages = (random.normal(size=(n, 64)).astype(np.float32) for n in (50, 5000))
    passages = passages.astype(dtype)
    passages[1000:1010] = passages[:10]  # ties
    exact = queries.astype(np.float64) @ passages.astype(np.float64).T
    for k, chunk in ((10, 100_000), (100, 700), (2048, 3000), (3000, 100_000)):  # the GPU's kernels know 2,048 hits
        scores, rows = exact_search(queries, passages, k, chunk=chunk)
        np.testing.assert_allclose(scores, np.sort(exact, axis=1)[:, ::-1][:, :k], atol=1e-4)
        np.testing.assert_allclose(scores, np.take_along_axis(exact, rows, 1), atol=1e-4)
        assert all(len(set(found)) == k for found in rows.tolist())


def test_teacher_gives_the_cpus_scores(tiny_model, tmp_path, scifact):
    torch.manual_seed(0)
    BertForSequenceClassification(
        BertConfig.from_pretrained(tiny_model, num_labels=1, initializer_range=0.5)
    ).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path)
    queries, passages = list(scifact[1].values())[:40], scifact[0].passages.to_pylist()[:40]
    found = [
        SequenceClassifier(str(tmp_path), max_length=64, query_max_length=40, token_budget=600, device=device).score(
            queries, passages
        )
        for device in ("cpu", None)
    ]
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)
    assert found[0].std() > 1e-3


def test_engine_gives_the_cpus_answers(tiny_chat_model, monkeypatch):
    asked = [[{"role": "user", "content": text}] for text in ("cells", "What lowers risk?", "a b c d e f g h")]

    def answers():
        engine = TransformersEngine(str(tiny_chat_model), {"temperature": 0, "max_tokens": 12}, dtype="float32")
        found = engine.answer(asked, [1, 2, 3], lambda n: None)
        assert next(engine._loaded[1].parameters()).device.type == engine.device
        return engine.device, found

    on_gpu = answers()
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert on_gpu[0] == "cuda" and answers() == ("cpu", on_gpu[1])


def test_a_full_gpu_is_one_sentence(gpu_run, tmp_path, monkeypatch, capsys):
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-5)
    try:
        said = error_of(
            run_module, monkeypatch, capsys, *gpu_run, f"hydra.run.dir={tmp_path}/run", "module.token_budget=512"
        )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "The GPU's memory is full" in said and "Lower token_budget" in said and "Traceback" not in said


def test_bm25_leaves_the_gpu_alone():
    pytest.importorskip("jax")
    code = "from datamodules.hits import bm25_search; bm25_search(['a cell', 'b'], ['cell'], 2); import jax; "
    code += "print(jax.default_backend())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "cpu", done.stderr
