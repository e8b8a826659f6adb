"""Hours and memory of a large run, from operations, a rate and assumptions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertModel

from experiments.benchmarks.flops import forward_flops

_BYTES_PER_PARAMETER = 16  # float32 weight, gradient and two moments of AdamW


@dataclass(frozen=True)
class Workload:
    """One epoch of training and one evaluation.

    Attributes:
        step_flops: operations of a step that are needed: forward and backward pass of its distinct texts.
        recomputed_flops: operations of the forward pass that checkpointing does once more.
        steps: optimiser steps.
        evaluation_flops: operations of encoding corpus and queries, and of exact search.
        parameters: of the encoder.
        embedding_bytes: of a step's embeddings and their gradients, which every rank gathers.
        evaluation_bytes: of the corpus' embeddings in float32, over all ranks.
    """

    step_flops: float
    recomputed_flops: float
    steps: int
    evaluation_flops: float
    parameters: int
    embedding_bytes: float
    evaluation_bytes: float


def paper_workload(config: Mapping[str, Any], token_budget: int) -> Workload:
    """The workload that ``bench.cost`` describes, on a BERT encoder of that size (no weights are made)."""
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
    passages = round(queries * config["list_length"] * config["distinct_share"])
    lengths = _lengths(config, queries, passages)
    forward = forward_flops(backbone, lengths)
    whole = forward_flops(backbone, _lengths(config, config["evaluation_queries"], config["corpus"]))
    search = 2.0 * config["evaluation_queries"] * config["corpus"] * config["width"]
    return Workload(
        step_flops=3 * forward,
        recomputed_flops=forward * max(0.0, 1 - token_budget / lengths.sum()),
        steps=-(-config["lists"] * config["epochs"] // queries),
        evaluation_flops=whole + search,
        parameters=sum(p.numel() for p in backbone.parameters()),
        embedding_bytes=2.0 * 4 * config["width"] * len(lengths),
        evaluation_bytes=4.0 * config["width"] * config["corpus"],
    )


def estimate(workload: Workload, gpus: int, flops: float, activation_bytes: float) -> dict[str, float]:
    """Hours and memory on some GPUs.

    Args:
        workload: what is done.
        gpus: how many share it, each with its part of every batch and of the corpus.
        flops: operations per second that one of them reaches.
        activation_bytes: of one micro-batch.
    """
    training_flops = workload.steps * (workload.step_flops + workload.recomputed_flops)
    training_bytes = _BYTES_PER_PARAMETER * workload.parameters + workload.embedding_bytes + activation_bytes
    return {
        "gpus": gpus,
        "training_hours": training_flops / (gpus * flops) / 3600,
        "evaluation_hours": workload.evaluation_flops / (gpus * flops) / 3600,
        "evaluation_gibibytes": workload.evaluation_bytes / gpus / 2**30,
        "training_gibibytes": training_bytes / 2**30,
    }


def needed_and_recomputed(step: Mapping[str, Any]) -> float:
    """Operations of a measured step: forward and backward pass, and the forward pass again for what is not kept.

    Args:
        step: with ``needed_flops``, ``needed_tokens`` and ``uncheckpointed_tokens``.
    """
    recomputed = step["needed_flops"] / 3 * max(0.0, 1 - step["uncheckpointed_tokens"] / step["needed_tokens"])
    return step["needed_flops"] + recomputed


def _lengths(config: Mapping[str, Any], queries: int, passages: int) -> np.ndarray:
    return np.concatenate([np.full(queries, config["query_tokens"]), np.full(passages, config["passage_tokens"])])
