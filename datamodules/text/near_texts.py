"""Texts that nearly equal another one: MinHash finds them, the exact similarity of their shingles decides."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from datamodules.text.words import shingles
from retriever.errors import InputError, installed_by

_SHINGLE = 3  # words
_SEED = 1
_MIXER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio


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

        return RMinHash.from_token_sets(_tokens(texts), self.permutations, _SEED)

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


def band_hashes(texts: Sequence[str], threshold: float, permutations: int = 128) -> np.ndarray:
    """Hash each band of each text's MinHash, uint64 [N, bands].

    Texts with no band in common are no candidates of one another for :meth:`NearTexts.find`.

    Args:
        texts: N texts, which :func:`~datamodules.text.words.normalize_texts` wrote.
        threshold: as for :class:`NearTexts`.
        permutations: likewise.
    """
    with installed_by("prepare", "Finding near copies of texts"):
        from rensa import RMinHash

    bands = _bands(threshold, permutations)
    digests = np.array(RMinHash.digests_from_token_sets(_tokens(texts), permutations, _SEED), np.uint64)
    found = np.zeros((len(texts), bands), np.uint64)
    for part in np.moveaxis(digests.reshape(len(texts), bands, permutations // bands), 2, 0):
        found = (found ^ part) * _MIXER
        found ^= found >> np.uint64(32)
    return found


def groups_with_bands_in_common(bands: Sequence[np.ndarray], rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Group texts so that none has a band in common with one of another group; texts that are alone are left out.

    Args:
        bands: of each band the hashes of all texts, uint64 [N] (see :func:`band_hashes`); may be memory-mapped.
        rows: int64 [n], ascending, the texts that count.
        size: texts from which a group is yielded, small ones together.

    Yields:
        Some of the rows, ascending.
    """
    label = np.arange(len(rows))
    for hashes in bands:
        own = hashes[rows]
        order = np.argsort(own, kind="stable")
        same = np.flatnonzero(own[order[1:]] == own[order[:-1]])
        ends = label[order[same]], label[order[same + 1]]
        graph = coo_array((np.ones(len(same), bool), ends), shape=(len(rows), len(rows)))
        label = connected_components(graph, directed=False)[1][label]
    sizes = np.bincount(label, minlength=1)
    order = np.argsort(label, kind="stable")
    order = order[sizes[label[order]] > 1]
    begins = np.flatnonzero(np.diff(label[order], prepend=-1))
    start = 0
    for begin in [*begins.tolist(), len(order)]:
        if begin - start >= size or begin == len(order) > start:
            yield np.sort(rows[order[start:begin]])
            start = begin


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


def _tokens(texts: Sequence[str]) -> list[list[str]]:
    return [sorted(shingles(text, _SHINGLE)) for text in texts]


def _jaccard(left: set[str], right: set[str]) -> float:
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared)
