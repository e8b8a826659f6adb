"""Which lists of a file are taken: some query types, a seeded draw, an evaluation set of them; and the record of it."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from datamodules.batch_sampler import WeightedLists
from datamodules.corpus import Corpus, EvaluationSet, find_file
from datamodules.query_lists import QueryLists, open_query_lists
from datamodules.specs import ListFile
from retriever.errors import InputError, choose

log = logging.getLogger(__name__)


def by_type(lists: QueryLists) -> tuple[list[str], np.ndarray]:
    """The query types, sorted, and each list's as a number into them, int [N]."""
    encoded = lists.query_types.dictionary_encode()
    types, place = np.unique(encoded.dictionary.to_numpy(zero_copy_only=False).astype(str), return_inverse=True)
    return types.tolist(), place[encoded.indices.to_numpy()]


def chosen_lists(
    lists: QueryLists, where: str, types: Sequence[str] | None = None, draw: int | None = None, seed: int = 0
) -> QueryLists:
    """Lists of some types, or a draw of them, in their order.

    A smaller draw with the same seed is part of a larger one, and what is drawn of a type does not depend on the other
    types: 60 lists of one type hold the ten that a mix of six types takes of it.

    Args:
        lists: N lists.
        where: what the lists are, for messages.
        types: the query types to take; None takes all.
        draw: so many lists: an equal number of each of ``types`` (the first types get one more where it does not
            divide), or of all alike where no types are named; None takes all.
        seed: of the draw, not negative.

    Raises:
        InputError: a type that no list has; a draw that is larger than what is there.
    """
    if types is None and draw is None:
        return lists
    if not len(lists):
        raise InputError(f"{where}: no list is left to choose from: see what the leak guard left out, above.")
    known, groups = by_type(lists)
    names = [""] if types is None else [choose(f"{where}: a query type of types", t, known) for t in types]
    taken = []
    for number, name in enumerate(names):
        members = np.flatnonzero(groups == known.index(name)) if name else np.arange(len(lists))
        if draw is not None:
            share = draw // len(names) + (number < draw % len(names))
            if share > len(members):
                of_type = f" of type {name!r}" if name else ""
                raise InputError(
                    f"{where}: draw {draw} asks for {share} lists{of_type}, and {len(members)} are there (the leak "
                    "guard's and the dev lists taken off). Draw fewer, or leave a type out."
                )
            members = np.random.default_rng([seed, *name.encode()]).permutation(members)[:share]
        taken.append(members)
    return lists.select(np.sort(np.concatenate(taken)))


def held_out_lists(
    path: str, types: Sequence[str] | None, corpus: Corpus, cache_dir: str | Path, on_bad_list: str
) -> QueryLists:
    """Open the lists that an evaluation set names in place of a split; evaluation and leak guard read the same ones.

    Args:
        path: the file, or one that is shipped.
        types: the query types to take; None takes all.
        corpus: of the lists.
        cache_dir: as for :func:`~datamodules.query_lists.open_query_lists`.
        on_bad_list: likewise.

    Raises:
        InputError: what opening and choosing them refuses.
    """
    lists, _ = open_query_lists(find_file(path), corpus, cache_dir, on_bad_list)
    return chosen_lists(lists, f"evaluation.datasets: {path}", types)


def held_out_set(name: str, corpus: Corpus, lists: QueryLists) -> EvaluationSet:
    """Queries of lists that are not trained on, each with its ``positive_ids`` as the relevant passages (grade 1).

    A synthetic query has one, the passage it was written from: others may answer it as well, so such figures compare
    models and query types, and say little by themselves.

    Args:
        name: as in metric names.
        corpus: the whole corpus of the lists.
        lists: those without a labelled positive are left out.

    Raises:
        InputError: no list has a labelled positive.
    """
    labelled = zip(lists.query_ids.to_pylist(), lists.queries.to_pylist(), lists.positive_ids(corpus), strict=True)
    kept = {query_id: (text, positives) for query_id, text, positives in labelled if positives}
    if not kept:
        raise InputError(f"evaluation set {name}: no list of {lists.source} has positive_ids, so nothing is judged.")
    return EvaluationSet(
        name,
        corpus,
        {query_id: text for query_id, (text, _) in kept.items()},
        {query_id: dict.fromkeys(positives, 1) for query_id, (_, positives) in kept.items()},
    )


def about_file(part: str, spec: ListFile, corpus: Corpus, lists: QueryLists) -> dict[str, object]:
    """What is used of a file, for the record."""
    types, groups = by_type(lists)
    return {
        "part": part,
        "file": lists.source.name,
        "corpus": spec.corpus,
        "lists": len(lists),
        "weight": spec.weight,
        "types": dict(zip(types, np.bincount(groups, minlength=len(types)).tolist(), strict=True)),
        "candidates": [int(f(np.diff(lists.offsets))) for f in (np.min, np.median, np.max)] if len(lists) else [0] * 3,
        "teacher": lists.metadata.get("teacher"),
    }


def say_where_lists_are_short(train: Sequence[QueryLists], list_length: int) -> None:
    """Warn where no train list has ``list_length`` candidates: another length would then be the same run."""
    lengths = np.concatenate([np.diff(lists.offsets) for lists in train])
    if lengths.max() < list_length:
        log.warning(
            "data.list_length is %d, but the longest of %d train lists has %d candidates (median %d): all are used "
            "whole, as with data.list_length=%d",
            list_length,
            len(lengths),
            lengths.max(),
            np.median(lengths),
            lengths.max(),
        )


def weighted_lists(spec: ListFile, corpus: Corpus, lists: QueryLists) -> WeightedLists:
    """Give lists with the passes of each in an epoch, as their file's weight says.

    Raises:
        InputError: the weight names a query type that no list has.
    """
    types, groups = by_type(lists)
    for named in spec.weight if isinstance(spec.weight, Mapping) else ():
        choose(f"data.train: weight of {spec.path}: the query type", named, types)
    return WeightedLists(corpus, lists, np.array([spec.passes(t) for t in types])[groups])
