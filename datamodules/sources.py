"""The passages that queries were cut from, and lists without them."""

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from datamodules.list_choice import by_type
from datamodules.query_lists import QueryLists
from retriever.errors import InputError


def with_sources(lists: QueryLists, human_types: Collection[str]) -> np.ndarray:
    """Tell which of N lists have a query that was made from its labelled positive, bool [N]: all but people's."""
    types, groups = by_type(lists)
    return np.array([kind not in human_types for kind in types], bool)[groups]


def without_sources(lists: QueryLists, human_types: Collection[str]) -> QueryLists:
    """Take what queries were made from out of the candidates; as labels these passages stay.

    Args:
        lists: N lists.
        human_types: query types whose labelled positives are judgements, and stay.

    Returns:
        Lists, without those that are left with fewer than two candidates.

    Raises:
        InputError: no list is left.
    """
    hidden = with_sources(lists, human_types)
    of_list = np.repeat(np.arange(len(lists)), np.diff(lists.offsets))
    of_label = np.repeat(np.arange(len(lists)), np.diff(lists.positive_offsets))
    size = 1 + max(int(rows.max(initial=0)) for rows in (lists.rows, lists.positive_rows))
    labels = of_label * size + lists.positive_rows
    stays = ~(hidden[of_list] & np.isin(of_list * size + lists.rows, labels))
    lengths = np.bincount(of_list[stays], minlength=len(lists))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    if len(lists) and not (lengths > 1).any():
        raise InputError(
            f"{lists.source}: without the passages that queries were cut from, no list of {len(lists)} has two "
            "candidates. Make longer lists, or say data.sources=keep."
        )
    left = replace(lists, rows=lists.rows[stays], scores=lists.scores[stays], offsets=offsets)
    return left if (lengths > 1).all() else left.select(lengths > 1)
