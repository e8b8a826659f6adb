"""Where the hidden states of texts lie: in files that are read where a micro-batch is encoded, and not before."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class StoredStates:
    """The states of N texts; texts are chosen and joined without a copy of any state.

    Attributes:
        arrays: float16 arrays [T_i, D] (may be memory-mapped).
        begins: int64 [N], where each text's states begin, counted through all arrays, one after the other.
    """

    arrays: tuple[np.ndarray, ...]
    begins: np.ndarray

    @classmethod
    def concatenate(cls, parts: Sequence["StoredStates"]) -> "StoredStates":
        """Join several sets of texts."""
        before = np.cumsum([0, *(sum(map(len, part.arrays)) for part in parts)])
        begins = np.concatenate([part.begins + start for part, start in zip(parts, before[:-1], strict=True)])
        return cls(tuple(array for part in parts for array in part.arrays), begins)

    def select(self, rows: np.ndarray | slice) -> "StoredStates":
        """Choose the texts in ``rows``, in that order."""
        return replace(self, begins=self.begins[rows])

    def padded(self, rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Read the states of the texts in ``rows``, which have so many tokens: [n, longest, D], 0 behind a text."""
        padded = np.zeros((len(rows), max(1, lengths.max(initial=1)), self.arrays[0].shape[1]), np.float16)
        before = np.cumsum([0, *map(len, self.arrays)])
        numbers = np.searchsorted(before[:-1], self.begins[rows], side="right") - 1
        begins = self.begins[rows] - before[numbers]
        for text, number, begin, length in zip(padded, numbers, begins, lengths, strict=True):
            text[:length] = self.arrays[number][begin : begin + length]
        return padded
