"""The text encoder: tokens, micro-batches, pooling, packing, and the layout of sentence-transformers."""

from retriever.encoder.text_encoder import EncoderSpec, TextEncoder
