"""The first passages of each query, read from rankings."""

import logging
from collections.abc import Collection, Mapping
from pathlib import Path

from callbacks.evaluation.metrics import in_trec_order

log = logging.getLogger(__name__)
TOP = 10
Ranks = dict[str, dict[str, int]]  # query id → passage id → rank, from 1; of the first ten, and of passages asked for
Wanted = Mapping[str, Collection[str]]  # query id → passages whose ranks are kept below the first ten, too


def read_ranks(path: Path, wanted: Wanted) -> Ranks | None:
    """Read a run's ``trec_runs`` file; None where it cannot be read.

    It is looked at beside figures that do not depend on it, so what is damaged is said in the log, and left out.
    """
    first = frozenset(str(rank) for rank in range(1, TOP + 1))  # lines are many: text is compared, not numbers
    below = {f"{query} Q0 {passage}" for query, passages in wanted.items() for passage in passages}
    found: Ranks = {}
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            for line in file:
                pair, rank, _, _ = line.rsplit(" ", 3)
                if rank not in first and pair not in below:
                    continue
                query, middle, passage = pair.partition(" Q0 ")
                if not middle:
                    raise ValueError(line)
                found.setdefault(query, {})[passage] = int(rank)
    except ValueError as error:  # UnicodeDecodeError is one
        log.warning("%s: not in TREC's columns (%s), so its rankings are not shown", path, error)
        return None
    return found


def ranks_of(hits: Mapping[str, Mapping[str, float]], wanted: Wanted) -> Ranks:
    """Ranks of what another tool found: query id → passage id → score."""
    return {
        query: {
            passage: rank
            for rank, (passage, _) in enumerate(in_trec_order(scores, len(scores)), 1)
            if rank <= TOP or passage in wanted.get(query, ())
        }
        for query, scores in hits.items()
    }
