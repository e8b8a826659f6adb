"""Where strings stand in an Arrow array, without a dictionary that holds them all again."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datamodules.storage.columns import each_string, string_blocks

_BLOCK = 100_000


class StringIndex:
    """Value → row by sorted hashes: 16 bytes a row.

    Args:
        values: string array [N].
    """

    def __init__(self, values: pa.Array):
        self._values = values
        hashes = string_hashes(values)
        self._rows = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._rows]

    def find(self, value: str | None) -> int:
        """The first row with this value; −1 where none has it."""
        hashed = hash(value)
        at = int(np.searchsorted(self._hashes, hashed))
        while at < len(self._hashes) and self._hashes[at] == hashed:
            if self._values[int(self._rows[at])].as_py() == value:
                return int(self._rows[at])
            at += 1
        return -1

    def find_all(self, values: pa.Array | list[str]) -> np.ndarray:
        """The first row of each value, int64 [n]; −1 where none has it."""
        return np.concatenate([np.zeros(0, np.int64), *map(self._find_block, string_blocks(values, _BLOCK))])

    def _find_block(self, values: pa.Array) -> np.ndarray:
        found = np.full(len(values), -1, np.int64)
        hashes = string_hashes(values)
        at = np.searchsorted(self._hashes, hashes)
        inside = np.flatnonzero(at < len(self._hashes))
        hit = inside[self._hashes[at[inside]] == hashes[inside]]
        rows = self._rows[at[hit]]
        same = pc.equal(self._values.take(pa.array(rows)), values.take(pa.array(hit)).cast(self._values.type))
        same = same.fill_null(False).to_numpy(zero_copy_only=False)
        found[hit[same]] = rows[same]
        for other in hit[~same]:  # two strings of one hash
            found[other] = self.find(values[int(other)].as_py())
        return found


def string_hashes(values: pa.Array | list[str]) -> np.ndarray:
    """Hashes of strings, int64 [N]; the same within one process alone."""
    hashes = map(hash, each_string(values, _BLOCK))
    return np.fromiter(hashes, np.int64, len(values))
