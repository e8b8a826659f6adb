"""Queries that need no generation: judged ones, titles, sentences, keywords, and claims that a passage makes."""

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from datamodules.corpus import Corpus, find_dataset, load_evaluation_set
from datamodules.storage.columns import each_string, string_blocks
from datamodules.text.words import count_words, fold
from retriever.errors import choose

QUERY_SOURCES = ("judged", "titles", "claims", "sentences", "keywords")

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_CLAIM = re.compile(
    r"\b(?:show|shows|showed|shown|suggest|suggests|suggested|suggesting|demonstrate|demonstrates|demonstrated|"
    r"demonstrating|indicate|indicates|indicated|indicating|find|found|reveal|reveals|revealed|conclude|concluded|"
    r"report|reported|propose|proposed|hypothesize|hypothesized|evidence)\s+that\s+(?P<claim>.+)$",
    re.IGNORECASE,
)
_WORDS = range(5, 31)
# where a sentence ends in any script: a full stop before a blank or the end, or one of those that need no blank
_ANY_SENTENCE_END = re.compile(r"(?<=[.!?…؟۔।॥։።])\s+|(?<=[。！？｡])\s*|\n+")
_KEYWORDS = 3, 5  # of a query, at least and at most
_LETTERS_OF_WORD = range(3, 31)
_ASCII_LETTERS = string.ascii_letters.encode()
_LETTERS = 0.6  # of a sentence's characters, blanks aside; formulas and tables have fewer


def collect_queries(
    source: str,
    dataset: str,
    corpus: Corpus,
    split: str = "train",
    data_dir: str | Path = "data",
    unknown_qrels: str = "error",
) -> Iterator[tuple[str, str, str, list[str]]]:
    """Queries without any generation: id, text, type (``human``, ``title``, …), and ids of the positives.

    Args:
        source: ``judged``: the queries of a split with their relevant passages; ``titles``: each passage's title;
            ``claims``: what a passage says that it shows (see :func:`claim`); ``sentences``: each passage's sentences
            (see :func:`sentences`); ``keywords``: the words that tell it from the others (see :func:`keywords`). The
            positive of all but the first is the passage itself.
        dataset: as for :func:`~datamodules.corpus.find_dataset`.
        corpus: the loaded corpus.
        split: of the qrels; never the one that is evaluated on.
        data_dir: where downloaded data sets lie.
        unknown_qrels: ``error``, or ``keep`` to leave out judgements of queries and passages that the data set lacks,
            and queries that have no other.
    """
    if choose("queries.source", source, QUERY_SOURCES) == "judged":
        folder = str(find_dataset(dataset, data_dir))
        judged = load_evaluation_set(folder, split, corpus=corpus, unknown_qrels=unknown_qrels)
        for query_id, relevant in judged.relevant().items():
            ids = sorted(relevant)
            if unknown_qrels == "keep":
                ids = [passage for passage, row in zip(ids, corpus.rows(ids), strict=True) if row >= 0]
            if ids or unknown_qrels == "error":
                yield query_id, judged.queries[query_id], "human", ids
        return
    if source == "sentences":
        for passage_id, text in zip(each_string(corpus.ids), each_string(corpus.texts), strict=True):
            for number, sentence in enumerate(sentences(text), 1):
                yield f"sentence-{passage_id}-{number}", sentence, "sentence", [passage_id]
        return
    if source == "keywords":
        for passage_id, found in zip(each_string(corpus.ids), keywords(corpus.texts), strict=True):
            if len(found) >= _KEYWORDS[0]:
                yield f"keywords-{passage_id}", " ".join(found), "keywords", [passage_id]
        return
    ways: dict[str, tuple[str, Any, Callable[[str], str | None]]] = {
        "titles": ("title", corpus.titles, str.strip),
        "claims": ("claim", corpus.texts, claim),
    }
    query_type, texts, make = ways[source]
    for passage_id, query in zip(each_string(corpus.ids), map(make, each_string(texts)), strict=True):
        if query:  # a title or a claim that a passage lacks makes no query
            yield f"{query_type}-{passage_id}", query, query_type, [passage_id]


def sentences(text: str) -> list[str]:
    """Find a text's sentences of 5 to 30 words, in any script, each once; of their characters most must be letters."""
    found = []
    for part in _ANY_SENTENCE_END.split(text):
        sentence = " ".join(part.split())
        if count_words(sentence) in _WORDS and has_letters(sentence):
            found.append(sentence)
    return list(dict.fromkeys(found))


def has_letters(text: str) -> bool:
    """Tell whether most characters of a text, blanks aside, are letters of any script."""
    if text.isascii():
        letters = len(text) - len(text.encode().translate(None, _ASCII_LETTERS))
    else:
        letters = sum(c.isalpha() or unicodedata.combining(c) > 0 for c in text)
    return letters >= _LETTERS * len("".join(text.split()))


def keywords(texts: pa.Array | Sequence[str]) -> Iterator[list[str]]:
    """Find the up to five words of each text with the highest TF-IDF, in the order in which they come.

    Words of one text alone do not count, for they are often slips; nor do those of more than a quarter of the texts,
    numbers, and words of two letters. Scripts without spaces between words give hardly any.
    """
    texts_with: Counter[str] = Counter()
    for words in _long_words(texts):
        texts_with.update(set(words))
    most = max(2, len(texts) // 4)
    for words in _long_words(texts):
        counts = Counter(word for word in words if 2 <= texts_with[word] <= most)
        weights = {word: count * math.log(len(texts) / texts_with[word]) for word, count in counts.items()}
        best = sorted(weights, key=lambda word: -weights[word])[: _KEYWORDS[1]]
        yield [word for word in counts if word in best]


def _long_words(texts: pa.Array | Sequence[str]) -> Iterator[list[str]]:
    for block in string_blocks(texts):
        for text in fold(block.to_pylist()):
            yield [word for word in text.split() if len(word) in _LETTERS_OF_WORD and word.isalpha()]


def claim(text: str) -> str | None:
    """The last clause of 5 to 30 words that a text introduces by 'show that', 'suggest that' and the like (English).

    In a paper's abstract this is a finding, worded as a claim would be. None where there is no such clause.
    """
    for sentence in reversed(_SENTENCE_END.split(text)):
        match = _CLAIM.search(sentence.strip())
        if match and len(match["claim"].split()) in _WORDS:
            found = match["claim"].strip()
            return found[0].upper() + found[1:]
    return None
