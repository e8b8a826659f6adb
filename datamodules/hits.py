"""Candidates for queries: BM25, and the fusion of several retrievers' hits by score or by rank."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datamodules.text.languages import STEMMERS
from datamodules.text.words import main_script, read_by_letters, search_terms, unlike_english
from retriever.errors import choose, installed_by

log = logging.getLogger(__name__)

# Snowball's name → bm25s' name of its stop words
_STOP_WORDS = {STEMMERS[code]: code for code in ("en", "de", "nl", "fr", "es", "pt", "it", "ru", "sv", "no")}
# what Snowball stems → its scripts, as datamodules.text.words names them; all else is Latin
_SCRIPTS = {
    "arabic": ("ARABIC",),
    "armenian": ("ARMENIAN",),
    "greek": ("GREEK",),
    "hindi": ("DEVANAGARI",),
    "nepali": ("DEVANAGARI",),
    "persian": ("ARABIC",),
    "russian": ("CYRILLIC",),
    "serbian": ("CYRILLIC", "LATIN"),
    "tamil": ("TAMIL",),
    "yiddish": ("HEBREW",),
}
LOOKED_AT = 300  # passages, and characters of each, by which a corpus' script is told


@dataclass(frozen=True)
class Hits:
    """The best passages of Q queries.

    Attributes:
        scores: float32 [Q, k], highest first.
        rows: int64 [Q, k], passages as rows of the corpus; −1 where there are fewer, with score −inf.
    """

    scores: np.ndarray
    rows: np.ndarray


class Bm25Terms:
    """What BM25 (bm25s) counts of texts: words by a Snowball stemmer, without a language's stop words.

    Texts in scripts without spaces between words, and Korean ones, are searched by characters and pairs of characters
    (:func:`~datamodules.text.words.search_terms`). Where the stemmer is for another script than the corpus', a warning
    says so.

    Args:
        sample: passages, N texts.
        language: the stemmer's and the stop words' (a name that Snowball knows); None compares words as they are.
        unlike_english: whether any text is one (:func:`~datamodules.text.words.unlike_english`).
    """

    def __init__(self, sample: Sequence[str], language: str | None, unlike_english: bool) -> None:
        # bm25s starts JAX where that is installed, and JAX takes three quarters of a GPU's memory and orders ties
        # otherwise
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        with installed_by("prepare", "BM25"):
            import bm25s
            import Stemmer

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it tells of every index
        self._tokenize, self._unlike_english = bm25s.tokenize, unlike_english
        self._options: dict[str, Any] = {"stopwords": [], "stemmer": None, "show_progress": False}
        if language is not None:
            choose("mine.retrievers.bm25.bm25.language", language, Stemmer.algorithms())
            _say_what_is_not_stemmed(sample, language)
            self._options |= {"stopwords": _STOP_WORDS.get(language, []), "stemmer": Stemmer.Stemmer(language)}
        if unlike_english:
            self._options["token_pattern"] = r"\S+"

    def of(self, texts: Sequence[str], numbered: bool = False) -> Any:
        """Terms of each text, as lists of strings, or as bm25s numbers them."""
        texts = [" ".join(found) for found in search_terms(texts)] if self._unlike_english else list(texts)
        return self._tokenize(texts, return_ids=numbered, **self._options)


class Bm25Index:
    """BM25 (bm25s) over all passages, in memory. What it counts, see :class:`Bm25Terms`.

    Args:
        passages: the corpus, N texts.
        queries: Q texts.
        k1: term frequency saturation.
        b: length normalisation.
        language: the stemmer's and the stop words'.
    """

    def __init__(
        self,
        passages: Sequence[str],
        queries: Sequence[str],
        k1: float = 0.9,
        b: float = 0.4,
        language: str | None = "english",
    ) -> None:
        special = any(unlike_english(text) for texts in (passages, queries) for text in texts)
        terms = Bm25Terms(passages[:: max(1, len(passages) // LOOKED_AT)], language, special)
        import bm25s

        self.size = len(passages)
        self._index = bm25s.BM25(k1=k1, b=b)
        self._index.index(terms.of(passages, numbered=True), show_progress=False)
        self._queries = terms.of(queries)

    def best(self, k: int, part: slice = slice(None)) -> Hits:
        """Find the best ``k`` passages of each query, or of a part of them, [Q, k].

        A passage that shares no term with a query is no hit of it.
        """
        rows, scores = self._index.retrieve(
            self._queries[part], k=min(k, self.size), show_progress=False, backend_selection="numpy"
        )
        found = scores > 0
        return Hits(np.where(found, scores, -np.inf).astype(np.float32), np.where(found, rows, -1).astype(np.int64))


def bm25_search(
    passages: Sequence[str],
    queries: Sequence[str],
    k: int,
    k1: float = 0.9,
    b: float = 0.4,
    language: str | None = "english",
) -> Hits:
    """Search a corpus by BM25, see :class:`Bm25Index`; the best ``k`` passages of each query, [Q, k]."""
    return Bm25Index(passages, queries, k1, b, language).best(k)


def _say_what_is_not_stemmed(passages: Sequence[str], language: str) -> None:
    script = main_script(text[:LOOKED_AT] for text in passages)
    if script is None or script in _SCRIPTS.get(language, ("LATIN",)):
        return
    written = "Han" if script == "CJK" else script.capitalize()
    if read_by_letters(script):
        log.warning(
            "BM25: the passages are mostly in %s script: they are searched by characters and pairs of characters; "
            "language=%s stems the words of other scripts alone",
            written,
            language,
        )
        return
    others = [name for name, theirs in _SCRIPTS.items() if script in theirs]
    log.warning(
        "BM25: language=%s knows no word of %s script, which most passages are in: words are compared as they are "
        "written, not stemmed%s",
        language,
        written,
        f" (in experiments.prepare, mine.retrievers.bm25.bm25.language takes {' or '.join(others)})" if others else "",
    )


def fuse_scores(runs: Sequence[Hits], weights: Sequence[float], k: int) -> Hits:
    """Weighted sum of several runs' scores, each min-max scaled over its own hits of a query; 0 where a run lacks one.

    Args:
        runs: the same Q queries in each.
        weights: one per run.
        k: fused hits per query; a query with fewer distinct hits is filled with row −1 and score −inf.

    Returns:
        Hits [Q, k], highest first, equal scores by ascending row.
    """
    return _fuse(runs, [w * min_max(run.scores.astype(np.float64)) for run, w in zip(runs, weights, strict=True)], k)


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


def min_max(scores: np.ndarray) -> np.ndarray:
    """Scale each query's finite scores [Q, k] to [0, 1], or to 0 where they are all one; others become 0."""
    there = np.isfinite(scores)
    low = scores.min(1, keepdims=True, initial=np.inf, where=there)
    high = scores.max(1, keepdims=True, initial=-np.inf, where=there)
    spread = np.where(high > low, high - np.where(there.any(1, keepdims=True), low, 0.0), 1.0)
    return np.where(there, (np.where(there, scores, 0.0) - np.where(np.isfinite(low), low, 0.0)) / spread, 0.0)
