"""Evaluation queries that training came close to, whatever the leak guard let through."""

from collections.abc import Sequence

import numpy as np

from datamodules.batch_sampler import WeightedLists
from datamodules.corpus import EvaluationSet
from datamodules.leakage.queries import find_leaks
from datamodules.leakage.same_passages import RelevantPassages, translated
from datamodules.query_lists import ragged_take

NEARLY_EQUAL = 0.6  # not the guard's setting: a report's rule is one for all runs that it compares
_BLOCK = 20_000


def find_overlap(data: EvaluationSet, sources: Sequence[WeightedLists]) -> dict[str, str]:
    """Evaluation queries that share a relevant passage with, or nearly equal, a query that is trained on.

    The rules are those of :func:`~datamodules.leakage.queries.find_leaks`, but every list with a positive weight
    counts, synthetic ones too: the guard lets these share their source passage with an evaluation query. A passage is
    shared where its text is, under whatever id, in whatever corpus. Lists are looked at block by block.

    Args:
        data: the evaluation set.
        sources: the train lists, as they are drawn from.

    Returns:
        Query id → reason, in the order of the queries; a shared passage goes before near-equal wording.
    """
    ids, texts = list(data.queries), list(data.queries.values())
    relevant = RelevantPassages(data.corpus, data.relevant())
    reasons: dict[str, str] = {}
    for source in sources:
        used = np.flatnonzero(source.weights > 0)
        positives, _ = ragged_take(source.lists.positive_rows, source.lists.positive_offsets, used)
        copies = relevant.among(source.corpus, np.unique(positives))
        same = translated(relevant.relevant, copies)
        judged = [same[query] for query in ids]
        for begin in range(0, len(used), _BLOCK):
            lists = source.lists.select(used[begin : begin + _BLOCK])
            names = lists.query_ids.to_pylist()
            queries = dict(zip(names, lists.queries.to_pylist(), strict=True))
            labels = dict(zip(names, lists.positive_ids(source.corpus), strict=True))
            for leak in find_leaks(texts, judged, queries, labels, NEARLY_EQUAL, copies):
                known = reasons.get(ids[leak.position])
                if known is None or (_shares(leak.reason) and not _shares(known)):
                    named = f"the train query {leak.evaluation_query} of {source.lists.source.name}"
                    reasons[ids[leak.position]] = f"{leak.reason} {named}"
    return {query: reasons[query] for query in ids if query in reasons}


def _shares(reason: str) -> bool:
    return reason.startswith("shares")
