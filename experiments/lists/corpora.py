"""Find the corpus that a file of query lists was made from."""

from pathlib import Path

from datamodules.corpus import SHIPPED, Corpus, find_dataset, load_corpus
from datamodules.storage.files import is_folder
from retriever.errors import InputError


def find_corpus(name: str, asked: str | None, empty_passages: str) -> tuple[Path | None, Corpus | None]:
    """The corpus asked for (downloaded if need be); else the one that the file names, if it is on this machine."""
    if asked:
        folder = find_dataset(asked)
        return folder, load_corpus(folder, name=name, empty_passages=empty_passages)
    if not any(is_folder(place / name) for place in (Path(), SHIPPED, Path("data"))):
        return None, None
    try:
        folder = find_dataset(name)
        return folder, load_corpus(folder, empty_passages=empty_passages)
    except InputError:  # a folder of that name that holds no corpus
        return None, None
