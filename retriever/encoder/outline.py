"""EncoderOutline: what is known of an encoder before its weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retriever.cross_encoder.cross_encoder import PairSpec
    from retriever.encoder.text_encoder import EncoderSpec


@dataclass
class EncoderOutline:
    """Takes the place of an encoder while a module or a data module checks its settings; it encodes nothing.

    Attributes:
        spec: how the encoder reads texts.
        name: the model's name.
        dimension: of its embeddings; None where only the model's files state it.
    """

    spec: EncoderSpec | PairSpec
    name: str
    dimension: int | None
