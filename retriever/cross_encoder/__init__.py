"""A cross-encoder, and the module that trains it."""

from retriever.cross_encoder.cross_encoder import CrossEncoder
