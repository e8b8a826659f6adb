"""Orders to hold a cross-encoder's against: a dense retriever's, its fusion with BM25, the best of all."""

import sys
from collections.abc import Mapping

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from callbacks.evaluation.ranker import Ranking
from datamodules.caches import cached_embeddings
from datamodules.corpus import EvaluationSet
from datamodules.hits import Hits, fuse_scores
from datamodules.prompted import passage_tokens, query_tokens
from retriever.encoder.text_encoder import TextEncoder
from retriever.printable import printable
from retriever.search import exact_search


def without_own(data: EvaluationSet, hits: Hits, depth: int, ignore_identical_ids: bool) -> Hits:
    """The best ``depth`` hits, the query's own passage taken out where ``ignore_identical_ids`` asks for it."""
    own = data.corpus.rows(list(data.queries))[:, None] if ignore_identical_ids else -1
    own = np.where([[data.is_query_itself(query)] for query in data.queries], own, -1)
    is_own = (hits.rows == own) & (hits.rows >= 0)
    order = np.argsort(is_own, axis=1, kind="stable")  # own ids to the end
    # a corpus as small as the depth may have no other passage to put in its place
    kept = order[:, : min(depth, hits.rows.shape[1] - int(is_own.any()))]
    return Hits(np.take_along_axis(hits.scores, kept, 1), np.take_along_axis(hits.rows, kept, 1))


def dense_orders(
    dense: TextEncoder, weight: float, data: EvaluationSet, bm25: Hits, how: Ranking
) -> dict[str, tuple[Hits, Hits]]:
    """``dense`` and ``fused`` → its order of the candidates, and its best of the corpus.

    Args:
        dense: a retriever.
        weight: its share in the fusion; BM25 has the rest.
        data: Q queries and the corpus.
        bm25: the candidates, [Q, k].
        how: where the retriever encodes.
    """
    encoder = dense.to(how.device)
    tokens = {
        "passage": passage_tokens(data.corpus, encoder, how.cache_dir),
        "query": query_tokens(list(data.queries.values()), encoder, how.cache_dir, [data.name, data.corpus.name]),
    }
    with how.autocast():
        passages, queries = (
            cached_embeddings(t, encoder, how.cache_dir, how.token_budget, f"encode {data.name} ({kind})")
            for kind, t in tokens.items()
        )
    depth = bm25.rows.shape[1]
    found = Hits(*exact_search(queries, passages, max(how.hits, depth) + 1))
    whole = without_own(data, found, how.hits, how.ignore_identical_ids)
    cosines = np.einsum("qd,qkd->qk", queries, passages[bm25.rows])
    same = Hits(np.where(bm25.rows >= 0, cosines, -np.inf).astype(np.float32), bm25.rows)
    # min-max scaling looks at a retriever's own best hits: as many of the one as of the other
    best = Hits(whole.scores[:, :depth], whole.rows[:, :depth])
    weights = [1 - weight, weight]
    return {
        "dense": (same, whole),
        "fused": (fuse_scores([bm25, same], weights, depth), fuse_scores([bm25, best], weights, 2 * depth)),
    }


def oracle(data: EvaluationSet, candidates: Hits) -> Hits:
    """The candidates scored by their judgements."""
    grades = np.zeros(candidates.rows.shape, np.float32)
    for number, judged in enumerate(data.qrels[query] for query in data.queries):
        for row, grade in zip(data.corpus.rows(list(judged)), judged.values(), strict=True):
            grades[number][candidates.rows[number] == row] = grade
    return Hits(grades, candidates.rows)


def print_orders(table: Mapping[str, Mapping[str, Mapping[str, float | None]]], depth: int) -> None:
    """Print, for each data set, order → ``candidates`` and ``corpus`` → nDCG@10."""
    console = Console(width=None if sys.stdout.isatty() else 132)
    for name, orders in table.items():
        title = f"{name}: nDCG@10 of several orders of BM25's best {depth}, and of their own best of the corpus"
        console.print(escape(printable(title)))
        view = Table(Column("order", no_wrap=True), *(Column(w, justify="right") for w in ("candidates", "corpus")))
        for order, figures in orders.items():
            view.add_row(order, *("" if value is None else f"{value:.4f}" for value in figures.values()))
        console.print(view)
