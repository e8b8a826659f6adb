"""A sample of a corpus that validations can search: what is judged, what two retrievers find, and a random rest."""

import hashlib
from dataclasses import replace

import numpy as np
import pyarrow as pa

from datamodules.corpus import Corpus, EvaluationSet
from datamodules.specs import SampleSpec
from datamodules.storage.columns import update_digest


def draw_sample(
    data: EvaluationSet, base: np.ndarray, bm25: np.ndarray, spec: SampleSpec
) -> tuple[np.ndarray, dict[str, int]]:
    """Draw a sample; the same arguments give the same one.

    Args:
        data: the whole corpus with Q queries.
        base: rows of the base model's hits, [Q, k]; −1 where there are fewer.
        bm25: likewise BM25's.
        spec: size and seed.

    Returns:
        Rows of the corpus, int64 [n], ascending; and why they are there: ``judged``, ``base`` (hits of the base model
        that are not judged), ``bm25`` (hits of BM25 that are neither) and ``random``, together n.
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
    return np.flatnonzero(inside), counts | {"random": wanted}


def sampled_set(data: EvaluationSet, rows: np.ndarray) -> EvaluationSet:
    """The same queries and judgements over some of the passages; its name is ``<name>-sample``."""
    columns = (column.take(pa.array(rows)) for column in (data.corpus.ids, data.corpus.titles, data.corpus.texts))
    return replace(data, name=f"{data.name}-sample", corpus=Corpus(data.corpus.name, *columns))


def update_with_evaluation_set(digest: "hashlib._Hash", data: EvaluationSet) -> None:
    """Feed ids and texts of passages, queries and judgements to a hash."""
    for column in (data.corpus.ids, data.corpus.titles, data.corpus.texts):
        update_digest(digest, column)
    digest.update(repr([data.queries, data.qrels]).encode())
