"""Hours and memory of a large run, from operations, a rate and assumptions."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertModel

from experiments.benchmarks.flops import forward_flops

_BYTES_PER_PARAMETER = 16  # float32 weight, gradient and two moments of AdamW


def paper_costs(
    config: Mapping[str, Any], token_budget: int, flops: float, activation_bytes: float
) -> list[dict[str, float]]:
    """Hours and memory of one epoch of training and one evaluation, for each of ``gpus``, which share the work.

    Args:
        config: ``bench.cost``: a BERT encoder of that size (no weights are made), and what it is trained on.
        token_budget: tokens of a step whose activations are kept, and not computed again.
        flops: operations per second that one GPU reaches.
        activation_bytes: of one micro-batch.
    """
    bert = BertConfig(
        vocab_size=config["vocabulary"],
        hidden_size=config["width"],
        num_hidden_layers=config["layers"],
        num_attention_heads=config["width"] // 64,
        intermediate_size=config["intermediate"],
    )
    with torch.device("meta"):
        backbone = BertModel(bert, add_pooling_layer=False)
    queries = config["batch_size"]
    lengths = _lengths(config, queries, round(queries * config["list_length"] * config["distinct_share"]))
    steps = -(-config["lists"] * config["epochs"] // queries)
    passes = 3 + max(0.0, 1 - token_budget / lengths.sum())  # forward, backward twice as much, forward once more
    training = steps * passes * forward_flops(backbone, lengths)
    encoding = forward_flops(backbone, _lengths(config, config["evaluation_queries"], config["corpus"]))
    evaluation = encoding + 2.0 * config["evaluation_queries"] * config["corpus"] * config["width"]
    parameters = sum(p.numel() for p in backbone.parameters())
    embedding_bytes = 2.0 * 4 * config["width"] * len(lengths)  # and their gradients; every rank gathers all
    training_bytes = _BYTES_PER_PARAMETER * parameters + embedding_bytes + activation_bytes
    return [
        {
            "gpus": gpus,
            "training_hours": training / (gpus * flops) / 3600,
            "evaluation_hours": evaluation / (gpus * flops) / 3600,
            "evaluation_gibibytes": 4.0 * config["width"] * config["corpus"] / gpus / 2**30,  # float32, over all ranks
            "training_gibibytes": training_bytes / 2**30,
        }
        for gpus in config["gpus"]
    ]


def needed_and_recomputed(step: Mapping[str, Any]) -> float:
    """Operations of a measured step: forward and backward pass, and the forward pass again for what is not kept.

    Args:
        step: with ``needed_flops``, ``needed_tokens`` and ``uncheckpointed_tokens``.
    """
    recomputed = step["needed_flops"] / 3 * max(0.0, 1 - step["uncheckpointed_tokens"] / step["needed_tokens"])
    return step["needed_flops"] + recomputed


def _lengths(config: Mapping[str, Any], queries: int, passages: int) -> np.ndarray:
    return np.concatenate([np.full(queries, config["query_tokens"]), np.full(passages, config["passage_tokens"])])
