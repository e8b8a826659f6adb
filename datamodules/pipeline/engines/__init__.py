"""Chat models that answer many conversations: vLLM in process, an OpenAI-compatible server or API, or transformers."""

from typing import TYPE_CHECKING

from retriever.on_demand import import_when_used

if TYPE_CHECKING:
    from datamodules.pipeline.engines.batch import BatchEngine
    from datamodules.pipeline.engines.choice import choose_engine
    from datamodules.pipeline.engines.engine import Answer, Engine
    from datamodules.pipeline.engines.server import ServerEngine
    from datamodules.pipeline.engines.transformers import TransformersEngine
    from datamodules.pipeline.engines.vllm import VllmEngine
else:
    __getattr__ = import_when_used(__name__)
