"""Files of query lists from and to other tools' layouts."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from datamodules.corpus import find_dataset, find_file, load_corpus
from datamodules.formats.passages import CorpusPassages, new_corpus
from datamodules.formats.records import find_records
from datamodules.formats.transfer import LAYOUTS, export_lists, import_lists
from datamodules.formats.trec import Trec, queries_beside
from datamodules.query_lists import read_query_lists, write_query_lists
from experiments.lists.corpora import find_corpus
from retriever.errors import InputError


def import_file(
    path: str,
    output: str,
    layout: str,
    corpus: str | None = None,
    corpus_output: str | None = None,
    teacher: str | None = None,
    *,
    empty_passages: str,
    **options: Any,
) -> int:
    """Read another tool's file into a file of query lists; return how many.

    Args:
        path: the file.
        output: ``.parquet`` or ``.jsonl``.
        layout: a key of ``LAYOUTS``.
        corpus: data set that the lists were made from; None writes one from the texts.
        corpus_output: its folder; None puts it beside ``output``, named ``<stem>_corpus``.
        teacher: what to keep in the metadata about where the scores come from.
        empty_passages: of the corpus, as for :func:`~datamodules.corpus.load_corpus`.
        options: of :func:`datamodules.formats.import_lists` and of the layout, and ``check_texts``.

    Raises:
        InputError: with file and line.
    """
    if corpus and corpus_output:
        raise InputError("Both a corpus and a folder for a new one are given. Name one of the two.")
    check_texts = options.pop("check_texts", True)
    if corpus:
        queries = find_records(find_dataset(corpus), "queries")
        if (
            issubclass(LAYOUTS.get(layout, object), Trec)
            and "queries" not in options
            and queries
            and not queries_beside(Path(path))
        ):
            options["queries"] = queries[0]
        loaded = load_corpus(find_dataset(corpus), empty_passages=empty_passages)
        opened: Any = nullcontext(CorpusPassages(loaded, check_texts))
    else:
        opened = new_corpus(corpus_output or Path(output).with_name(f"{Path(output).name.split('.')[0]}_corpus"))
    metadata = {"teacher": teacher or "unknown", "imported_from": Path(path).name, "layout": layout}
    with opened as passages:
        lists = import_lists(path, layout, passages, **options)
        return write_query_lists(output, lists, {**metadata, "corpus": passages.name})


def export_file(
    path: str, output: str, layout: str, corpus: str | None = None, *, empty_passages: str, **options: Any
) -> int:
    """Write a file of query lists in another tool's layout; return how many.

    Args:
        path: the file, or one that is shipped.
        output: the file to write.
        layout: a key of ``LAYOUTS``.
        corpus: data set that the lists were made from; None tries the name that the file gives.
        empty_passages: as for :func:`~datamodules.corpus.load_corpus`.
        options: of :func:`datamodules.formats.export_lists` and of the layout.

    Raises:
        InputError: with the list's place in the file.
    """
    file = find_file(path)
    first = next(read_query_lists(file), None)
    if first is None:
        raise InputError(f"{file}: no list in it.")
    _, loaded = find_corpus(first.corpus, corpus, empty_passages)
    if loaded is None:
        raise InputError(f"{file}: its corpus {first.corpus!r} is not found here. Name its folder with --corpus.")
    return export_lists(read_query_lists(file), output, layout, CorpusPassages(loaded), **options)
