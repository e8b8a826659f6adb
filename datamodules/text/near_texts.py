"""Texts that nearly equal another one: MinHash finds them, the exact similarity of their shingles decides."""

from collections.abc import Sequence
from typing import Any

from datamodules.text.words import shingles
from retriever.errors import InputError, installed_by

_SHINGLE = 3  # words
_SEED = 1


class NearTexts:
    """Texts to be found again by near copies of them.

    Args:
        threshold: Jaccard similarity of three-word shingles from which two texts are near copies, in (0, 1].
        permutations: of MinHash; more find more of the pairs just above the threshold.
    """

    def __init__(self, threshold: float, permutations: int = 128) -> None:
        with installed_by("prepare", "Finding near copies of texts"):
            from rensa import RMinHashLSH

        self.threshold = threshold
        self.permutations = permutations
        bands = _bands(threshold, permutations)
        self._index = RMinHashLSH(threshold=threshold, num_perm=permutations, num_bands=bands)
        self._texts: dict[int, str] = {}

    def hashed(self, texts: Sequence[str]) -> list[Any]:
        """The MinHash of each text, which :func:`~datamodules.text.words.normalize_texts` wrote."""
        from rensa import RMinHash

        tokens = [sorted(shingles(text, _SHINGLE)) for text in texts]
        return RMinHash.from_token_sets(tokens, self.permutations, _SEED)

    def add(self, number: int, text: str, hashed: Any) -> None:
        """Keep a text under a number."""
        self._index.insert(number, hashed)
        self._texts[number] = text

    def find(self, text: str, hashed: Any) -> tuple[int, float] | None:
        """The smallest number of a text that this one is a near copy of, with their similarity; None: of none."""
        found = sorted(self._index.query(hashed))
        parts = shingles(text, _SHINGLE) if found else set()
        for number in found:
            similarity = _jaccard(parts, shingles(self._texts[number], _SHINGLE))
            if similarity >= self.threshold:
                return number, similarity
        return None


def checked_threshold(setting: str, threshold: float | None) -> float | None:
    """A threshold that is in (0, 1], or None.

    Raises:
        InputError: it is neither.
    """
    if threshold is not None and not 0 < threshold <= 1:
        raise InputError(f"{setting} is {threshold}; it must be in (0, 1], or null.")
    return threshold


def _bands(threshold: float, permutations: int) -> int:
    """Bands b of r rows each, so that a pair at the threshold is missed with probability (1 − t^r)^b below 1%."""
    divisors = [b for b in range(1, permutations + 1) if permutations % b == 0]
    return next((b for b in divisors if (1 - threshold ** (permutations // b)) ** b < 0.01), permutations)


def _jaccard(left: set[str], right: set[str]) -> float:
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared)
