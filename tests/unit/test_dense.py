"""Dense modules after the pooling, as in EmbeddingGemma: read, trained, and exported for sentence-transformers."""

import json

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense as TheirDense
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

from datamodules.caches import embed
from helpers.tiny_models import write_model
from retriever.encoder import sentence_transformers_layout as layout
from retriever.encoder.dense import Dense
from retriever.encoder.encoding import encode
from retriever.encoder.text_encoder import TextEncoder
from retriever.errors import InputError

TEXTS = ["Aspirin lowers the risk of stroke.", "a", "", "Cells divide: " + "query, passage and other things; " * 3]
PROMPTS = {"query": "task: search result | query: ", "document": "title: none | text: ", "STS": "task: x | query: "}
HEADS = {
    "embeddinggemma": [(32, 48, False, torch.nn.Identity(), False), (48, 32, False, torch.nn.Identity(), False)],
    "others": [(32, 16, True, torch.nn.Tanh(), True), (16, 16, True, torch.nn.PReLU(), True)],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders that sentence-transformers wrote: a tiny random Gemma 3 with each of the heads."""
    place = tmp_path_factory.mktemp("dense")
    plain = write_model("gemma3", place / "plain", [*TEXTS, *PROMPTS.values()])
    found = {}
    for name, head in HEADS.items():
        torch.manual_seed(1)
        modules = [Transformer(str(plain), max_seq_length=60), Pooling(32, "mean")]
        modules += [TheirDense(*d[:3], activation_function=d[3], use_residual=d[4]) for d in head]
        model = SentenceTransformer(modules=[*modules, Normalize()], prompts=PROMPTS, device="cpu")
        model.save(str(place / name))
        found[name] = place / name
    return found


def ours(encoder, kind):
    return embed(encoder.tokenize(TEXTS, kind), encoder.eval(), 100)


def agree(encoder, folder, atol=1e-6):
    theirs = SentenceTransformer(str(folder), device="cpu")
    np.testing.assert_allclose(ours(encoder, "query"), theirs.encode_query(TEXTS), atol=atol)
    np.testing.assert_allclose(ours(encoder, "passage"), theirs.encode_document(TEXTS), atol=atol)


def one_step(encoder):
    embeddings = encode(encoder.train(), encoder.tokenize(TEXTS, "passage"))
    (embeddings * torch.arange(embeddings.numel()).reshape(embeddings.shape).sin()).sum().backward()
    torch.optim.Adam([p for p in encoder.parameters() if p.requires_grad], lr=0.05).step()


@pytest.mark.parametrize(
    ("head", "options"),
    [
        ("embeddinggemma", {}),
        ("embeddinggemma", {"truncate_dim": 8, "trainable_layers": 1}),
        ("others", {"lora": {"r": 2, "target_modules": ["q_proj"], "init_lora_weights": False}, "normalize": False}),
    ],
)
def test_base_and_tuned_model_encode_as_sentence_transformers_does(folders, tmp_path, head, options):
    agree(base := TextEncoder.from_pretrained(str(folders[head])), folders[head])
    assert (base.spec.query_prompt, base.spec.passage_prompt) == (PROMPTS["query"], PROMPTS["document"])
    encoder = TextEncoder.from_pretrained(str(folders[head]), **options)
    before = [p.clone() for p in encoder.head.parameters()]
    one_step(encoder)
    assert all(not torch.equal(*pair) for pair in zip(before, encoder.head.parameters(), strict=True)), "it learns"
    exported = encoder.save(tmp_path / "model")
    agree(encoder, exported, 1e-5)
    again = TextEncoder.from_pretrained(str(exported))
    assert again.spec == encoder.spec and again.dimension == encoder.dimension == options.get(
        "truncate_dim", base.dimension
    )
    np.testing.assert_allclose(ours(again, "query"), ours(encoder, "query"), atol=1e-5)
    assert again.backbone.config.sliding_window == base.backbone.config.sliding_window
    kinds = [m["type"].rsplit(".")[-1] for m in json.loads((exported / "modules.json").read_text())]
    cut = ["Dense"] * ("truncate_dim" in options)
    assert kinds[2:] == ["Dense", "Dense", *cut, *["Normalize"] * options.get("normalize", True)]


def test_fingerprint_and_checkpoint_hold_the_head(folders):
    encoder = TextEncoder.from_pretrained(str(folders["others"]))
    assert {name for name in encoder.state_dict() if not name.startswith("backbone.")} == {
        "head.0.linear.weight", "head.0.linear.bias", "head.0.residual.weight", "head.1.linear.weight",
        "head.1.linear.bias", "head.1.activation_function.weight",
    }  # fmt: skip
    prints = [encoder.fingerprint()]
    with torch.no_grad():
        encoder.head[1].linear.bias[0] += 1
    prints.append(encoder.fingerprint())
    encoder.head[0].activation = "torch.nn.modules.activation.ReLU"
    assert len({*prints, encoder.fingerprint()}) == 3


def test_the_head_is_computed_in_float32_in_every_precision(folders):
    encoder = TextEncoder.from_pretrained(str(folders["embeddinggemma"]), normalize=False).eval()
    taken = []
    encoder.head.register_forward_hook(lambda _, inputs, output: taken.extend([inputs[0], output]))
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = encode(encoder, encoder.tokenize(TEXTS, "query"))
    assert embeddings.dtype == torch.float32
    expected = taken[0].double() @ (encoder.head[1].linear.weight.double() @ encoder.head[0].linear.weight.double()).T
    torch.testing.assert_close(taken[1].double(), expected, atol=1e-5, rtol=1e-5)


def test_older_files_and_a_file_without_an_activation_function(folders, tmp_path):
    dense = Dense.read(folders["others"] / "2_Dense")
    torch.save(dense.state_dict(), tmp_path / "pytorch_model.bin")
    stated = {"in_features": 32, "out_features": 16, "use_residual": True}
    (tmp_path / "config.json").write_text(json.dumps(stated))
    older = Dense.read(tmp_path)
    assert older.config == dense.config and dense.activation.endswith("Tanh")
    rows = torch.randn(3, 32)
    assert torch.equal(older(rows), dense(rows))


def test_a_cut_is_no_part_of_the_head(tmp_path):
    for kept, is_cut in ((8, True), (16, True), (24, False)):
        Dense.cut(16, kept).write(tmp_path)
        assert Dense.read(tmp_path).is_cut == is_cut
    assert not Dense(16, 8).is_cut
    assert layout.read_head(tmp_path) == []


@pytest.mark.parametrize(
    ("config", "weights", "message"),
    [
        ({"activation_function": "os.system"}, {}, r"2_Dense/config\.json: the activation function 'os\.system'"),
        ({"activation_function": "torch.nn.modules.activation.Threshold"}, {}, "take no arguments"),
        ({"module_input_name": "token_embeddings"}, {}, "maps 'token_embeddings' to"),
        ({"in_features": 0}, {}, r"2_Dense/config\.json: in_features is 0"),
        ({"bias": "no"}, {}, "bias is 'no'"),
        ({"out_features": 40}, {}, "the weights do not fit config.json"),
        ({}, {"linear.bias": torch.zeros(48)}, "the weights do not fit config.json"),
        ({}, None, "the weights of this Dense module cannot be read"),
    ],
)
def test_a_damaged_or_unknown_dense_module_is_refused(folders, tmp_path, config, weights, message):
    folder = tmp_path / "2_Dense"
    dense = Dense.read(folders["embeddinggemma"] / "2_Dense")
    dense.write(folder)
    (folder / "config.json").write_text(json.dumps(dense.config | config))
    if weights is None:
        (folder / "model.safetensors").write_bytes(b"no")
    elif weights:
        (folder / "model.safetensors").unlink()
        torch.save(dense.state_dict() | weights, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=message):
        Dense.read(folder)


def test_a_chain_whose_widths_do_not_meet_is_refused(folders):
    encoder = TextEncoder.from_pretrained(str(folders["embeddinggemma"]))
    parts = encoder.backbone, encoder.tokenizer, encoder.spec
    with pytest.raises(InputError, match="a Dense module takes 16 dimensions, and what comes before it gives 48"):
        TextEncoder(*parts, head=[encoder.head[0], Dense(16, 8)])
    with pytest.raises(InputError, match=r"encoder\.truncate_dim is 40, but .* has 32 dimensions"):
        TextEncoder.from_pretrained(str(folders["embeddinggemma"]), truncate_dim=40)
