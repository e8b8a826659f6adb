"""EncoderOutline: what is known of an encoder before its weights are loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retriever.cross_encoder.cross_encoder import PairSpec
    from retriever.encoder.text_encoder import EncoderSpec


class EncoderOutline:
    """Stand in for an encoder while a module or a data module checks its settings; nothing can be encoded by it.

    Args:
        spec: how the encoder reads texts.
        name: the model's.
        dimension: of its embeddings; None where only the model's files say.
    """

    def __init__(self, spec: EncoderSpec | PairSpec, name: str, dimension: int | None) -> None:
        self.spec = spec
        self.name = name
        self.dimension = dimension
