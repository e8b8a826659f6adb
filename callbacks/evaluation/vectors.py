"""Smaller vectors: passages as int8 numbers, as bits, by their first dimensions; what they take, and their search."""

import time
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import torch

from retriever.distributed.ranks import gather_rows, gather_sizes
from retriever.errors import InputError
from retriever.search import exact_search

FORMS = ("float32", "int8", "binary", "binary_rescored")
RESCORED = 100  # hits of a search by bits that are scored again
_AT_ONCE = 128  # queries whose hits are unpacked at a time: 39 MB at 768 dimensions


@dataclass(frozen=True)
class Vectors:
    """How passages are stored.

    Attributes:
        form: ``float32``; ``int8``, a number of 256 steps between the least and the greatest of each dimension, of all
            ranks' passages;
            ``binary``, a bit for each dimension that says whether it is above 0, by Hamming distance; or
            ``binary_rescored``, whose best 100 are ordered again by the inner product of the query as it is and the
            bits as −1 and 1, which needs nothing beside the bits (as sentence-transformers' semantic search does it).
        dimensions: keep the first so many; None keeps all.
    """

    form: str = "float32"
    dimensions: int | None = None

    @classmethod
    def of(cls, name: Any) -> "Vectors":
        """Read ``int8``, ``binary``, ``binary_rescored``, ``128`` or ``128_int8``.

        Raises:
            InputError: another name.
        """
        first, _, rest = str(name).partition("_")
        dimensions = int(first) if first.isdecimal() else None
        form = str(name) if dimensions is None else rest if "_" in str(name) else "float32"
        if form not in FORMS or dimensions == 0:
            raise InputError(
                f"vectors: {name!r} is no form of vectors; write int8, binary, binary_rescored, a number of dimensions "
                "(128), or both (128_int8)."
            )
        return cls(form, dimensions)

    @property
    def name(self) -> str:
        """As it is typed."""
        form = None if self.form == "float32" and self.dimensions else self.form
        return "_".join(filter(None, [str(self.dimensions or ""), form]))


class PassageIndex:
    """Passages as they are stored, and exact search among them.

    Args:
        passages: embeddings, [N, D].
        vectors: how they are stored.
        normalize: whether passages have length 1, also by fewer dimensions.
        normalize_queries: likewise; None: as the passages.
        first_row: number of the first passage, where these are a part of a corpus; every rank makes an index of its
            part.
        device: where ranks exchange what they must agree on.

    Attributes:
        stored: the passages as they are searched, or their bits; none where the index has a copy.
        bytes_per_passage: of what is searched.
        seconds: spent in searches so far.
        queries: that were searched for.

    Raises:
        InputError: fewer dimensions than are to be kept.
    """

    def __init__(
        self,
        passages: np.ndarray,
        vectors: Vectors | None = None,
        normalize: bool = True,
        first_row: int = 0,
        device: torch.device | str = "cpu",
        normalize_queries: bool | None = None,
    ) -> None:
        self.vectors, self.first_row = vectors or Vectors(), first_row
        self._normalize_queries = normalize if normalize_queries is None else normalize_queries
        self.seconds, self.queries = 0.0, 0
        width = passages.shape[1]
        if (self.vectors.dimensions or 0) > width:
            raise InputError(
                f"vectors: {self.vectors.dimensions} dimensions are more than the {width} of the embeddings."
            )
        self.stored = passages if vectors is None else self._cut(passages, normalize)
        self._width = self.stored.shape[1]
        self._index: Any = None
        self.bytes_per_passage = self.stored.dtype.itemsize * self._width
        if self.vectors.form == "int8":
            self._index = faiss.IndexScalarQuantizer(
                self._width, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
            )
            self._index.train(_ends(self.stored, torch.device(device)))
            self._index.add(self.stored)
            self.stored = self.stored[:0]  # its copy is all that is searched
            self.bytes_per_passage = self._index.code_size
        elif self.vectors.form != "float32":
            self._index = faiss.IndexBinaryFlat(-(-self._width // 8) * 8)
            self.stored = self._bits(self.stored)
            self._index.add(self.stored)
            self.bytes_per_passage = self._index.code_size

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the best ``k`` passages of each query: scores float32 [Q, min(k, N)], highest first, and rows int64."""
        began = time.perf_counter()
        if self._index is not None or self.vectors != Vectors():
            queries = self._cut(queries, self._normalize_queries)
        found = self._search(queries, k)
        self.seconds += time.perf_counter() - began
        self.queries += len(queries)
        return found

    def costs(self) -> dict[str, float]:
        """What a passage takes, and a query of those that were searched for, on average."""
        milliseconds = 1000 * self.seconds / max(1, self.queries)
        return {"bytes_per_passage": self.bytes_per_passage, "search_ms_per_query": round(milliseconds, 4)}

    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        if self._index is None:
            return exact_search(queries, self.stored, k, first_row=self.first_row)
        k = min(k, self._index.ntotal)
        if k == 0:  # a rank without a passage
            return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        if self.vectors.form == "int8":
            scores, rows = self._index.search(queries, k)
            return scores, rows + self.first_row
        distances, rows = self._index.search(self._bits(queries), k)
        scores = -distances.astype(np.float32)
        if self.vectors.form == "binary_rescored":
            for start in range(0, len(queries), _AT_ONCE):
                part = slice(start, start + _AT_ONCE)
                self._rescore(queries[part], scores[part], rows[part])
        return scores, rows + self.first_row

    def _rescore(self, queries: np.ndarray, scores: np.ndarray, rows: np.ndarray) -> None:
        """Order the best hits again, in place."""
        best = rows[:, :RESCORED]
        signs = np.unpackbits(self.stored[best], axis=2, count=self._width).astype(np.float32) * 2 - 1
        again = np.einsum("qd,qkd->qk", queries, signs)
        # above all others, whose scores are at most 0, and on one scale on all ranks
        again += np.abs(queries).sum(1, keepdims=True) + 1
        order = np.argsort(-again, axis=1, kind="stable")
        rows[:, :RESCORED] = np.take_along_axis(best, order, 1)
        scores[:, :RESCORED] = np.take_along_axis(again, order, 1)

    def _cut(self, rows: np.ndarray, normalize: bool) -> np.ndarray:
        rows = np.ascontiguousarray(rows[:, : self.vectors.dimensions], dtype=np.float32)
        if normalize and self.vectors.dimensions:
            rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        return rows

    def _bits(self, rows: np.ndarray) -> np.ndarray:
        return np.packbits(rows > 0, axis=1)


def _ends(passages: np.ndarray, device: torch.device) -> np.ndarray:
    """Passages of which each dimension's least and greatest number is that of all ranks' passages, [2 × ranks, D]."""
    own = np.stack([passages.min(0), passages.max(0)]) if len(passages) else passages
    return gather_rows(torch.from_numpy(own).to(device), gather_sizes(len(own), device)).cpu().numpy()
