"""The text encoder: tokens, micro-batches, pooling, packing, and the layout of sentence-transformers."""

from typing import TYPE_CHECKING

from retriever.on_demand import import_when_used

if TYPE_CHECKING:
    from retriever.encoder.spec import EncoderSpec
    from retriever.encoder.text_encoder import TextEncoder
else:
    __getattr__ = import_when_used(__name__)
