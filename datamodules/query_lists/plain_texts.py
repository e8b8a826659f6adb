"""Plain texts in the place of query lists, for an objective that reads neither scores nor labels."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from datamodules.corpus import Corpus, find_file
from datamodules.query_lists.files import write_query_lists
from datamodules.query_lists.opened import open_query_lists
from datamodules.query_lists.query_list import QueryList, QueryLists
from datamodules.storage.files import is_file
from datamodules.storage.input_hashes import input_sha256
from retriever.batch import BatchNeeds
from retriever.errors import InputError

SUFFIX = ".txt"
_CANDIDATES = 2  # the fewest that a list has


def open_list_file(
    path: str | Path, corpus: Corpus, cache_dir: str | Path, on_bad_list: str, needs: BatchNeeds
) -> tuple[QueryLists, dict[str, int]]:
    """Open a file of lists, or one of plain texts, see :func:`~datamodules.query_lists.open_query_lists`.

    Texts are a ``.txt`` file in UTF-8, one on each line; empty lines are left out. Each becomes a query whose list is
    two passages of the corpus in turn, so that an objective that looks at passages sees them all.

    Args:
        path: the file, or its name among the shipped data.
        corpus: that its passages are in.
        cache_dir: where the opened copy is kept.
        on_bad_list: ``error`` or ``drop``.
        needs: of the objective.

    Raises:
        InputError: plain texts, and the objective reads scores or labels; no text, or no corpus of two passages.
    """
    file = find_file(path)
    if file.suffix != SUFFIX:
        return open_query_lists(file, corpus, cache_dir, on_bad_list)
    if not needs.texts_alone:
        raise InputError(
            f"{path}: plain texts, without candidates and teacher scores, on which module=embedding_regression alone "
            "trains. Make query lists of them, or say that."
        )
    if len(corpus) < _CANDIDATES:
        raise InputError(f"{path}: plain texts need a corpus of at least {_CANDIDATES} passages beside them.")
    key = hashlib.sha256(f"{input_sha256(file)} {corpus.name} {corpus.ids_sha256}".encode()).hexdigest()[:32]
    made = Path(cache_dir) / "plain_texts" / key / f"{file.stem}.parquet"
    if not is_file(made) and not write_query_lists(made, _lists(file, corpus), {}):
        made.unlink()
        raise InputError(f"{path}: no text in it.")
    return open_query_lists(made, corpus, cache_dir, on_bad_list)


def _lists(file: Path, corpus: Corpus) -> Iterator[QueryList]:
    ids = corpus.ids.to_pylist()
    for number, text in enumerate(plain_texts(file)):
        passages = [ids[(_CANDIDATES * number + k) % len(ids)] for k in range(_CANDIDATES)]
        scores = [float(-k) for k in range(_CANDIDATES)]
        yield QueryList(f"{file.stem}-{number}", text, "text", corpus.name, passages[:1], passages, scores)


def plain_texts(file: Path) -> Iterator[str]:
    """Read the texts of a file, one on each line; empty lines are left out.

    Raises:
        InputError: it is not in UTF-8.
    """
    try:
        with open(file, encoding="utf-8") as lines:
            yield from filter(None, map(str.strip, lines))
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not in UTF-8 ({error.reason}). Save it anew.") from error
