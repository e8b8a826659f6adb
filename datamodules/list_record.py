"""What a run records of the files of query lists that it uses."""

import numpy as np

from datamodules.corpus import Corpus
from datamodules.list_choice import by_type
from datamodules.query_lists import QueryLists
from datamodules.specs import ListFile


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
