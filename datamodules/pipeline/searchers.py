"""What finds the passages of a query in a corpus: the interface, and BM25."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from datamodules.corpus import Corpus
from datamodules.hits import Bm25Index, Hits
from datamodules.text.words import METHOD

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
    """BM25 over the whole corpus at once, for its term weights need all passages."""

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
        return [range(passages)]

    def search(
        self, corpus: Corpus, part: range, queries: pa.Array, k: int, types: pa.Array | None = None
    ) -> Iterator[Hits]:
        """See :class:`Searcher`."""
        index = Bm25Index(corpus.passages.to_pylist(), queries.to_pylist(), **asdict(self))
        yield from (index.best(k, slice(start, start + SEARCHED)) for start in range(0, len(queries), SEARCHED))
