"""Search, scores and TREC run of many queries, some queries at a time, so that memory does not grow with them."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from callbacks.evaluation.metrics import Metrics, PerQuery, Run, in_trec_order, without_self_hits
from callbacks.evaluation.vectors import PassageIndex
from datamodules.corpus import Corpus, EvaluationSet
from datamodules.hits import Hits
from datamodules.storage.files import atomic_path
from retriever.distributed.ranks import gather_rows, gather_sizes, rank, world_size
from retriever.errors import InputError, shown
from retriever.search import merge_hits

log = logging.getLogger(__name__)
# Each block of queries searched reads all passages again, so it is large: 50 MB of hits at 1,000 a query. Hits as
# Python objects take ten times that, so fewer queries are scored together.
_SEARCHED, _SCORED = 4096, 512


def search_blocks(
    data: EvaluationSet,
    queries: np.ndarray,
    passages: np.ndarray | PassageIndex,
    k: int,
    *,
    first_row: int = 0,
    device: torch.device | str = "cpu",
    looked_at: int | None = None,
) -> Iterator[Run]:
    """Search a corpus whose passages are spread over the ranks, exactly.

    Args:
        data: Q queries, N passages.
        queries: embeddings of all queries, [Q, D], on every rank.
        passages: embeddings of this rank's passages, [n, D], which may be memory-mapped; or an index of them.
        k: hits per query.
        first_row: of this rank's passages among all.
        device: where ranks exchange hits.
        looked_at: give only so many of the ``k``, and those that are level with the last one; None: all.

    Yields:
        On the first rank, the run of some queries at a time, in their order; every rank must ask for all.
    """
    index = passages if isinstance(passages, PassageIndex) else PassageIndex(passages, first_row=first_row)
    names = list(data.queries)
    searched = max(_SCORED, _SEARCHED // world_size())  # every rank gets the hits of all
    for start in range(0, len(names), searched):
        found = index.search(queries[start : start + searched], k)
        scores, rows = _of_all_ranks(found, k, device)
        if rank() != 0:
            continue
        for first in range(0, len(rows), _SCORED):
            part = slice(first, first + _SCORED)
            asked = names[start + first : start + first + len(rows[part])]
            yield run_of(data.corpus, asked, _best(Hits(scores[part], rows[part]), looked_at))


def _best(hits: Hits, number: int | None) -> Hits:
    """The best hits of each query, and those level with the last of them: ids decide among these."""
    if number is None or number >= hits.scores.shape[1]:
        return hits
    stays = ~(hits.scores < hits.scores[:, number - 1 : number])
    width = int(stays.sum(1).max(initial=0))
    return Hits(hits.scores[:, :width], np.where(stays, hits.rows, -1)[:, :width])


def score_runs(
    data: EvaluationSet,
    runs: Iterable[Run],
    metrics: Metrics,
    *,
    ignore_identical_ids: bool = True,
    keep_run: Callable[[Run], None] = lambda run: None,
    says_left_out: bool = True,
) -> PerQuery:
    """Score a run that comes in parts of some queries each, on the first rank.

    Args:
        data: the queries and their judgements; a query that no part has counts as 0.
        runs: the parts; empty on other ranks.
        metrics: what is computed.
        ignore_identical_ids: take the query's own id out of its hits, see
            :func:`~callbacks.evaluation.metrics.without_self_hits`.
        keep_run: called with each part.
        says_left_out: log how many hits were the query's own id.

    Returns:
        Metric → query id → value on the first rank, {} on others.

    Raises:
        InputError: a part has a query that is none of the set's, or one that an earlier part has.
    """
    per_query: PerQuery = {}
    left_out, missing = 0, dict(data.qrels)
    for run in runs:
        if ignore_identical_ids:
            whole, run = run, without_self_hits(run, data.qrels)
            left_out += sum(len(whole[query]) - len(run[query]) for query in run)
        unknown = sorted(run.keys() - missing.keys())
        if unknown:
            raise InputError(f"{data.name}: the run has query {shown(unknown[0])} twice, or that is none of the set's.")
        keep_run(run)
        for metric, values in metrics.score(
            {query: missing.pop(query) for query in run}, run, data.relevance_level
        ).items():
            per_query.setdefault(metric, {}).update(values)
    if rank() != 0:
        return {}
    if missing:
        for metric, values in metrics.score(missing, {}, data.relevance_level).items():
            per_query.setdefault(metric, {}).update(values)
    if left_out and says_left_out:
        log.info(
            "%s: %d hits left out that have their query's id and are not judged relevant, as BEIR does: in ArguAna and "
            "Quora they are the query itself; where ids are plain numbers, this is chance, and no leak "
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


def run_of(corpus: Corpus, queries: Iterable[str], hits: Hits) -> Run:
    """Query id → passage id → score, of the hits of some queries; row −1 is no hit."""
    run = {}
    for query, rows, scores in zip(queries, hits.rows, hits.scores, strict=True):
        real = rows >= 0
        run[query] = dict(zip(corpus.ids.take(rows[real]).to_pylist(), scores[real].tolist(), strict=True))
    return run


def runs_of(data: EvaluationSet, hits: Hits) -> Iterator[Run]:
    """Give the hits of all queries of a set as runs of some queries at a time."""
    names = list(data.queries)
    for start in range(0, len(names), _SCORED):
        part = slice(start, start + _SCORED)
        yield run_of(data.corpus, names[part], Hits(hits.scores[part], hits.rows[part]))
