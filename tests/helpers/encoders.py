"""Texts, backbones and gradients for tests of encoders."""

from __future__ import annotations

import torch
from transformers import (
    AutoModel,
    DebertaV2Config,
    LlamaConfig,
    ModernBertConfig,
    MPNetConfig,
    Qwen3Config,
    RobertaConfig,
    T5Config,
    T5EncoderModel,
)

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
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 2)
    configs = {
        "llama": lambda: LlamaConfig(**common, num_key_value_heads=2),
        "qwen3": lambda: Qwen3Config(**common, num_key_value_heads=2, head_dim=8),
        "roberta": lambda: RobertaConfig(**common),
        "mpnet": lambda: MPNetConfig(**common),
        "modernbert": lambda: ModernBertConfig(**common, **special),
        "deberta-v2": lambda: DebertaV2Config(**common, relative_attention=True, pos_att_type=["c2p", "p2c"]),
        "t5": lambda: T5Config(vocab_size=6000, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4),
    }
    torch.manual_seed(0)
    config = configs[kind]()
    return T5EncoderModel(config) if kind == "t5" else AutoModel.from_config(config)


def save_backbone(kind, tiny_model, folder):
    tiny_backbone(kind).save_pretrained(folder)
    TextEncoder.from_pretrained(str(tiny_model), pooling="mean", **LENGTHS).tokenizer.save_pretrained(folder)
    return str(folder)
