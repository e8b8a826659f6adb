"""The precision that ``auto`` takes: what decides it, what is measured, and that it is measured once."""

import json
import re
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import BertConfig, Qwen3Config, T5Config

from datamodules import precision
from datamodules.precision import CALIBRATION, Precision, fastest_precision
from retriever.encoder import precision as of_encoder
from retriever.encoder.precision import (
    LayerShape,
    autocast,
    bfloat16_share,
    cpu_has_bfloat16,
    cpu_name,
    training_attention,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda")
PROCESSOR = Path("/proc/cpuinfo")


def model(config):
    return SimpleNamespace(config=config)


@pytest.fixture
def measured(monkeypatch):
    """A processor with bfloat16, on which it takes the first of these shares of float32's time; what was measured."""
    shares = SimpleNamespace(left=[0.5], shapes=[])

    def measure(shape):
        shares.shapes.append(shape)
        return shares.left.pop(0)

    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: True)
    monkeypatch.setattr(precision, "bfloat16_share", measure)
    return shares


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (BertConfig(hidden_size=384, intermediate_size=1536, num_attention_heads=12), (384, 1536, 12)),
        (T5Config(d_model=512, d_ff=1024, num_heads=6), (512, 1024, 1)),  # heads that do not divide the width
        (Qwen3Config(hidden_size=1024, intermediate_size=3072, num_attention_heads=16), (1024, 3072, 16)),
        (SimpleNamespace(hidden_size=48), (48, 192, 12)),
    ],
)
def test_the_shape_of_a_layer_is_read_from_any_model(config, shape):
    assert LayerShape.of(model(config)) == LayerShape.of(SimpleNamespace(backbone=model(config))) == shape


@pytest.mark.skipif(not PROCESSOR.exists() or "flags" not in PROCESSOR.read_text(), reason="no x86 under Linux")
def test_the_processors_flags_say_whether_it_has_bfloat16():
    flags = re.search(r"^flags.*", PROCESSOR.read_text(), re.MULTILINE)[0].split()
    assert cpu_has_bfloat16() == bool({"amx_bf16", "avx512_bf16"} & set(flags)) and cpu_name()


def test_a_torch_that_does_not_say_what_the_processor_has_is_taken_to_have_none(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    cpu_has_bfloat16.cache_clear()
    assert not cpu_has_bfloat16() and cpu_name()
    cpu_has_bfloat16.cache_clear()


def test_a_processor_without_instructions_is_not_measured(monkeypatch, tmp_path, tiny_encoder):
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: False)
    monkeypatch.setattr(precision, "bfloat16_share", lambda _: pytest.fail("measured"))
    found = fastest_precision(tiny_encoder, CPU, tmp_path)
    assert found.said("trainer.precision") == (
        "32-true (auto: no bfloat16 in this processor; else trainer.precision=bf16-mixed)"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("share", "name"), [(0.5, "bf16-mixed"), (0.9, "bf16-mixed"), (0.91, "32-true"), (8.0, "32-true")]
)
def test_bfloat16_is_taken_where_it_is_faster_by_a_tenth(measured, tmp_path, tiny_encoder, share, name):
    measured.left = [share]
    found = fastest_precision(tiny_encoder, CPU, tmp_path)
    assert found == Precision(name, f"bfloat16 takes {share:.2f} of float32's time, as measured")
    assert measured.shapes == [(32, 64, 2)] == [LayerShape.of(tiny_encoder)]


def test_a_shape_is_measured_once_on_a_machine(measured, monkeypatch, tmp_path, tiny_encoder):
    measured.left = [0.5, 2.0, 0.4, 2.0]
    folder = tmp_path / "cache"
    first = fastest_precision(tiny_encoder, CPU, folder)
    assert fastest_precision(tiny_encoder.train(), CPU, folder) == first
    assert fastest_precision(model(BertConfig(hidden_size=96)), CPU, folder).name == "32-true"
    kept = json.loads((folder / CALIBRATION).read_text())
    assert list(kept.values()) == [0.5, 2.0] and all(cpu_name() in key for key in kept)
    monkeypatch.setattr(precision, "cpu_name", lambda: "another")  # a machine that shares the folder
    assert fastest_precision(tiny_encoder, CPU, folder).why.startswith("bfloat16 takes 0.40")
    (folder / CALIBRATION).write_text('{"bfloat16: a la')
    assert fastest_precision(tiny_encoder, CPU, folder).name == "32-true" and not measured.left
    assert [path.name for path in folder.iterdir()] == [CALIBRATION]


@pytest.mark.parametrize(("has", "name"), [(True, "bf16-mixed"), (False, "32-true")])
def test_a_gpu_that_only_stores_bfloat16_has_none(monkeypatch, tmp_path, tiny_encoder, has, name):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or has)
    assert fastest_precision(tiny_encoder, GPU, tmp_path).name == name and not list(tmp_path.iterdir())
    assert fastest_precision(tiny_encoder, torch.device("meta"), tmp_path).name == "32-true"


@pytest.mark.slow
def test_the_measurement_itself_runs_and_draws_nothing(tmp_path, tiny_encoder, monkeypatch):
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: True)
    in_float32, as_float = [], of_encoder._as_float
    monkeypatch.setattr(of_encoder, "_as_float", lambda value: in_float32.append(value) or as_float(value))
    state = torch.get_rng_state()
    with torch.inference_mode():  # as in experiments.evaluate
        found = fastest_precision(tiny_encoder, CPU, tmp_path)
    assert torch.equal(state, torch.get_rng_state()) and "of float32's time" in found.why
    assert in_float32, "attention of training is measured as it is computed"
    [share] = json.loads((tmp_path / CALIBRATION).read_text()).values()
    assert 0.01 < share < 1000 and (found.name == "bf16-mixed") == (share <= 0.9)


@pytest.mark.slow
@pytest.mark.skipif(not cpu_has_bfloat16(), reason="the processor has no bfloat16")
def test_bfloat16_is_faster_where_the_processor_has_it():
    assert bfloat16_share(LayerShape(768, 3072, 12)) < 1


@pytest.mark.parametrize(
    ("name", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16), ("16-mixed", torch.float16)]
)
def test_products_are_computed_in_it(name, dtype):
    linear = torch.nn.Linear(4, 4)
    with autocast(name, CPU):
        assert linear(torch.ones(1, 4)).dtype == dtype and linear.weight.dtype == torch.float32


def test_what_is_asked_for_by_name_is_said_alone():
    assert Precision("bf16-mixed").said("precision") == "bf16-mixed"
    assert Precision("bf16-mixed", "it").said("precision") == "bf16-mixed (auto: it; else precision=32-true)"


@pytest.mark.parametrize("is_typed", [False, True])
@pytest.mark.parametrize(("length", "short"), [(7, True), (600, False)])
def test_attention_over_short_texts_is_trained_in_float32(length, short, is_typed):
    given = torch.randn(3, 2, 4, length, 8, generator=torch.Generator().manual_seed(1))
    given = given.bfloat16().requires_grad_()
    mask = torch.arange(length) < torch.tensor([[length - 3], [length]]).unsqueeze(1).unsqueeze(1)
    named = dict(zip(("query", "key", "value"), given, strict=True)) if is_typed else {}
    with training_attention(CPU), autocast("bf16-mixed" if is_typed else "32-true", CPU):
        found = scaled_dot_product_attention(*(() if is_typed else given), attn_mask=mask, **named)
    exact = given.detach().float().requires_grad_()
    expected = scaled_dot_product_attention(*exact, attn_mask=mask)
    assert found.dtype == torch.bfloat16 and torch.equal(found, expected.bfloat16()) == short
    found.float().square().sum().backward()
    expected.bfloat16().float().square().sum().backward()
    assert torch.equal(given.grad, exact.grad.bfloat16()) == short
    assert torch.nn.functional.cosine_similarity(given.grad.float().flatten(), exact.grad.flatten(), 0) > 0.999


def test_an_encoder_computes_attention_so_in_training_alone(tiny_encoder, monkeypatch):
    seen = []
    monkeypatch.setattr(of_encoder, "_as_float", lambda value: seen.append(value) or value)
    texts = tiny_encoder.tokenize(["cells divide", "wings lift"], "query")
    arguments = texts.padded([0, 1], tiny_encoder.pad_id, CPU)
    tiny_encoder.eval()(*arguments)
    assert not seen
    tiny_encoder.train()(*arguments)
    assert seen
    assert type(training_attention(GPU)) is type(nullcontext())
