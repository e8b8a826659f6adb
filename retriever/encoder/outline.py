"""EncoderOutline: what is known of an encoder before its weights are loaded."""

from retriever.cross_encoder.spec import PairSpec
from retriever.encoder.spec import EncoderSpec


class EncoderOutline:
    """Takes the place of an encoder while a module or a data module checks its settings; it encodes nothing.

    It is no dataclass: Hydra would turn one into a configuration on its way to them.

    Args:
        spec: how the encoder reads texts.
        name: the model's name.
        dimension: of its embeddings; None where only the model's files state it.
    """

    def __init__(self, spec: EncoderSpec | PairSpec, name: str, dimension: int | None) -> None:
        self.spec = spec
        self.name = name
        self.dimension = dimension
