"""Which engine a configuration asks for."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datamodules.pipeline.engines.batch import BatchEngine
from datamodules.pipeline.engines.engine import Engine
from datamodules.pipeline.engines.server import ServerEngine
from datamodules.pipeline.engines.tokens import Price
from datamodules.pipeline.engines.transformers import TransformersEngine
from datamodules.pipeline.engines.vllm import VllmEngine
from retriever.errors import choose
from retriever.pretrained.gguf import unpacked_gguf
from retriever.pretrained.preset import with_preset
from retriever.typed import read_settings


def choose_engine(
    engine: str,
    model: str,
    sampling: Mapping[str, Any],
    cache_dir: str | Path,
    preset: Mapping[str, Any] | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    chat_template: Mapping[str, Any] | None = None,
    vllm: Mapping[str, Any] | None = None,
    server: Mapping[str, Any] | None = None,
    transformers: Mapping[str, Any] | None = None,
    batch: Mapping[str, Any] | None = None,
    price: Mapping[str, Any] | None = None,
    budget: float | None = None,
) -> Engine:
    """Make an engine from a configuration.

    Args:
        engine: ``vllm``, ``server``, ``batch``, ``transformers``, or ``auto``: vLLM where it is installed, else
            transformers.
        model: folder, hub name, or what the server calls it.
        sampling: ``temperature``, ``top_p``, ``max_tokens``, ``frequency_penalty``, ``stop``.
        cache_dir: where a packaged model is unpacked.
        preset: what is known of one model: ``model``, its name; and ``packaged``: ``distribution``, ``file`` and
            ``sha256`` of a Python package that carries it as GGUF, used where that is installed. It counts where
            ``model`` is that name, no revision is asked for, and no server is.
        revision: branch, tag or commit on the hub.
        trust_remote_code: run the Python code that the model brings. Off unless asked for.
        chat_template: variables of the model's chat template, for example ``enable_thinking: false``.
        vllm: options of :class:`~datamodules.pipeline.engines.vllm.VllmEngine`.
        server: options of :class:`~datamodules.pipeline.engines.server.ServerEngine`.
        transformers: options of :class:`~datamodules.pipeline.engines.transformers.TransformersEngine`.
        batch: options of :class:`~datamodules.pipeline.engines.batch.BatchEngine`, beside those of ``server``.
        price: ``input`` and ``output``, see :class:`~datamodules.pipeline.engines.tokens.Price`.
        budget: what the answers of ``server`` and ``batch`` may cost, in the price's currency; None: anything.
    """
    choose("generator.engine", engine, ("auto", "vllm", "server", "batch", "transformers"))
    common: dict[str, Any] = {"chat_template": chat_template}
    prices = None if price is None else read_settings(Price, price, "generator.price")
    if engine in ("server", "batch"):
        common |= {"price": prices, "budget": budget}
        if engine == "batch":
            return BatchEngine(model, sampling, server=server, **common, **(batch or {}))
        return ServerEngine(model, sampling, **common, **(server or {}))
    asked: dict[str, Any] = {"engine": "auto"} if engine == "auto" else {}
    _, packaged = with_preset(model, preset, {}, (), "generator")
    if packaged and revision is None:
        folder = unpacked_gguf(packaged["distribution"], packaged["file"], packaged["sha256"], cache_dir)
        asked |= {"model": model, "files": packaged["sha256"], "revision": revision}
        model, revision = (str(folder), None) if folder else (model, revision)
    common |= {"revision": revision, "trust_remote_code": trust_remote_code}
    if engine == "auto":
        engine = "vllm" if importlib.util.find_spec("vllm") else "transformers"
    made: Any = VllmEngine if engine == "vllm" else TransformersEngine
    found = made(model, sampling, **common, **((vllm if engine == "vllm" else transformers) or {}))
    found.asked, found.price = asked, prices
    return found
