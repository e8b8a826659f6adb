"""Search, scores and TREC run of many queries, some queries at a time, so that memory does not grow with them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from callbacks.evaluation.metrics import PerQuery, Run, in_trec_order, score_queries, without_self_hits
from datamodules.corpus import EvaluationSet
from datamodules.storage.files import atomic_path
from retriever.distributed.ranks import gather_rows, gather_sizes, rank, world_size
from retriever.search import exact_search, merge_hits

log = logging.getLogger(__name__)
# Each block of queries searched reads all passages again, so it is large: 50 MB of hits at 1,000 a query. Hits as
# Python objects take ten times that, so fewer queries are scored together.
_SEARCHED, _SCORED = 4096, 512


def search_and_score(
    data: EvaluationSet,
    queries: np.ndarray,
    passages: np.ndarray,
    hits: int,
    *,
    first_row: int = 0,
    ignore_identical_ids: bool = True,
    keep_run: Callable[[Run], None] = lambda run: None,
    device: torch.device | str = "cpu",
) -> PerQuery:
    """Score exact search over a corpus whose passages are spread over the ranks.

    Args:
        data: Q queries, their judgements, N passages.
        queries: embeddings of all queries, [Q, D], on every rank.
        passages: embeddings of this rank's passages, [n, D]; may be memory-mapped.
        hits: hits per query that are scored.
        first_row: of this rank's passages among all.
        ignore_identical_ids: take the query's own id out of its hits, see
            :func:`~callbacks.evaluation.metrics.without_self_hits`.
        keep_run: called on the first rank with the run of some queries at a time, in their order.
        device: where ranks exchange hits.

    Returns:
        Metric → query id → value on the first rank, {} on others.
    """
    names = list(data.queries)
    per_query: dict[str, dict[str, float]] = {}
    left_out = 0
    searched = max(_SCORED, _SEARCHED // world_size())  # every rank gets the hits of all
    for start in range(0, len(names), searched):
        found = exact_search(queries[start : start + searched], passages, hits + 1, first_row=first_row)
        scores, rows = _of_all_ranks(found, hits + 1, device)
        if rank() != 0:
            continue
        for first in range(0, len(rows), _SCORED):
            part = slice(first, first + _SCORED)
            asked = names[start + first : start + first + len(rows[part])]
            run = _run(data, asked, scores[part], rows[part])
            if ignore_identical_ids:
                whole, run = run, without_self_hits(run, data.qrels)
                left_out += sum(len(whole[query]) - len(run[query]) for query in asked)
            keep_run(run)
            for metric, values in score_queries({query: data.qrels[query] for query in asked}, run).items():
                per_query.setdefault(metric, {}).update(values)
    if left_out:
        log.info(
            "%s: %d hits left out that have their query's id and are not judged relevant to it "
            "(evaluation.ignore_identical_ids=false keeps them)",
            data.name,
            left_out,
        )
    return per_query


@contextmanager
def trec_file(path: Path, tag: str, hits: int) -> Iterator[Callable[[Run], None]]:
    """Write a TREC run file part by part; it appears when it is whole.

    Args:
        path: the file.
        tag: the run's name in it.
        hits: per query, at most.
    """
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:

        def append(run: Run) -> None:
            for query, found in run.items():
                for place, (passage, score) in enumerate(in_trec_order(found, hits), 1):
                    file.write(f"{query} Q0 {passage} {place} {score:.9g} {tag}\n")

        yield append


def _of_all_ranks(
    found: tuple[np.ndarray, np.ndarray], k: int, device: torch.device | str
) -> tuple[np.ndarray, np.ndarray]:
    """The best ``k`` of all ranks' hits, on the first rank; on others they are not yet put in order."""
    sizes = gather_sizes(found[0].shape[1], torch.device(device))
    if len(sizes) == 1:
        return found
    scores, rows = (gather_rows(torch.from_numpy(part.T.copy()).to(device), sizes).T.cpu().numpy() for part in found)
    return merge_hits([(scores, rows)], k) if rank() == 0 else (scores, rows)


def _run(data: EvaluationSet, queries: list[str], scores: np.ndarray, rows: np.ndarray) -> Run:
    ids = data.corpus.ids.take(rows.ravel()).to_pylist()
    width = rows.shape[1]
    return {
        query: dict(zip(ids[number * width : (number + 1) * width], scores[number].tolist(), strict=True))
        for number, query in enumerate(queries)
    }
