"""Opening evaluation sets: queries, judgements and corpora that ``evaluation.datasets`` names."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datamodules.corpus import Corpus, EvaluationSet, find_dataset, load_corpus, load_evaluation_set
from datamodules.list_choice import held_out_lists, held_out_set
from datamodules.specs import EvaluationSpec
from retriever.errors import InputError


@dataclass(frozen=True)
class OpenedSet:
    """An evaluation set that has been read.

    Attributes:
        spec: what the configuration says of it.
        data: queries, judgements and the whole corpus.
    """

    spec: EvaluationSpec
    data: EvaluationSet

    def describe(self) -> dict[str, Any]:
        """Name, corpus, numbers of passages and queries, where the queries come from, and the size of a sample."""
        spec = self.spec
        return {
            "name": self.data.name,
            "corpus": self.data.corpus.name,
            "passages": len(self.data.corpus),
            "queries": len(self.data.queries),
            "from": spec.source,
            "sample": None if spec.sample is None else spec.sample.size,
        }


@dataclass(frozen=True)
class Reading:
    """How evaluation sets are read.

    Attributes:
        unknown_qrels: ``error`` or ``keep``, see :func:`~datamodules.corpus.load_evaluation_set`.
        empty_passages: ``error`` or ``keep``.
        on_bad_list: ``error`` or ``drop``, for sets of query lists.
        cache_dir: where memory-mapped corpora and query lists are kept.
        data_dir: where downloaded data sets lie.
    """

    unknown_qrels: str = "error"
    empty_passages: str = "error"
    on_bad_list: str = "error"
    cache_dir: str | Path = "outputs/cache"
    data_dir: str | Path = "data"


def open_sets(
    specs: Sequence[EvaluationSpec],
    reading: Reading,
    dev_query_ids: Callable[[str], list[str]] | None = None,
) -> list[OpenedSet]:
    """Read evaluation sets; sets over one folder share its corpus.

    Args:
        specs: what to read.
        reading: how.
        dev_query_ids: name of a corpus → ids of the dev lists' queries over it, for sets with ``queries: dev``; None
            where there are no dev lists.

    Raises:
        InputError: what the readers refuse; ``queries: dev`` without dev lists, or none of their queries is judged.
    """
    corpora: dict[str, Corpus] = {}
    opened = []
    for spec in specs:
        folder = find_dataset(spec.path, reading.data_dir)
        if spec.path not in corpora:
            corpora[spec.path] = load_corpus(folder, empty_passages=reading.empty_passages, cache_dir=reading.cache_dir)
        data = _read(spec, folder, corpora[spec.path], reading)
        if spec.chooses:
            data = _only(data, dev_query_ids(data.corpus.name) if dev_query_ids is not None else [])
        opened.append(OpenedSet(spec, replace(data, relevance_level=spec.relevance_level)))
    return opened


def _read(spec: EvaluationSpec, folder: Path, corpus: Corpus, reading: Reading) -> EvaluationSet:
    if spec.lists is None:
        assert spec.split is not None  # the specification fills it in
        return load_evaluation_set(
            str(folder), spec.split, name=spec.name, unknown_qrels=reading.unknown_qrels, corpus=corpus
        )
    lists = held_out_lists(spec.lists, spec.types, corpus, reading.cache_dir, reading.on_bad_list)
    return held_out_set(spec.name or corpus.name, corpus, lists)


def _only(data: EvaluationSet, query_ids: list[str]) -> EvaluationSet:
    kept = {q: data.queries[q] for q in query_ids if q in data.queries}
    if not kept:
        raise InputError(f"evaluation set {data.name}: none of its queries is a dev list's; check split and data.dev.")
    return replace(data, queries=kept, qrels={q: data.qrels[q] for q in kept})
