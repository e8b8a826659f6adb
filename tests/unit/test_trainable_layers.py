"""Frozen lower layers: what they give is stored, and encoding, with and without gradient, starts there."""

import copy
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.reductions import StorageWeakRef

from datamodules import hidden_states
from datamodules.caches import cached_embeddings, embed
from datamodules.hidden_states import with_states
from helpers.encoders import LENGTHS, TEXTS, gradients, save_backbone
from helpers.processes import free_port, on_two_ranks
from retriever.encoder.encoding import encode
from retriever.encoder.text_encoder import TextEncoder
from retriever.encoder.tokens import TokenizedTexts
from retriever.errors import InputError

KINDS = ("bert", "roberta", "mpnet", "modernbert", "llama", "qwen3")


def load(kind, tiny_model, folder, **options) -> TextEncoder:
    path = str(tiny_model) if kind == "bert" else save_backbone(kind, tiny_model, folder / kind)
    return TextEncoder.from_pretrained(path, pooling="mean", **(LENGTHS | {"trainable_layers": 1} | options))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_stored_states_give_the_embeddings_and_the_gradient_of_the_whole(kind, tiny_model, tmp_path):
    encoder = load(kind, tiny_model, tmp_path)
    tokens = encoder.tokenize(TEXTS * 3, "passage")
    stored = with_states(tokens, encoder, tmp_path / "cache", None, "states")
    (array,) = stored.states.arrays
    assert array.dtype == np.float16 and array.shape == (len(tokens.ids), 32)
    np.testing.assert_allclose(embed(stored, encoder, 40), embed(tokens, encoder, None), atol=2e-3)
    whole, parts = gradients(encoder, tokens, 40), gradients(encoder, stored, 40)
    assert torch.nn.functional.cosine_similarity(whole, parts, dim=0) > 0.9999


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_layers_learn_and_nothing_else(kind, tiny_model, tmp_path):
    encoder = load(kind, tiny_model, tmp_path)
    learns = {name for name, p in encoder.backbone.named_parameters() if p.requires_grad}
    assert learns and all(".1." in name or name.startswith(("norm.", "final_norm.")) for name in learns)
    before = encoder.fingerprint(), encoder.split.fingerprint()
    encode(encoder, encoder.tokenize(TEXTS, "query")).sum().backward()
    torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], 0.1).step()
    assert encoder.fingerprint() != before[0] and encoder.split.fingerprint() == before[1]


def test_the_lower_layers_run_once_for_a_text(tiny_model, tmp_path):
    encoder = load("bert", tiny_model, tmp_path)
    layers, runs = encoder.backbone.encoder.layer, [0, 0]
    for number, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_, n=number: runs.__setitem__(n, runs[n] + 1))
    tokens = encoder.tokenize(TEXTS * 3, "passage")
    stored = with_states(tokens, encoder, tmp_path, None, "states")
    assert runs[0] > 0 == runs[1]
    once = runs[0]
    for _ in range(3):
        encode(encoder, with_states(tokens, encoder, tmp_path, None, "states")).sum().backward()
        embed(stored, encoder, None)
    assert runs[0] == once and runs[1] >= 6


def test_a_copy_of_an_encoder_has_its_own_upper_layers(tiny_model, tmp_path):
    encoder = load("bert", tiny_model, tmp_path)
    stored = with_states(encoder.tokenize(TEXTS, "passage"), encoder, tmp_path, None, "states")
    copied, before = copy.deepcopy(encoder), embed(stored, encoder, None)
    with torch.no_grad():
        copied.backbone.encoder.layer[1].output.dense.weight.mul_(3)
    assert np.array_equal(embed(stored, encoder, None), before)
    assert np.abs(embed(stored, copied, None) - before).max() > 1e-3


def test_states_go_with_the_texts_that_are_chosen(tiny_model, tmp_path):
    encoder = load("bert", tiny_model, tmp_path)
    stored = with_states(encoder.tokenize(TEXTS, "passage"), encoder, tmp_path, None, "states")
    whole = embed(stored, encoder, None)
    rows = np.array([2, 0, 2])
    np.testing.assert_allclose(embed(stored.select(rows), encoder, None), whole[rows], atol=1e-5)
    np.testing.assert_allclose(embed(stored.part(1, 3), encoder, None), whole[1:3], atol=1e-5)
    both = TokenizedTexts.concatenate([stored.part(0, 2), stored.part(2, 4)])
    np.testing.assert_array_equal(embed(both, encoder, None), whole)
    swapped = TokenizedTexts.concatenate([stored.select(rows), stored.part(1, 3)])
    np.testing.assert_allclose(embed(swapped, encoder, None), whole[[2, 0, 2, 1, 2]], atol=1e-5)
    assert TokenizedTexts.concatenate([stored, encoder.tokenize(["a"], "query")]).states is None


def test_a_batch_holds_no_copy_of_states_and_reads_them_micro_batch_by_micro_batch(tiny_model, tmp_path, monkeypatch):
    encoder = load("bert", tiny_model, tmp_path, dropout=0.1)
    stored = with_states(encoder.tokenize(TEXTS * 30, "passage"), encoder, tmp_path, None, "states")
    batch = TokenizedTexts.concatenate([stored.select(np.arange(60)), stored.part(60, 120)])
    assert all(isinstance(array, np.memmap) for array in batch.states.arrays)
    living, most, read = [], 0, TokenizedTexts.padded_states

    def counted(*arguments):
        nonlocal most
        states = read(*arguments)
        living.append((StorageWeakRef(states.untyped_storage()), states.nbytes))
        most = max(most, sum(size for states, size in living if not states.expired()))
        return states

    monkeypatch.setattr(TokenizedTexts, "padded_states", counted)
    computed_again = gradients(encoder, batch, 64, uncheckpointed_tokens=0)
    largest, number = max(size for _, size in living), len(living)
    assert number > 20 and most <= 2 * largest
    kept = gradients(encoder, batch, 64, uncheckpointed_tokens=10**6)
    assert len(living) == number + number // 2
    torch.testing.assert_close(computed_again, kept, rtol=1e-4, atol=1e-6)


def test_embeddings_of_stored_states_are_kept_apart(tiny_model, tmp_path):
    encoder = load("bert", tiny_model, tmp_path)
    tokens = encoder.tokenize(TEXTS, "passage")
    stored = with_states(tokens, encoder, tmp_path, None, "states")
    for texts in (tokens, stored):
        kept = cached_embeddings(texts, encoder, tmp_path, None, "embeddings")
        assert np.array_equal(kept, embed(texts, encoder, None))


def test_where_the_disk_is_short_all_layers_are_computed(tiny_model, tmp_path, monkeypatch, caplog):
    encoder = load("bert", tiny_model, tmp_path)
    tokens = encoder.tokenize(TEXTS, "passage")
    monkeypatch.setattr(hidden_states, "_SHARE_OF_DISK", 1e-12)
    with caplog.at_level(logging.WARNING):
        assert with_states(tokens, encoder, tmp_path, None, "cells") is tokens
    assert "cells: to store the states below the trained layers would take" in caplog.text


def look_at_disks(rank, model, folder, port):
    """One of two ranks, of which the second has no room."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    hidden_states._SHARE_OF_DISK = (0.25, 0.0)[rank]
    encoder = TextEncoder.from_pretrained(str(model), pooling="mean", trainable_layers=1, **LENGTHS)
    tokens = with_states(encoder.tokenize(TEXTS, "passage"), encoder, f"{folder}/{rank}", None, "states")
    Path(f"{folder}/{rank}.txt").write_text(str(tokens.states is not None))
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_go_by_the_first_ones_disk(tiny_model, tmp_path):
    on_two_ranks(look_at_disks, tiny_model, tmp_path, free_port())
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["True", "True"]


def test_adapters_learn_in_the_upper_layers_alone(tiny_model, tmp_path):
    lora = {"r": 2, "target_modules": ["query", "value"], "lora_alpha": 4}
    encoder = load("bert", tiny_model, tmp_path, lora=lora)
    learns = [name for name, p in encoder.backbone.named_parameters() if p.requires_grad]
    assert learns and all("lora" in name and ".layer.1." in name for name in learns)
    tokens = encoder.tokenize(TEXTS, "passage")
    stored = with_states(tokens, encoder, tmp_path, None, "states")
    whole, parts = gradients(encoder, tokens, 40), gradients(encoder, stored, 40)
    assert torch.nn.functional.cosine_similarity(whole, parts, dim=0) > 0.999
    encoder.save(tmp_path / "saved")
    again = TextEncoder.from_pretrained(str(tmp_path / "saved"), pooling="mean", **LENGTHS)
    np.testing.assert_allclose(embed(tokens, again, None), embed(tokens, encoder, None), atol=1e-5)


def test_frozen_layers_have_no_adapters_so_states_are_those_of_every_seed(tiny_model, tmp_path):
    def adapted(alpha, **options):
        lora = {"r": 2, "target_modules": "all-linear", "lora_alpha": alpha, "init_lora_weights": False, **options}
        torch.manual_seed(alpha)
        return load("bert", tiny_model, tmp_path, lora=lora)

    plain, some, others = load("bert", tiny_model, tmp_path), adapted(4), adapted(400, bias="all")
    assert len({encoder.split.fingerprint() for encoder in (plain, some, others)}) == 1
    names = {name for name, _ in others.backbone.named_parameters() if "lora" in name}
    assert names and all(".layer.1." in name for name in names)
    assert not any(p.requires_grad for n, p in others.backbone.named_parameters() if ".layer.1." not in n)
    tokens = plain.tokenize(TEXTS, "passage")
    states = [encoder.split.lower(*tokens.padded(np.arange(4), plain.pad_id)) for encoder in (plain, some, others)]
    assert torch.equal(states[0], states[1]) and torch.equal(states[0], states[2])
    for without in (r".*\.query", ["query"]):
        names = [name for name, _ in adapted(4, exclude_modules=without).backbone.named_parameters() if "lora" in name]
        assert names and all(".layer.1." in name and ".query." not in name for name in names)
    with pytest.raises(InputError, match=r"encoder\.lora: peft refuses .* Only the last 1 layers take adapters"):
        adapted(4, layers_to_transform=[0], target_modules=["query"])


def test_the_scale_of_adapters_counts_in_the_fingerprint(tiny_model, tmp_path):
    def adapted(alpha):
        lora = {"r": 2, "target_modules": ["query"], "lora_alpha": alpha, "init_lora_weights": False}
        torch.manual_seed(0)
        return load("bert", tiny_model, tmp_path, lora=lora, trainable_layers=None)

    assert adapted(4).fingerprint() == adapted(4).fingerprint() != adapted(400).fingerprint()


@pytest.mark.slow
def test_the_upper_layers_are_compiled_too(tiny_model, tmp_path):
    plain = load("bert", tiny_model, tmp_path)
    stored = with_states(plain.tokenize(TEXTS * 3, "passage"), plain, tmp_path, None, "states")
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = load("bert", tiny_model, tmp_path, compile={"dynamic": True, "backend": backend})
    again = with_states(plain.tokenize(TEXTS * 3, "query"), compiled, tmp_path / "anew", None, "states")
    assert not graphs and np.array_equal(again.states.arrays[0], stored.states.arrays[0])
    expected, got = gradients(plain, stored, 60), gradients(compiled, stored, 60)
    assert (got - expected).norm() < 1e-4 * expected.norm()
    assert 0 < len(graphs) <= 2, len(graphs)
    gradients(compiled, plain.tokenize(TEXTS * 3, "passage"), 60)
    assert copy.deepcopy(compiled).state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("layers", [0, 2, 9])
def test_a_wrong_number_of_layers_is_refused(layers, tiny_model, tmp_path):
    with pytest.raises(InputError, match=f"trainable_layers is {layers}, but BertModel has 2 layers: take 1 to 1"):
        load("bert", tiny_model, tmp_path, trainable_layers=layers)


@pytest.mark.parametrize("kind", ["deberta-v2", "t5"])
def test_layers_that_give_more_than_states_are_refused(kind, tiny_model, tmp_path):
    with pytest.raises(InputError, match=rf"trainable_layers is 1, but .* \({kind}\) cannot .* as in BERT, .*=null"):
        load(kind, tiny_model, tmp_path)
    load(kind, tiny_model, tmp_path, trainable_layers=None)


def test_packed_texts_are_computed_whole_with_frozen_layers(tiny_model, tmp_path):
    encoder = load("bert", tiny_model, tmp_path, attention="packed")
    tokens = encoder.tokenize(TEXTS, "passage")
    assert with_states(tokens, encoder, tmp_path, None, "states") is tokens
    assert not any(p.requires_grad for n, p in encoder.backbone.named_parameters() if ".layer.0." in n)
