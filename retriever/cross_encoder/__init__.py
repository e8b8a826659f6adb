"""A cross-encoder, and the module that trains it."""

from typing import TYPE_CHECKING

from retriever.on_demand import import_when_used

if TYPE_CHECKING:
    from retriever.cross_encoder.cross_encoder import CrossEncoder
else:
    __getattr__ = import_when_used(__name__)
