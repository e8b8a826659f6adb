"""What finds the passages of a query in a corpus: the interface, and BM25."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from datamodules.bm25_parts import Bm25Part, TermWeights, term_weights
from datamodules.corpus import Corpus
from datamodules.hits import Bm25Index, Hits
from datamodules.storage.columns import update_digest
from datamodules.text.words import METHOD

_INDEXED = 2**18  # passages that BM25 holds in memory
_counted: dict[bytes, TermWeights] = {}
SEARCHED = 8_192  # queries whose hits are in memory; twice the queries that faiss multiplies together


class Searcher(ABC):
    """A searcher whose work on a corpus can be cut into parts of passages."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """JSON values that decide the hits."""

    @abstractmethod
    def describe(self) -> str:
        """What it is, in words."""

    @abstractmethod
    def parts(self, passages: int) -> list[range]:
        """Which passages are searched together."""

    @abstractmethod
    def search(
        self, corpus: Corpus, part: range, queries: pa.Array, k: int, types: pa.Array | None = None
    ) -> Iterator[Hits]:
        """The best ``k`` of a part, as rows of the whole corpus, for :data:`SEARCHED` queries after the other.

        ``types`` are the queries' types, by which a retriever may choose their prompt.
        """


@dataclass(frozen=True)
class Bm25(Searcher):
    """BM25; a large corpus part by part, each with the term weights of the whole."""

    k1: float = 0.9
    b: float = 0.4
    language: str | None = "english"

    def settings(self) -> dict[str, Any]:
        """See :class:`Searcher`."""
        return {"bm25": asdict(self), "words": METHOD}

    def describe(self) -> str:
        """See :class:`Searcher`."""
        return f"BM25, {', '.join(f'{name} {value}' for name, value in asdict(self).items())}"

    def parts(self, passages: int) -> list[range]:
        """See :class:`Searcher`."""
        return [range(start, min(start + _INDEXED, passages)) for start in range(0, passages, _INDEXED)]

    def search(
        self, corpus: Corpus, part: range, queries: pa.Array, k: int, types: pa.Array | None = None
    ) -> Iterator[Hits]:
        """See :class:`Searcher`."""
        index: Bm25Index | Bm25Part
        if len(part) == len(corpus):
            index = Bm25Index(corpus.passages.to_pylist(), queries.to_pylist(), **asdict(self))
        else:
            weights = self._weights(corpus, queries)
            index = Bm25Part(corpus.passages[part.start : part.stop], weights, self.k1, self.b)
        for start in range(0, len(queries), SEARCHED):
            hits = index.best(k, slice(start, start + SEARCHED))
            yield Hits(hits.scores, np.where(hits.rows >= 0, hits.rows + part.start, -1))

    def _weights(self, corpus: Corpus, queries: pa.Array) -> TermWeights:
        """The term weights; those that were counted last are kept, for the next part."""
        digest = hashlib.sha256(f"{corpus.sha256} {self.language}".encode())
        update_digest(digest, queries)
        if digest.digest() not in _counted:
            _counted.clear()
            _counted[digest.digest()] = term_weights(corpus.passages, queries.to_pylist(), self.language)
        return _counted[digest.digest()]
