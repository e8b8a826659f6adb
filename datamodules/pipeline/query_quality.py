"""Which queries that were cut from passages are worth training on, whatever their language; each other has a reason."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from datamodules.pipeline.free_queries import has_letters
from datamodules.text.words import count_words, normalize_texts

_FEWEST_WORDS = 2
_BOILERPLATE = 3  # passages with the same words, from which on nobody looks for one of them by these
# what stands in lists of references: addresses, identifiers, pages, and authors with a year
_REFERENCE = re.compile(
    r"https?://|www\.|\bdoi\b|\b10\.\d{4,}/|\b(?:isbn|issn|arxiv|pmid)\b[:\s]*\d|\bpp?\.\s?\d|"
    r"\bet al\b.*(?<!\bin )\b(?:19|20)\d\d\b|^\W?\d{1,3}[\].)]\s.*\b(?:19|20)\d\d\b|\S@\S+\.\w",
    re.IGNORECASE,
)


def good_queries(
    queries: Sequence[tuple[str, str, str, list[str]]],
) -> tuple[list[tuple[str, str, str, list[str]]], Counter[str]]:
    """Leave out queries that say nothing of their passage.

    Args:
        queries: id, text, type and ids of the positives of each, all of a group.

    Returns:
        Those that are good, and reason → how many were left out: ``too short`` (less than two words), ``few letters``
        (less than 60% of the characters: tables and formulas), ``a reference`` (addresses, pages, authors with a year),
        ``in several passages`` (three or more with the same words, as ``All rights reserved``). The first that holds
        counts.
    """
    words = normalize_texts([text for _, text, *_ in queries])
    passages_with: dict[str, set[str]] = defaultdict(set)
    for (*_, positives), normal in zip(queries, words, strict=True):
        passages_with[normal].update(positives)
    kept, left_out = [], Counter[str]()
    for query, normal in zip(queries, words, strict=True):
        reason = _reason(query[1]) or ("in several passages" if len(passages_with[normal]) >= _BOILERPLATE else None)
        if reason is None:
            kept.append(query)
        else:
            left_out[reason] += 1
    return kept, left_out


def _reason(text: str) -> str | None:
    found = {
        "too short": count_words(text) < _FEWEST_WORDS,
        "few letters": not has_letters(text),
        "a reference": bool(_REFERENCE.search(text)),
    }
    return next((reason for reason, holds in found.items() if holds), None)
