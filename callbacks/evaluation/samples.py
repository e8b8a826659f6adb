"""Samples of corpora for validations: drawn once per content and settings, by one process, and kept."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from callbacks.evaluation.ranker import Ranking
from datamodules.caches import update_with_tokens
from datamodules.corpus import EvaluationSet
from datamodules.hits import bm25_search
from datamodules.sampled_corpus import draw_sample, update_with_evaluation_set
from datamodules.specs import SampleSpec
from datamodules.storage.columns import ColumnWriter, cached_columns
from datamodules.text.words import METHOD
from retriever.encoder.tokens import TokenizedTexts
from retriever.search import exact_search

log = logging.getLogger(__name__)


def sample_rows(
    data: EvaluationSet,
    tokens: Sequence[TokenizedTexts],
    made_with: tuple[str, str, str],
    queries: Callable[[], np.ndarray],
    base: np.ndarray,
    spec: SampleSpec,
    how: Ranking,
) -> tuple[np.ndarray, dict[str, int]]:
    """Draw the sample of a corpus, or read it from the cache.

    Args:
        data: the whole corpus with Q queries.
        tokens: of the queries and of the passages.
        made_with: what embeddings depend on beside the tokens: fingerprint of the base model, precision, dtype.
        queries: embeds the queries by the base weights, [Q, D].
        base: passage embeddings by the base weights, [N, D].
        spec: size, depth and seed.
        how: where samples are kept, and whether own ids are hits.

    Returns:
        Rows of the corpus, int64, ascending; and how the sample is made up.
    """
    digest = hashlib.sha256(repr((spec, how.ignore_identical_ids, METHOD, *made_with)).encode())
    for texts in tokens:
        update_with_tokens(digest, texts)
    update_with_evaluation_set(digest, data)

    def draw(writer: ColumnWriter) -> dict[str, Any]:
        depth = spec.depth + how.ignore_identical_ids  # a query's own passage is none of its hits
        _, dense = exact_search(queries(), base, depth)
        bm25 = bm25_search(data.corpus.passages.to_pylist(), list(data.queries.values()), depth)
        rows, counts = draw_sample(data, dense, bm25.rows, spec)
        writer.append("rows", rows)
        return counts

    columns, counts = cached_columns(how.cache_dir / "samples" / digest.hexdigest()[:32], draw)
    rows, total = columns["rows"], len(data.corpus)
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    log.info("%s: validations search %d of %d passages (%s)", data.name, len(rows), total, told)
    return rows, {"passages": len(rows), "of": total, **asdict(spec), **counts}
