"""Candidates for queries: BM25, and the fusion of several retrievers' hits by score or by rank."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import Stemmer

from retriever.errors import choose

# Snowball's name → bm25s' name of its stop words
_STOP_WORDS = {
    "english": "en",
    "german": "de",
    "dutch": "nl",
    "french": "fr",
    "spanish": "es",
    "portuguese": "pt",
    "italian": "it",
    "russian": "ru",
    "swedish": "sv",
    "norwegian": "no",
}


@dataclass(frozen=True)
class Hits:
    """The best passages of Q queries.

    Attributes:
        scores: float32 [Q, k], highest first.
        rows: int64 [Q, k], passages as rows of the corpus; −1 where there are fewer, with score −inf.
    """

    scores: np.ndarray
    rows: np.ndarray


def bm25_search(
    passages: Sequence[str], queries: Sequence[str], k: int, k1: float = 0.9, b: float = 0.4, language: str = "english"
) -> Hits:
    """BM25 (bm25s) with a Snowball stemmer and, where bm25s has them, the language's stop words.

    Args:
        passages: the corpus.
        queries: Q texts.
        k: hits per query, at most the corpus' size.
        k1: term frequency saturation.
        b: length normalisation.
        language: the stemmer's and the stop words' (a name that Snowball knows).

    Returns:
        Hits [Q, k]; a passage that shares no word with the query is none of its hits.
    """
    # bm25s starts JAX where that is installed, and JAX takes three quarters of a GPU's memory and orders ties otherwise
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import bm25s

    if language not in Stemmer.algorithms():
        choose("mine.retrievers.bm25.bm25.language", language, Stemmer.algorithms())
    stemmer = Stemmer.Stemmer(language)
    stop_words: str | list[str] = _STOP_WORDS.get(language, [])
    index = bm25s.BM25(k1=k1, b=b)
    index.index(
        bm25s.tokenize(list(passages), stopwords=stop_words, stemmer=stemmer, show_progress=False), show_progress=False
    )
    tokens = bm25s.tokenize(list(queries), stopwords=stop_words, stemmer=stemmer, show_progress=False)
    rows, scores = index.retrieve(tokens, k=min(k, len(passages)), show_progress=False, backend_selection="numpy")
    found = scores > 0
    return Hits(np.where(found, scores, -np.inf).astype(np.float32), np.where(found, rows, -1).astype(np.int64))


def fuse_scores(runs: Sequence[Hits], weights: Sequence[float], k: int) -> Hits:
    """Weighted sum of several runs' scores, each min-max scaled over its own hits of a query; 0 where a run lacks one.

    Args:
        runs: the same Q queries in each.
        weights: one per run.
        k: fused hits per query; a query with fewer distinct hits is filled with row −1 and score −inf.

    Returns:
        Hits [Q, k], highest first, equal scores by ascending row.
    """
    return _fuse(runs, [w * _min_max(run.scores.astype(np.float64)) for run, w in zip(runs, weights, strict=True)], k)


def fuse_ranks(runs: Sequence[Hits], weights: Sequence[float], k: int, constant: float = 60.0) -> Hits:
    """Reciprocal-rank fusion: the sum of weight / (constant + rank), ranks from 1 (Cormack et al. 2009).

    Args:
        runs: the same Q queries in each.
        weights: one per run.
        k: as for :func:`fuse_scores`.
        constant: the paper's 60.
    """
    shares = [
        np.broadcast_to(w / (constant + 1 + np.arange(r.rows.shape[1])), r.rows.shape)
        for r, w in zip(runs, weights, strict=True)
    ]
    return _fuse(runs, shares, k)


def _fuse(runs: Sequence[Hits], shares: Sequence[np.ndarray], k: int) -> Hits:
    queries = len(runs[0].rows)
    scores = np.full((queries, k), -np.inf, np.float32)
    rows = np.full((queries, k), -1, np.int64)
    all_rows, all_shares = np.concatenate([r.rows for r in runs], axis=1), np.concatenate(shares, axis=1)
    for query in range(queries):
        there = all_rows[query] >= 0
        distinct, inverse = np.unique(all_rows[query][there], return_inverse=True)
        total = np.bincount(inverse, weights=all_shares[query][there], minlength=len(distinct))
        order = np.lexsort((distinct, -total))[:k]
        scores[query, : len(order)], rows[query, : len(order)] = total[order], distinct[order]
    return Hits(scores, rows)


def _min_max(scores: np.ndarray) -> np.ndarray:
    there = np.isfinite(scores)
    low = scores.min(1, keepdims=True, initial=np.inf, where=there)
    high = scores.max(1, keepdims=True, initial=-np.inf, where=there)
    spread = np.where(high > low, high - np.where(there.any(1, keepdims=True), low, 0.0), 1.0)
    return np.where(there, (np.where(there, scores, 0.0) - np.where(np.isfinite(low), low, 0.0)) / spread, 0.0)
