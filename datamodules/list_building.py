"""Query lists from a corpus with a teacher that needs no download: BM25 fused with an encoder's cosines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.caches import cached_embeddings, cached_tokens
from datamodules.corpus import Corpus, find_dataset, load_evaluation_set
from datamodules.mining import Hits, bm25_search, fuse_scores
from datamodules.query_lists import QueryList
from retriever.encoder import TextEncoder
from retriever.errors import choose
from retriever.search import exact_search

QUERY_SOURCES = ("judged", "titles")


@dataclass(frozen=True)
class SourceQueries:
    """Queries that lists are made for.

    Attributes:
        query_type: ``human``, ``title``, …
        queries: id → text.
        positive_ids: id → labelled positives.
    """

    query_type: str
    queries: dict[str, str]
    positive_ids: dict[str, list[str]]


def collect_queries(
    source: str, dataset: str, corpus: Corpus, split: str = "train", data_dir: str | Path = "data"
) -> SourceQueries:
    """Queries without any generation.

    Args:
        source: ``judged``: the queries of a split with their relevant passages; ``titles``: each passage's title, with
            that passage as its positive.
        dataset: as for :func:`~datamodules.corpus.find_dataset`.
        corpus: the loaded corpus.
        split: of the qrels; never the one that is evaluated on.
        data_dir: where downloaded data sets lie.
    """
    if choose("queries.source", source, QUERY_SOURCES) == "judged":
        judged = load_evaluation_set(str(find_dataset(dataset, data_dir)), split, corpus=corpus)
        relevant = {q: sorted(ids) for q, ids in judged.relevant().items()}
        return SourceQueries("human", judged.queries, relevant)
    titles = {
        f"title-{i}": title.strip()
        for i, title in zip(corpus.ids.to_pylist(), corpus.titles.to_pylist(), strict=True)
        if title.strip()
    }
    return SourceQueries("title", titles, {q: [q.removeprefix("title-")] for q in titles})


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
