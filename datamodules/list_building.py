"""Query lists from a corpus with a teacher that needs no download: BM25 fused with an encoder's cosines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.caches import cached_embeddings, cached_tokens
from datamodules.corpus import Corpus
from datamodules.free_queries import SourceQueries
from datamodules.mining import Hits, bm25_search, fuse_scores
from datamodules.query_lists import QueryList
from retriever.encoder import TextEncoder
from retriever.search import exact_search


def fusion_teacher(
    corpus: Corpus, queries: Sequence[str], encoder: TextEncoder, cache_dir: str | Path, options: Mapping[str, Any]
) -> Hits:
    """Scores in [0, 1]: a weighted sum of BM25 and cosine, each min-max scaled over its own best hits.

    Args:
        corpus: searched whole.
        queries: Q texts.
        encoder: gives the cosines.
        cache_dir: where token ids and embeddings are kept.
        options: ``depth`` (hits of each retriever), ``bm25_weight``, ``dense_weight``, ``k1``, ``b``, ``list_length``,
            ``token_budget``.
    """
    lexical = bm25_search(corpus.passages.to_pylist(), queries, options["depth"], options["k1"], options["b"])
    passage_tokens = cached_tokens(corpus.passages, encoder, "passage", cache_dir)
    query_tokens = cached_tokens(queries, encoder, "query", cache_dir)
    budget = options["token_budget"]
    passages = cached_embeddings(passage_tokens, encoder, cache_dir, budget, f"encode {corpus.name}")
    asked = cached_embeddings(query_tokens, encoder, cache_dir, budget, "encode queries")
    dense = Hits(*exact_search(asked, passages, options["depth"]))
    return fuse_scores([lexical, dense], [options["bm25_weight"], options["dense_weight"]], options["list_length"])


def make_lists(source: SourceQueries, corpus: Corpus, hits: Hits, chosen: np.ndarray) -> Iterator[QueryList]:
    """Lists of the queries in ``chosen`` (bool [Q], in the order of ``source.queries``)."""
    ids = np.array(corpus.ids.to_pylist(), dtype=object)
    for number, (query_id, query) in enumerate(source.queries.items()):
        found = hits.rows[number] >= 0
        if chosen[number] and found.sum() >= 2:
            yield QueryList(
                query_id=query_id,
                query=query,
                query_type=source.query_type,
                corpus=corpus.name,
                positive_ids=source.positive_ids[query_id],
                passage_ids=ids[hits.rows[number][found]].tolist(),
                teacher_scores=[float(s) for s in hits.scores[number][found]],
            )
