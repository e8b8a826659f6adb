"""Texts, backbones and gradients for tests of encoders."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaModel, MPNetConfig, MPNetModel, RobertaConfig, RobertaModel

from retriever.encoder.encoding import encode
from retriever.encoder.text_encoder import TextEncoder

TEXTS = ["Aspirin lowers risk.", "a", "Cells divide in the presence of growth factors and other things, often.", ""]
LENGTHS = {"passage_max_length": 64, "query_max_length": 64}


def gradients(encoder, tokens, budget, seed=0, **options):
    encoder.zero_grad()
    torch.manual_seed(seed)
    embeddings = encode(encoder, tokens, budget, **options)
    weights = torch.arange(embeddings.numel(), device=embeddings.device).reshape(embeddings.shape).sin()
    ((embeddings * weights).sum() ** 2).backward()
    return torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None])


def tiny_backbone(kind):
    """A random two-layer backbone that the tiny tokenizer's ids fit."""
    common = {
        "vocab_size": 6000,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 130,
        "pad_token_id": 1,
    }
    torch.manual_seed(0)
    if kind == "llama":
        return LlamaModel(LlamaConfig(**common, num_key_value_heads=2))
    if kind == "roberta":
        return RobertaModel(RobertaConfig(**common), add_pooling_layer=False)
    return MPNetModel(MPNetConfig(**common), add_pooling_layer=False)


def save_backbone(kind, tiny_model, folder):
    tiny_backbone(kind).save_pretrained(folder)
    TextEncoder.from_pretrained(str(tiny_model), pooling="mean", **LENGTHS).tokenizer.save_pretrained(folder)
    return str(folder)
