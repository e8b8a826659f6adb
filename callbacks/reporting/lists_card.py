"""The card of query lists that are shared as a data set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import DatasetCardData

from callbacks.reporting.templates import render


@dataclass(frozen=True)
class SharedFile:
    """A file of query lists.

    Attributes:
        part: ``train`` or ``dev``.
        name: of the file.
        lists: how many it holds.
        types: query type → number of lists.
        corpus: its name.
        teacher: in words.
    """

    part: str
    name: str
    lists: int
    types: Mapping[str, int]
    corpus: str
    teacher: str


def lists_card(files: Sequence[SharedFile]) -> str:
    """The card, in Markdown with Hugging Face's front matter, by which ``datasets`` loads the files."""
    names: dict[str, list[str]] = {}
    for file in files:
        names.setdefault(file.part, []).append(file.name)
    parts = [{"split": part, "path": of_part} for part, of_part in names.items()]
    configs = [{"config_name": "default", "data_files": parts}]
    front_matter = DatasetCardData(configs=configs, tags=["text-retrieval", "query-lists"]).to_yaml()
    return render(Path(__file__).with_suffix(".md"), front_matter=front_matter, files=files)
