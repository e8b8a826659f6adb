"""What a corpus offers: how many passages, which queries can be taken from it, and whether people's are there."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.corpus import Corpus, load_corpus, load_evaluation_set
from datamodules.corpus.qrels import qrels_splits
from datamodules.pipeline.free_queries import sentences
from datamodules.text.languages import stemmer_for
from datamodules.text.words import count_words
from retriever.errors import InputError, choose

log = logging.getLogger(__name__)
HUMAN = "human"  # the group of people's queries
_LOOKED_AT = 1000  # passages
_TITLED = 0.5  # share of passages with a title, from which titles are queries


@dataclass(frozen=True)
class Survey:
    """What was found.

    Attributes:
        folder: of the corpus.
        corpus: opened.
        split: of the human queries that models are measured on; None where there are none.
        test_queries: how many those are.
        queries: source → how many queries it gives, about.
        stemmer: BM25's, for the language that the passages are in; None where they are in several, or none fits.
    """

    folder: Path
    corpus: Corpus
    split: str | None
    test_queries: int
    queries: dict[str, int]
    stemmer: str | None


def survey(folder: Path, split: str | None, cache_dir: str) -> Survey:
    """Look at a corpus.

    Args:
        folder: in BEIR's layout.
        split: whose judgements models are measured on; None takes ``test`` where it is there.
        cache_dir: where a memory-mapped copy of the corpus is kept.

    Raises:
        InputError: no such split, or nothing to take queries from.
    """
    corpus = load_corpus(folder, empty_passages="keep", cache_dir=cache_dir)
    splits = qrels_splits(folder)
    if split is not None:
        choose("split", split, splits)
    measured = split or ("test" if "test" in splits else None)
    human = 0
    if measured:
        human = len(load_evaluation_set(str(folder), measured, corpus=corpus, unknown_qrels="keep").queries)
    queries = _sources(folder, corpus, measured, splits)
    some = corpus.passages.take(list(range(0, len(corpus), max(1, len(corpus) // _LOOKED_AT))))
    return Survey(folder, corpus, measured, human, queries, stemmer_for(some.to_pylist()))


def _sources(folder: Path, corpus: Corpus, measured: str | None, splits: list[str]) -> dict[str, int]:
    """Source → how many queries it gives, about; human ones first."""
    step = max(1, len(corpus) // _LOOKED_AT)
    rows = range(0, len(corpus), step)
    titles, texts = (column.take(list(rows)).to_pylist() for column in (corpus.titles, corpus.texts))
    titled = {title.strip() for title in titles if count_words(title) > 1}
    cut = sum(len(sentences(text)) for text in texts)
    found: dict[str, int] = {}
    if "train" in splits and measured != "train":
        judged = load_evaluation_set(str(folder), "train", corpus=corpus, unknown_qrels="keep")
        found["judged"] = len(judged.relevant())
    if len(titled) > _TITLED * len(rows):
        found["titles"] = len(titled) * step
    if cut:
        found["sentences"] = cut * step
    if not found:
        raise InputError(
            f"{folder}: there is nothing to take queries from: no judged train queries, no titles, and no sentences of "
            "5 to 30 words. Let a language model write some: python -m experiments.prepare --help, queries and "
            "generator."
        )
    return found


def groups(found: Survey, most: int) -> dict[str, dict[str, Any]]:
    """Choose the groups of queries that ``prepare`` makes: human ones all, and the rest shared by titles and sentences.

    Args:
        found: by :func:`survey`.
        most: queries in all, but for human ones.
    """
    names = {"judged": HUMAN, "titles": "title", "sentences": "sentence"}
    left, chosen = most, {}
    free = [source for source in found.queries if source != "judged"]
    for number, source in enumerate(sorted(free, key=lambda source: found.queries[source])):
        limit = min(found.queries[source], left // (len(free) - number))
        chosen[source] = {"source": source, "filter": False, "limit": max(1, limit)}
        left -= limit
    if "judged" in found.queries:
        chosen["judged"] = {"source": "judged", "split": "train", "filter": False}
    return {names[source]: chosen[source] for source in found.queries}
