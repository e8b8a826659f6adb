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
    kinds = types.unique().to_pylist()
    prompts = {kind: encoder.spec.prompted_for(kind, *names).prompt("query") for kind in kinds}
    if len(set(prompts.values())) == 1:
        return cached_tokens(texts, encoder.prompted_for(kinds[0], *names), "query", cache_dir)
    every = pa.array(texts, pa.string()) if isinstance(texts, list) else texts
    of_each = np.array([prompts[kind] for kind in types.to_pylist()])
    rows = [np.flatnonzero(of_each == prompt) for prompt in dict.fromkeys(prompts.values())]
    firsts = [next(kind for kind in kinds if prompts[kind] == of_each[some[0]]) for some in rows]
    parts = [
        cached_tokens(every.take(pa.array(some)), encoder.prompted_for(kind, *names), "query", cache_dir)
        for kind, some in zip(firsts, rows, strict=True)
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
