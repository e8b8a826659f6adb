"""Tokens of queries and passages, each behind the prompt of its type, evaluation set or corpus."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from datamodules.caches import cached_tokens
from datamodules.corpus import Corpus
from retriever.encoder.text_encoder import TextEncoder
from retriever.encoder.tokens import TokenizedTexts
from retriever.errors import did_you_mean

log = logging.getLogger(__name__)


def query_tokens(
    texts: list[str] | pa.Array,
    encoder: TextEncoder,
    cache_dir: str | Path,
    names: Sequence[str | None],
    types: pa.Array | None = None,
) -> TokenizedTexts:
    """Tokenise queries once, see :func:`~datamodules.caches.cached_tokens`.

    Args:
        texts: N queries.
        encoder: with one prompt for queries, or several.
        cache_dir: the cache's folder.
        names: what all of them belong to: evaluation set, corpus.
        types: the query type of each, string array [N], which comes before ``names``; None where they have none.
    """
    several = isinstance(getattr(encoder.spec, "query_prompt", ""), Mapping)  # a cross-encoder has no prompts
    if not several or types is None:
        return cached_tokens(texts, encoder.prompted_for(*names), "query", cache_dir)
    of_prompt: dict[str, list[str]] = {}
    for kind in types.unique().to_pylist():
        of_prompt.setdefault(encoder.spec.prompted_for(kind, *names).prompt("query"), []).append(kind)
    if len(of_prompt) < 2:
        first = next(iter(of_prompt.values()), [])
        return cached_tokens(texts, encoder.prompted_for(*first, *names), "query", cache_dir)
    every = pa.array(texts, pa.string()) if isinstance(texts, list) else texts
    rows = [np.flatnonzero(np.isin(types.to_pylist(), kinds)) for kinds in of_prompt.values()]
    parts = [
        cached_tokens(every.take(pa.array(some)), encoder.prompted_for(kinds[0], *names), "query", cache_dir)
        for kinds, some in zip(of_prompt.values(), rows, strict=True)
    ]
    return TokenizedTexts.concatenate(parts).select(np.argsort(np.concatenate(rows)))


def say_unused_prompts(encoder: TextEncoder, known: Iterable[str]) -> None:
    """Warn of prompts for names that nothing here has.

    Args:
        encoder: with one prompt, or several.
        known: query types, evaluation sets and corpora.
    """
    known = sorted(set(known))
    for name in sorted(getattr(encoder.spec, "prompted_names", set()) - set(known)):
        log.warning(
            "encoder: there is a prompt for %r, which is no query type, evaluation set or corpus here (%s)%s",
            name,
            ", ".join(known),
            did_you_mean(name, known),
        )


def passage_tokens(corpus: Corpus, encoder: TextEncoder, cache_dir: str | Path) -> TokenizedTexts:
    """Tokenise a corpus once, behind its own prompt where it has one."""
    return cached_tokens(corpus.read_by(encoder), encoder.prompted_for(corpus.name), "passage", cache_dir)
