"""BM25 over a part of a corpus at a time, with the whole corpus' term weights: memory is bounded by the part."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa

from datamodules.hits import LOOKED_AT, Bm25Terms, Hits
from datamodules.storage.columns import each_string, string_blocks
from datamodules.text.words import unlike_english


@dataclass(frozen=True)
class TermWeights:
    """What BM25 knows of a whole corpus: of the terms of some queries, for no other is looked up.

    Attributes:
        terms: finds the terms of texts.
        number: term → its place, of V.
        inverse_frequency: float32 [V], as Lucene has it.
        mean_length: of the passages, in terms.
        queries: int64 each, the terms of each of Q queries.
    """

    terms: Bm25Terms
    number: dict[str, int]
    inverse_frequency: np.ndarray
    mean_length: float
    queries: list[np.ndarray]


def term_weights(passages: pa.Array, queries: Sequence[str], language: str | None) -> TermWeights:
    """Count in how many passages each term of the queries is; reads all passages once."""
    sample = passages[:: max(1, len(passages) // LOOKED_AT)].to_pylist()
    texts = chain(queries, each_string(passages))
    terms = Bm25Terms(sample, language, any(map(unlike_english, texts)))
    asked = terms.of(queries)
    number = {term: n for n, term in enumerate(dict.fromkeys(term for found in asked for term in found))}
    counts, length = Counter[str](), 0
    for found in _terms_of(passages, terms):
        length += len(found)
        counts.update(number.keys() & set(found))
    frequency = np.array([counts[term] for term in number], np.float64)
    inverse = np.log(1 + (len(passages) - frequency + 0.5) / (frequency + 0.5)).astype(np.float32)
    numbered = [np.array([number[term] for term in found], np.int64) for found in asked]
    return TermWeights(terms, number, inverse, length / len(passages), numbered)


class Bm25Part:
    """BM25's scores of a part of a corpus.

    Args:
        passages: the part, n texts.
        weights: of the whole corpus.
        k1: term frequency saturation.
        b: length normalisation.
    """

    def __init__(self, passages: pa.Array, weights: TermWeights, k1: float, b: float) -> None:
        self.size, self._weights = len(passages), weights
        columns = list(zip(*self._entries(passages), strict=True))
        rows, terms, frequencies, lengths = (np.concatenate(column) for column in columns)
        saturated = frequencies / (k1 * ((1 - b) + b * lengths / weights.mean_length) + frequencies)
        scores = (weights.inverse_frequency[terms] * saturated).astype(np.float32)
        order = np.argsort(terms, kind="stable")
        self._rows, self._scores = rows[order], scores[order]
        self._ends = np.cumsum(np.bincount(terms, minlength=len(weights.number)))

    def best(self, k: int, part: slice) -> Hits:
        """Find the best ``k`` passages of a part of the queries; equal scores by ascending row, [Q, k]."""
        queries = self._weights.queries[part]
        k = min(k, self.size)
        found = Hits(np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int64))
        total = np.zeros(self.size, np.float32)
        for query, terms in enumerate(queries):
            total[:] = 0
            for term in terms:
                entries = slice(self._ends[term - 1] if term else 0, self._ends[term])
                total[self._rows[entries]] += self._scores[entries]  # a passage is there once
            least = np.partition(total, self.size - k)[self.size - k]
            rows = np.flatnonzero((total >= least) & (total > 0))
            rows = rows[np.lexsort((rows, -total[rows]))[:k]]
            found.scores[query, : len(rows)], found.rows[query, : len(rows)] = total[rows], rows
        return found

    def _entries(self, passages: pa.Array) -> Iterator[tuple[np.ndarray, ...]]:
        """Blocks of: row, term, how often the passage has it, the passage's length."""
        number, start = self._weights.number, 0
        for block in string_blocks(passages):
            found = self._weights.terms.of(block.to_pylist())
            lengths = np.array([len(terms) for terms in found], np.int64)
            numbers = np.fromiter((number.get(term, -1) for terms in found for term in terms), np.int64, lengths.sum())
            pairs = np.repeat(np.arange(len(found)), lengths) * len(number) + numbers
            pairs, frequencies = np.unique(pairs[numbers >= 0], return_counts=True)
            rows, terms = np.divmod(pairs, max(1, len(number)))
            yield (start + rows).astype(np.int32), terms.astype(np.int32), frequencies.astype(np.int32), lengths[rows]
            start += len(found)


def _terms_of(passages: pa.Array, terms: Bm25Terms) -> Iterator[list[str]]:
    for block in string_blocks(passages):
        yield from terms.of(block.to_pylist())
