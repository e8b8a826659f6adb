"""Where the time of a training step goes, by kind of operation."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from experiments.benchmarks.measuring import precision_of
from experiments.benchmarks.training_step import Lists, SameInfoNCE, built, one_step, ours
from retriever.encoder.precision import autocast
from retriever.encoder.text_encoder import TextEncoder

# kind → what the names of its operations begin with, the first that fits
KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::matmul", "aten::linear"),
    "attention": ("aten::_scaled_dot_product", "aten::_flash_attention", "aten::_efficient_attention"),
    "GELU": ("aten::gelu",),
    "layer norm": ("aten::native_layer_norm", "aten::layer_norm"),
    "copies and fills": ("aten::copy_", "aten::fill_", "aten::zero_", "aten::clone", "aten::cat", "aten::index"),
    "additions, products, sums": ("aten::add", "aten::mul", "aten::sum", "aten::div", "aten::sub"),
    "AdamW": ("aten::_fused_adamw", "aten::_foreach"),
}


def run_profile(job: Mapping[str, Any], encoder: TextEncoder, device: torch.device) -> dict[str, Any]:
    """Profile one step of ours; seconds of each kind of operation, both passes and what is computed again included.

    Args:
        job: ``files``, ``corpus``, ``size`` (lists), ``list_length``, ``token_budget``, ``uncheckpointed_tokens``,
            ``cache_dir``, ``seed``.
        encoder: with the lengths to cut at, on ``device``.
        device: where to run.
    """
    lists = Lists(job, encoder)
    module = built(SameInfoNCE, encoder, job, device)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    precision = precision_of(job, encoder, device)
    with autocast(precision, device):
        one_step(ours(module, lists.batch(min(8, job["size"])).to(device)))
        step = ours(module, lists.batch(job["size"]).to(device))
        with profile(activities=activities, acc_events=True) as profiler:
            one_step(step)
    seconds: dict[str, float] = {}
    for event in profiler.key_averages():
        kind = next((k for k, names in KINDS.items() if event.key.startswith(names)), "all else")
        own = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        seconds[kind] = seconds.get(kind, 0.0) + own / 1e6
    kinds = dict(sorted(seconds.items(), key=lambda item: -item[1]))
    return {
        "seconds": sum(seconds.values()),
        "kinds": kinds,
        "uncheckpointed_tokens": module.uncheckpointed_tokens,
        "precision": precision,
    }
