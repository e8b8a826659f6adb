"""Exact quantiles of more numbers than fit into memory."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

import numpy as np

_Key = TypeVar("_Key", bound=Hashable)
_HALF = 16  # bits


def streamed_quantiles(
    read: Callable[[], Iterable[tuple[_Key, np.ndarray]]], shares: Sequence[float]
) -> dict[_Key, list[float]]:
    """Find quantiles in two passes, as ``numpy.quantile`` does of each key's numbers together in float64.

    The first pass counts numbers by the upper half of their bits, the second by the lower half where a quantile lies:
    memory is half a MiB a key and quantile.

    Args:
        read: begins a pass over (key, float32 [n], finite); a key may come any number of times.
        shares: each in [0, 1].

    Returns:
        Key → one number for each share, for the keys that have numbers.
    """
    upper: dict[_Key, np.ndarray] = defaultdict(lambda: np.zeros(1 << _HALF, np.int64))
    for key, values in read():
        if len(values):
            upper[key] += np.bincount(_ordered(values) >> _HALF, minlength=1 << _HALF)
    found: dict[_Key, list[_Place]] = {key: _places(counts, shares) for key, counts in upper.items()}
    lower = {(key, half): np.zeros(1 << _HALF, np.int64) for key, places in found.items() for _, half, _ in places}
    for key, values in read():
        bits = _ordered(values)
        for half in {half for _, half, _ in found.get(key, ())}:
            lower[key, half] += np.bincount(bits[bits >> _HALF == half] & 0xFFFF, minlength=1 << _HALF)
    result = {}
    for key, places in found.items():
        at = {rank: _number(half, lower[key, half], within) for rank, half, within in places}
        result[key] = [_between(at, int(upper[key].sum()), share) for share in shares]
    return result


_Place = tuple[int, int, int]  # rank among all, upper half of the bits, rank among those with the same upper half


def _ordered(values: np.ndarray) -> np.ndarray:
    """Unsigned integers that are ordered as floats are, int64 [n]."""
    bits = (np.asarray(values, np.float32) + np.float32(0)).view(np.uint32)  # −0 is 0
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.int64)


def _number(half: int, counts: np.ndarray, within: int) -> float:
    bits = np.uint32(half << _HALF | int(np.searchsorted(np.cumsum(counts), within, side="right")))
    bits = bits & np.uint32(0x7FFFFFFF) if bits >> 31 else ~bits
    return float(np.array([bits], np.uint32).view(np.float32)[0])


def _places(counts: np.ndarray, shares: Sequence[float]) -> list[_Place]:
    """Where the numbers are that the quantiles lie between."""
    ends = np.cumsum(counts)
    ranks = {rank for share in shares for rank in _ranks(int(ends[-1]), share)[:2]}
    places = []
    for rank in sorted(ranks):
        half = int(np.searchsorted(ends, rank, side="right"))
        places.append((rank, half, rank - int(ends[half] - counts[half])))
    return places


def _ranks(count: int, share: float) -> tuple[int, int, float]:
    """The two ranks that a quantile lies between, and how far from the first."""
    place = (count - 1) * share
    below = min(int(place), count - 1)
    return below, min(below + 1, count - 1), place - below


def _between(at: dict[int, float], count: int, share: float) -> float:
    below, above, beyond = _ranks(count, share)
    low, high = at[below], at[above]
    # numpy's own formula, to the bit
    return high - (high - low) * (1 - beyond) if beyond >= 0.5 else low + (high - low) * beyond
