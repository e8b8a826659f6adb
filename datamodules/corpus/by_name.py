"""Data sets by their names in ir_datasets and on the hub: read once, and written as folders in BEIR's layout."""

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from datamodules.formats.records import IDS, QUERY_IDS, QUERY_TEXTS, TEXTS, Columns
from datamodules.storage.files import atomic_path, lock_beside, write_json_lines
from retriever.errors import InputError, did_you_mean, installed_by, shown

log = logging.getLogger(__name__)
_NAME = re.compile(r"[A-Za-z0-9_][\w.+-]*(/[A-Za-z0-9_][\w.+-]*)*")
Judgement = tuple[str, str, int]  # query, passage, grade


@dataclass(frozen=True)
class _Contents:
    """What a data set holds, read while it is written.

    Attributes:
        corpus: its passages' name, which data sets over the same passages share; None where none does.
        passages: ``_id``, ``title`` and ``text``.
        queries: ``_id`` and ``text``.
        judgements: query, passage and grade.
    """

    corpus: str | None
    passages: Iterable[Mapping[str, str]]
    queries: Iterable[Mapping[str, str]]
    judgements: Iterable[Judgement]


def is_source_name(name: str) -> bool:
    """Tell whether a name begins with ``ir_datasets:`` or ``hub:``."""
    source, colon, _ = name.partition(":")
    return bool(colon) and source in _SOURCES


def folder_of_source(name: str, data_dir: str | Path) -> Path:
    """Give the folder of such a data set; what it holds is fetched and written at the first time.

    Its queries and judgements are the split ``test``. Processes that share ``data_dir`` wait for each other.

    Args:
        name: ``ir_datasets:NAME``; ``hub:OWNER/NAME``, or ``hub:OWNER/NAME/SPLIT`` where each split is a data set.
        data_dir: the folder of the data sets; this one's is ``ir_datasets/NAME`` (``-`` for each ``/``),
            ``hub/OWNER/NAME`` or ``hub/OWNER/NAME.splits/SPLIT`` in it.

    Raises:
        InputError: the package is missing, there is no such data set, it has no judgements, or it cannot be fetched.
    """
    folder, source, inner = place_of_source(name, data_dir), *name.split(":", 1)
    if folder.is_dir():
        return folder
    with lock_beside(folder):
        if not folder.is_dir():
            with _fetching(name, folder), TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as place:
                log.info("Fetching %s into %s", name, folder)
                _write(Path(place) / folder.name, _SOURCES[source](inner), folder.parent / ".corpora")
                (Path(place) / folder.name).rename(folder)
    return folder


def place_of_source(name: str, data_dir: str | Path) -> Path:
    """Give the folder that :func:`folder_of_source` gives, whether it is there or not.

    Raises:
        InputError: the name has another form.
    """
    source, _, inner = name.partition(":")
    if not _NAME.fullmatch(inner) or (source == "hub" and inner.count("/") not in (1, 2)):
        raise InputError(
            f"{shown(name)} is no data set's name: expected ir_datasets:NAME, hub:OWNER/NAME or hub:OWNER/NAME/SPLIT."
        )
    return Path(data_dir) / source / _place(source, inner)


def _place(source: str, inner: str) -> str:
    if source != "hub":
        return inner.replace("/", "-")
    repository, split = inner.rsplit("/", 1) if inner.count("/") == 2 else (inner, "")
    return f"{repository}.splits/{split}" if split else repository


@contextmanager
def _fetching(name: str, folder: Path) -> Iterator[None]:
    """Make a sentence of a download that fails; libraries raise what their own libraries raise."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # a full disk, no permission
        raise InputError(
            f"The data set {name} is not on this machine and could not be fetched ({type(error).__name__}: "
            f"{shown(str(error))}). Put its folder (corpus.jsonl, queries.jsonl, qrels/test.tsv) at {folder}."
        ) from error


def _write(folder: Path, contents: _Contents, shared: Path) -> None:
    write_json_lines(folder / "queries.jsonl", contents.queries)
    if contents.corpus is None:
        write_json_lines(folder / "corpus.jsonl", contents.passages)
    else:
        one = shared / f"{contents.corpus.replace('/', '-')}.jsonl"
        with lock_beside(one):
            if not one.is_file():
                write_json_lines(one, contents.passages)
        try:
            os.link(one, folder / "corpus.jsonl")
        except OSError:  # a file system without links
            shutil.copyfile(one, folder / "corpus.jsonl")
    with atomic_path(folder / "qrels" / "test.tsv") as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write("query-id\tcorpus-id\tscore\n")
        file.writelines(f"{query}\t{passage}\t{grade}\n" for query, passage, grade in contents.judgements)


def _of_ir_datasets(name: str) -> _Contents:
    """https://ir-datasets.com; what has no field ``text`` is read as that package's own default text."""
    with installed_by("ir_datasets", f"The data set ir_datasets:{name}"):
        import ir_datasets
    try:
        found = ir_datasets.load(name)
    except KeyError:
        near = did_you_mean(name, list(ir_datasets.registry))
        raise InputError(f"ir_datasets has no data set {name!r}; https://ir-datasets.com lists them.{near}") from None
    try:
        whole = found.has_docs() and found.has_queries() and found.has_qrels()
    except AttributeError:  # of names that only hold others together
        whole = False
    if not whole:
        parts = [other for other in ir_datasets.registry if other.startswith(f"{name}/")][:6]
        raise InputError(
            f"ir_datasets:{name} has not all of passages, queries and judgements. Name one that has"
            f"{': ' + ', '.join(parts) if parts else ', as https://ir-datasets.com lists them'}."
        )
    return _Contents(
        ir_datasets.docs_parent_id(name),
        (
            {"_id": doc.doc_id, "title": getattr(doc, "title", ""), "text": doc.text}
            if hasattr(doc, "text")
            else {"_id": doc.doc_id, "title": "", "text": doc.default_text()}
            for doc in found.docs_iter()
        ),
        ({"_id": query.query_id, "text": query.default_text()} for query in found.queries_iter()),
        ((judged.query_id, judged.doc_id, judged.relevance) for judged in found.qrels_iter()),
    )


def _of_hub(name: str) -> _Contents:
    """A data set with the subsets ``corpus``, ``queries`` and ``qrels``, as NanoBEIR's are."""
    with installed_by("beir", f"The data set hub:{name}"):
        from datasets import load_dataset
    from huggingface_hub import snapshot_download

    owner, _, inner = name.partition("/")
    repository, _, split = inner.partition("/")
    if not Path(owner, repository).is_dir():  # else load_dataset reads that
        # fails at once where there is neither a network nor a copy; load_dataset tries for 23 s
        snapshot_download(f"{owner}/{repository}", repo_type="dataset", allow_patterns="README.md")

    def rows(subset: str) -> Any:
        try:
            splits = load_dataset(f"{owner}/{repository}", subset)
        except ValueError as error:
            raise InputError(
                f"hub:{name} cannot be read: {shown(str(error))}. Expected subsets corpus, queries and qrels."
            ) from error
        if split in splits:
            return splits[split]
        if len(splits) == 1:
            return next(iter(splits.values()))
        raise InputError(
            f"hub:{name}: {subset} has the splits {', '.join(splits)}. Say which: hub:{owner}/{repository}/SPLIT."
        )

    def texts(subset: str, ids: Iterable[str], names: Iterable[str]) -> Iterator[dict[str, str]]:
        columns = Columns(list(ids), list(names))
        for row in rows(subset):
            title = {"title": row.get("title") or ""} if subset == "corpus" else {}
            yield {"_id": columns.id_of(row), **title, "text": columns.text_of(row)}

    judged = ((row["query-id"], row["corpus-id"], int(row.get("score", 1))) for row in rows("qrels"))
    return _Contents(None, texts("corpus", IDS, TEXTS), texts("queries", QUERY_IDS, QUERY_TEXTS), judged)


_SOURCES: dict[str, Callable[[str], _Contents]] = {"ir_datasets": _of_ir_datasets, "hub": _of_hub}
