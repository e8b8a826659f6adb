"""The micro-batches, and the activations kept, that are taken where nobody says a number."""

from types import SimpleNamespace

import pytest
import torch

from datamodules.hidden_states import with_states
from helpers.encoders import LENGTHS, TEXTS
from retriever.encoder import budget
from retriever.encoder.encoding import encode
from retriever.encoder.text_encoder import TextEncoder
from retriever.errors import InputError
from retriever.objectives import InfoNCE

CPU = torch.device("cpu")


def model(width: int, layers: int = 6) -> SimpleNamespace:
    config = SimpleNamespace(hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers)
    return SimpleNamespace(config=config)


@pytest.mark.parametrize(
    ("width", "cache", "expected"),
    [(384, 2**26, 4096), (384, 2**25, 2048), (768, 2**25, 1024), (1024, 2**20, 1024), (32, 2**28, 4096)],
)
def test_a_layers_largest_tensor_fits_into_half_of_the_cache(monkeypatch, width, cache, expected):
    monkeypatch.setattr(budget, "_cache_bytes", lambda: cache)
    assert budget.fastest_token_budget(model(width), CPU) == expected
    assert budget.fastest_token_budget(SimpleNamespace(backbone=model(width)), CPU) == expected


@pytest.mark.parametrize(
    ("gibibytes", "trained", "read"), [(16, 16_384, 16_384), (140, 65_536, 65_536), (1, 4096, 16_384)]
)
def test_a_gpus_memory_holds_a_micro_batch_four_times(monkeypatch, gibibytes, trained, read):
    properties = SimpleNamespace(total_memory=gibibytes * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    gpu = torch.device("cuda")
    assert budget.fastest_token_budget(model(384), gpu, with_gradient=True) == trained
    assert budget.fastest_token_budget(model(384), gpu) == read


def test_ranks_share_the_memory_that_is_free(monkeypatch):
    monkeypatch.setattr(budget, "_free_bytes", lambda: 2**32)
    assert budget.tokens_that_fit(model(384), CPU) == 2**30 // budget.activation_bytes(model(384))
    assert budget.tokens_that_fit(model(384), CPU, processes=2) == 2**29 // budget.activation_bytes(model(384))


def test_a_gpu_has_room_for_weights_gradients_and_moments_first(monkeypatch, tiny_encoder):
    learns, of_token = sum(p.numel() for p in tiny_encoder.parameters()), budget.activation_bytes(tiny_encoder)
    for free, room in ((16 * learns + 2**20, 2**19), (10, 0)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 2**34))
        assert budget.tokens_that_fit(tiny_encoder, torch.device("cuda")) == room // of_token


def test_frozen_weights_that_are_still_to_come_take_their_part_of_a_gpu(monkeypatch, tiny_encoder):
    first, *others = tiny_encoder.parameters()
    frozen = sum(parameter.requires_grad_(False).numel() for parameter in others)
    free = 16 * first.numel() + 4 * frozen + 2**20
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2**34))
    assert budget.tokens_that_fit(tiny_encoder, torch.device("cuda")) == 2**19 // budget.activation_bytes(tiny_encoder)


def test_micro_batches_are_a_gpus_before_the_encoder_is_there(monkeypatch, tiny_encoder):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**34, 2**34))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=2**37))
    module = InfoNCE(tiny_encoder)
    module.keep_what_fits(torch.device("cuda"))
    assert module.token_budget == 65_536 <= module.uncheckpointed_tokens


def test_a_container_s_limit_counts(monkeypatch):
    files = {"/proc/meminfo": ["MemTotal: 9 kB", "MemAvailable:       4096 kB"], "/sys/fs/cgroup/memory.max": ["2000"]}
    files["/sys/fs/cgroup/memory.current"] = ["500"]
    monkeypatch.setattr(budget, "_lines", lambda path: files.get(path, []))
    assert budget._free_bytes() == 1500
    files["/sys/fs/cgroup/memory.max"] = ["max"]
    assert budget._free_bytes() == 4096 * 1024


@pytest.mark.parametrize("trained", [None, 1])
def test_the_estimate_is_what_autograd_saves(tiny_model, tmp_path, trained):
    encoder = TextEncoder.from_pretrained(str(tiny_model), pooling="mean", trainable_layers=trained, **LENGTHS)
    tokens, saved = encoder.tokenize(["cells and growth " * 20] * 8, "passage"), {}
    tokens = with_states(tokens, encoder, tmp_path, None, "states")
    own = {p.untyped_storage().data_ptr() for p in encoder.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = encode(encoder, tokens)
    assert kept.requires_grad
    assert 0.7 < sum(saved.values()) / len(tokens.ids) / budget.activation_bytes(encoder) < 1.3


def test_a_number_is_a_number_and_null_keeps_what_fits(tiny_encoder, monkeypatch):
    monkeypatch.setattr(budget, "_free_bytes", lambda: 2**33)
    said = InfoNCE(tiny_encoder, token_budget=300, uncheckpointed_tokens=0)
    said.keep_what_fits(CPU)
    assert (said.token_budget, said.uncheckpointed_tokens) == (300, 0)
    found = InfoNCE(tiny_encoder)
    assert found.token_budget == found.uncheckpointed_tokens == budget.fastest_token_budget(tiny_encoder, CPU)
    found.keep_what_fits(CPU)
    assert found.uncheckpointed_tokens == 2**31 // budget.activation_bytes(tiny_encoder) > found.token_budget
    with pytest.raises(InputError, match="token_budget is 0"):
        InfoNCE(tiny_encoder, token_budget=0)


def test_the_budget_changes_no_embedding_beyond_rounding(tiny_encoder):
    tokens = tiny_encoder.eval().tokenize(TEXTS * 20, "passage")
    with torch.inference_mode():
        torch.testing.assert_close(encode(tiny_encoder, tokens), encode(tiny_encoder, tokens, 40))
