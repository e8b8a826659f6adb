"""Chat models that answer many conversations: vLLM in process, an OpenAI-compatible server, or transformers."""

from datamodules.engines.choice import choose_engine
from datamodules.engines.engine import Answer, Engine
from datamodules.engines.server import ServerEngine
from datamodules.engines.transformers import TransformersEngine
from datamodules.engines.vllm import VllmEngine

__all__ = ["Answer", "Engine", "ServerEngine", "TransformersEngine", "VllmEngine", "choose_engine"]
