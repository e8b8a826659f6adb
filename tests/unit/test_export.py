"""What is exported encodes in sentence-transformers as it was trained here, over a table of architectures."""

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from datamodules.caches import embed
from helpers.tiny_models import KINDS, write_model
from retriever.encoder.encoding import encode
from retriever.encoder.text_encoder import TextEncoder

TEXTS = [
    "Aspirin lowers the risk of stroke, in 12 of 30 cases.",
    "a",
    "",
    "Cells divide in the presence of growth factors; two of them, and then others, help: query and passage, often.",
    "  Two  spaces, an Ärmel and 漢字 ",
]
PROMPTS = {"query_prompt": "Instruct: find it\nQuery: ", "passage_prompt": "passage: "}
TARGETS = {
    "gpt2": ["c_attn"],
    "t5": ["q", "v"],
    "mpnet": ["q", "v"],
    "modernbert": ["Wqkv"],
    "deberta-v2": ["value_proj"],
}
# every architecture with every pooling; the other options in turn
OPTIONS = {
    "cls": {"passage_max_length": 12, "query_max_length": 9, **PROMPTS},
    "mean": {"passage_max_length": 40, "query_max_length": 14, "truncate_dim": 8, "lora": True},
    "last": {
        "passage_max_length": 10,
        "query_max_length": 30,
        "normalize": False,
        "query_prompt": PROMPTS["query_prompt"],
    },
}


FAST = ("bert", "t5", "llama")  # one of each way to lay out weights and tokens; the others are slow together


@pytest.fixture(
    scope="module", params=[pytest.param(kind, marks=[pytest.mark.slow] * (kind not in FAST)) for kind in KINDS]
)
def tiny_folder(request, tmp_path_factory):
    """The kind of a model, and a folder with a random one."""
    texts = [text + " Instruct: find it Query: passage: " for text in TEXTS]
    return request.param, write_model(request.param, tmp_path_factory.mktemp("models") / request.param, texts)


def one_step(encoder):
    """Change the weights that learn."""
    for name, parameter in encoder.named_parameters():  # adapters begin as nothing
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    optimiser = torch.optim.Adam([p for p in encoder.parameters() if p.requires_grad], lr=0.01)
    embeddings = encode(encoder, encoder.tokenize(TEXTS, "passage"))
    (embeddings * torch.arange(embeddings.numel()).reshape(embeddings.shape).sin()).sum().backward()
    optimiser.step()
    optimiser.zero_grad()


def ours(encoder, kind, texts=TEXTS):
    return embed(encoder.tokenize(texts, kind), encoder, 200)


@pytest.mark.parametrize("pooling", OPTIONS)
def test_every_architecture_encodes_there_as_it_was_trained(tiny_folder, pooling, tmp_path):
    kind, folder = tiny_folder
    options = dict(OPTIONS[pooling])
    if options.pop("lora", False):
        targets = TARGETS.get(
            kind, ["q_proj", "v_proj"] if kind in ("llama", "qwen3", "gemma3") else ["query", "value"]
        )
        options["lora"] = {"r": 2, "target_modules": targets}
    encoder = TextEncoder.from_pretrained(str(folder), pooling=pooling, **options)
    before = ours(encoder, "query")
    one_step(encoder)
    encoder.eval()
    expected = {kind: ours(encoder, kind) for kind in ("query", "passage")}
    assert np.abs(expected["query"] - before).max() > 1e-3
    exported = encoder.save(tmp_path / "model")
    theirs = SentenceTransformer(str(exported), device="cpu")
    again = TextEncoder.from_pretrained(str(exported))
    assert again.spec == encoder.spec
    for name, method in (("query", theirs.encode_query), ("passage", theirs.encode_document)):
        for order in (slice(None), slice(None, None, -1), [0, 3]):  # other batches, other padding
            texts = np.array(TEXTS)[order].tolist()
            np.testing.assert_allclose(method(texts, batch_size=3), expected[name][order], atol=1e-5)
        np.testing.assert_allclose(ours(again, name), expected[name], atol=1e-6)
