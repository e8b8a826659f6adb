"""Which queries that were cut from passages are worth training on, whatever their language; each other has a reason."""

import re
from collections.abc import Sequence

import numpy as np

from datamodules.pipeline.free_queries import has_letters
from datamodules.splits import text_hashes
from datamodules.text.words import count_words

SEVERAL = "in several passages"
_FEWEST_WORDS = 2
_BOILERPLATE = 3  # passages with the same words, from which on nobody looks for one of them by these
# what stands in lists of references: addresses, identifiers, pages, and authors with a year
_REFERENCE = re.compile(
    r"https?://|www\.|\bdoi\b|\b10\.\d{4,}/|\b(?:isbn|issn|arxiv|pmid)\b[:\s]*\d|\bpp?\.\s?\d|"
    r"\bet al\b.*(?<!\bin )\b(?:19|20)\d\d\b|^\W?\d{1,3}[\].)]\s.*\b(?:19|20)\d\d\b|\S@\S+\.\w",
    re.IGNORECASE,
)


def reason_against(text: str) -> str | None:
    """Say what is wrong with a query by itself, or None; the first that holds counts.

    ``too short`` (less than two words), ``few letters`` (less than 60% of the characters: tables and formulas), or
    ``a reference`` (addresses, pages, authors with a year).
    """
    found = {
        "too short": count_words(text) < _FEWEST_WORDS,
        "few letters": not has_letters(text),
        "a reference": bool(_REFERENCE.search(text)),
    }
    return next((reason for reason, holds in found.items() if holds), None)


def passage_hashes(normalized: Sequence[str], positives: Sequence[Sequence[str]]) -> np.ndarray:
    """Hash the words of queries, once for each passage that they are from.

    Args:
        normalized: the queries' words, by :func:`~datamodules.text.words.normalize_texts`.
        positives: ids of each query's passages; all queries of a passage are among these.
    """
    pairs = {(text, passage) for text, ids in zip(normalized, positives, strict=True) for passage in ids}
    return text_hashes(text for text, _ in pairs)


def boilerplate(hashes: np.ndarray) -> np.ndarray:
    """Find the words that three or more passages have, as ``All rights reserved``: their hashes, sorted.

    Args:
        hashes: those of :func:`passage_hashes` of all passages; they are sorted in place.
    """
    hashes.sort()
    return np.unique(hashes[_BOILERPLATE - 1 :][hashes[_BOILERPLATE - 1 :] == hashes[: 1 - _BOILERPLATE]])
