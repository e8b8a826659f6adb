"""Starts vLLM: its environment, and its defaults without a GPU."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from retriever.errors import InputError

# 16 bits are emulated on most CPUs; compilation takes minutes
_CPU_OPTIONS = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 64}

# options of vllm.LLM that say how the work is spread, not what comes out
_SPREADING = {
    "data_parallel_size",
    "disable_log_stats",
    "distributed_executor_backend",
    "download_dir",
    "gpu_memory_utilization",
    "pipeline_parallel_size",
    "tensor_parallel_size",
}


def deciding_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Select the options of ``vllm.LLM`` that may decide what comes out."""
    return {name: value for name, value in options.items() if name not in _SPREADING}


def load_llm(instead: str, in_process: bool, **options: Any) -> Any:
    """Make a ``vllm.LLM``.

    Args:
        instead: what to say where vLLM is not installed, in the error.
        in_process: start no worker process: five times faster on a CPU, and seeds that are set here count.
        **options: of ``vllm.LLM``; they win over the defaults for a CPU.

    Raises:
        InputError: vLLM is not installed.
    """
    on_cpu = not torch.cuda.is_available()
    if in_process or on_cpu:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    if on_cpu:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        from vllm import LLM
    except ImportError as error:
        raise InputError(
            f"vLLM is not installed: pip install '.[gpu]', or '.[cpu]' without a GPU. {instead}"
        ) from error
    with _llvmlite_out_of_sight():
        return LLM(**((_CPU_OPTIONS if on_cpu else {}) | options))


@contextmanager
def _llvmlite_out_of_sight() -> Iterator[None]:
    """Hide llvmlite while vLLM starts: vLLM 0.32 on a CPU reads ``__dict__`` of every object of every module.

    The library object of llvmlite (which numba installs, and bm25s loads) returns a C function, and vLLM crashes.
    """
    hidden = {n: sys.modules.pop(n) for n in list(sys.modules) if n.startswith("llvmlite.") or n == "llvmlite"}
    try:
        yield
    finally:
        sys.modules.update(hidden)
