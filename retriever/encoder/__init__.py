"""Text encoder: tokens, micro-batches, pooling, packing, sentence-transformers' layout."""

from retriever.encoder.text_encoder import EncoderSpec, TextEncoder

__all__ = ["EncoderSpec", "TextEncoder"]
