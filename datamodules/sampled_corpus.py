"""A sample of a corpus that validations can search: what is judged, what two retrievers find, and a random rest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from datamodules.corpus import Corpus, EvaluationSet
from datamodules.storage.columns import update_digest
from retriever.errors import InputError, choose

_DEFAULTS = {"depth": 100, "seed": 1}


@dataclass(frozen=True)
class SampleSpec:
    """How a sample is made.

    Attributes:
        size: passages of the sample; judged ones and hits are in it even where they are more.
        depth: hits per query of the base model and of BM25.
        seed: of the random rest; not the run's, so that runs with other seeds have one sample.
    """

    size: int
    depth: int
    seed: int

    @classmethod
    def parse(cls, value: Mapping[str, Any], where: str) -> SampleSpec:
        """From a mapping with ``size`` and, as options, ``depth`` (default 100) and ``seed`` (default 1).

        Raises:
            InputError: another key, no size, or a value that is no whole number above 0.
        """
        if not isinstance(value, Mapping) or "size" not in value:
            raise InputError(
                f"{where}: sample is {value!r}; it must be a mapping with size, for example {{size: 1000}}."
            )
        for name in value:
            choose(f"{where}: an option of sample", name, ("size", *_DEFAULTS))
        numbers = _DEFAULTS | dict(value)
        for name, number in numbers.items():
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise InputError(f"{where}: sample.{name} is {number!r}; it must be a whole number of at least 1.")
        return cls(**numbers)


@dataclass(frozen=True)
class Sample:
    """Which passages a sample holds, and why.

    Attributes:
        rows: of the corpus, int64 [n], ascending.
        counts: ``judged``, ``base`` (hits of the base model that are not judged), ``bm25`` (hits of BM25 that are
            neither) and ``random``; together n.
    """

    rows: np.ndarray
    counts: dict[str, int]


def draw_sample(data: EvaluationSet, base: np.ndarray, bm25: np.ndarray, spec: SampleSpec) -> Sample:
    """Draw a sample; the same arguments give the same one.

    Args:
        data: the whole corpus with Q queries.
        base: rows of the base model's hits, [Q, k]; −1 where there are fewer.
        bm25: likewise BM25's.
        spec: size and seed.
    """
    inside = np.zeros(len(data.corpus), dtype=bool)
    judged = data.corpus.rows(sorted({passage for query in data.queries for passage in data.qrels[query]}))
    counts = {}
    for name, rows in {"judged": judged, "base": base.ravel(), "bm25": bm25.ravel()}.items():
        before = int(inside.sum())
        inside[rows[rows >= 0]] = True
        counts[name] = int(inside.sum()) - before
    others = np.flatnonzero(~inside)
    wanted = min(max(0, spec.size - int(inside.sum())), len(others))
    inside[np.random.default_rng(spec.seed).choice(others, wanted, replace=False)] = True
    return Sample(np.flatnonzero(inside), counts | {"random": wanted})


def sampled_set(data: EvaluationSet, rows: np.ndarray) -> EvaluationSet:
    """The same queries and judgements over some of the passages; its name is ``<name>-sample``."""
    columns = (column.take(pa.array(rows)) for column in (data.corpus.ids, data.corpus.titles, data.corpus.texts))
    return EvaluationSet(f"{data.name}-sample", Corpus(data.corpus.name, *columns), data.queries, data.qrels)


def update_with_evaluation_set(digest: hashlib._Hash, data: EvaluationSet) -> None:
    """Feed ids and texts of passages, queries and judgements to a hash."""
    for column in (data.corpus.ids, data.corpus.titles, data.corpus.texts):
        update_digest(digest, column)
    digest.update(repr([data.queries, data.qrels]).encode())
