"""An evaluation set of query lists: their queries, judged by the passages that they were written from."""

from collections.abc import Sequence
from pathlib import Path

from datamodules.corpus import Corpus, EvaluationSet, find_file
from datamodules.list_choice import chosen_lists
from datamodules.query_lists import QueryLists, open_query_lists
from retriever.errors import InputError


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
