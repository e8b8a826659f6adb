"""Counts of work: what was encoded in a step, and what is to be encoded, scored and searched."""

from typing import NamedTuple


class Encoded(NamedTuple):
    """How much was encoded.

    Attributes:
        passages: passages; for a cross-encoder, pairs.
        texts: passages and queries; for a cross-encoder, pairs.
        tokens: tokens of these texts, special tokens included, padding not.
    """

    passages: int = 0
    texts: int = 0
    tokens: int = 0


class Work(NamedTuple):
    """How much is to be done: texts to encode, pairs to score, and inner products of a search."""

    queries: float = 0
    passages: float = 0
    pairs: float = 0
    products: float = 0

    def __add__(self, other: "Work") -> "Work":  # type: ignore[override]
        """Add the numbers one by one."""
        return Work(*map(sum, zip(self, other, strict=True)))
