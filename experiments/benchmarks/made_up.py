"""A corpus of any size, made up: what it costs to prepare it depends on its size alone, not on what it says."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from datamodules.corpus import Corpus
from datamodules.hits import Hits
from datamodules.pipeline.searchers import SEARCHED, Searcher
from datamodules.storage.files import write_json_lines, write_text

SENTENCES, WORDS = 5, 12  # of a passage, of a sentence
_VOCABULARY = 200_000
_BLOCK = 10_000
# shares of passages that say what one before them says: the same, its first four sentences, all but a word
_EQUAL, _CONTAINED, _NEAR = 0.01, 0.01, 0.02
_FOUND = 0.9  # share of queries whose passage a made-up search finds


def write_corpus(folder: Path, passages: int, evaluation_queries: int) -> Path:
    """Write a corpus in BEIR's layout, of 60 words a passage (MS MARCO's mean is 56), with test queries.

    Words are drawn by Zipf's law; of the passages 4% are copies of others, whole, in part, or nearly.
    """
    random = np.random.default_rng(passages)
    write_json_lines(folder / "corpus.jsonl", _passages(passages, random))
    queries = ({"_id": f"test-{n}", "text": text} for n, text in enumerate(_sentences(evaluation_queries, random)))
    write_json_lines(folder / "queries.jsonl", queries)
    judged = random.integers(passages, size=evaluation_queries)
    lines = (f"test-{n}\tp{row}\t1" for n, row in enumerate(judged))
    write_text(folder / "qrels" / "test.tsv", "\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")
    return folder


def _passages(count: int, random: np.random.Generator) -> Iterator[dict[str, str]]:
    for start in range(0, count, _BLOCK):
        size = min(_BLOCK, count - start)
        sentences = _sentences(size * SENTENCES, random)
        chances, sources = random.random(size), (random.random(size) * np.arange(size)).astype(int)
        texts: list[list[str]] = []
        for n in range(size):
            own = sentences[n * SENTENCES : (n + 1) * SENTENCES]
            if chances[n] < _EQUAL + _CONTAINED + _NEAR and n:
                own = list(texts[sources[n]])
                if chances[n] < _CONTAINED:
                    own = own[:-1] or own
                elif chances[n] < _CONTAINED + _NEAR:
                    own[0] = "Another" + own[0][own[0].index(" ") :]
            texts.append(own)
            yield {"_id": f"p{start + n}", "title": own[0][:-1], "text": " ".join(own)}


def _sentences(count: int, random: np.random.Generator) -> list[str]:
    words = (_VOCABULARY ** random.random((count, WORDS))).astype(int)  # Zipf's law: the nth word at 1/n
    return [" ".join(map(_word, line)).capitalize() + "." for line in words.tolist()]


def _word(number: int) -> str:
    """Letters for a number, the longer the rarer."""
    letters = ""
    while number:
        number, last = divmod(number, 20)
        letters += "aeiou"[last % 5] + "bdfklmnprstvz"[number % 13]
    return letters


class MadeUpSearch(Searcher):
    """Hits without a search: random passages, and mostly the query's own among them.

    Args:
        positives: int64 [Q], the row of each query's passage, in the order in which they are asked.
        seed: of the draw.
    """

    def __init__(self, positives: np.ndarray, seed: int) -> None:
        self.positives, self.seed = positives, seed

    def settings(self) -> dict[str, int]:
        """See :class:`Searcher`."""
        return {"made_up": self.seed}

    def describe(self) -> str:
        """See :class:`Searcher`."""
        return json.dumps(self.settings())

    def parts(self, passages: int) -> list[range]:
        """See :class:`Searcher`."""
        return [range(passages)]

    def search(
        self, corpus: Corpus, part: range, queries: pa.Array, k: int, types: pa.Array | None = None
    ) -> Iterator[Hits]:
        """See :class:`Searcher`."""
        random = np.random.default_rng(self.seed)
        for start in range(0, len(queries), SEARCHED):
            positives = self.positives[start : start + SEARCHED]
            count = len(positives)
            step = random.integers(1, max(2, len(part) // k), (count, 1))
            rows = (random.integers(len(part), size=(count, 1)) + step * np.arange(k)) % len(part)  # distinct
            found = (random.random(count) < _FOUND) & ~(rows == positives[:, None]).any(1)
            place = np.minimum(random.geometric(0.5, count) - 1, k - 1)
            rows[found, place[found]] = positives[found]
            scores = -np.sort(-random.random((count, k)), axis=1).astype(np.float32)
            yield Hits(scores, rows + part.start)
