"""Corpus encoding, exact search and nDCG@10: this project's, sentence-transformers' and beir's; and search alone."""

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from callbacks.evaluation.block_search import score_runs, search_blocks
from callbacks.evaluation.metrics import MAIN, Metrics, mean_scores
from datamodules.caches import embed
from datamodules.corpus import EvaluationSet, load_evaluation_set
from experiments.benchmarks.measuring import BEST, fastest, measure, precision_of
from experiments.benchmarks.system_name import SystemName
from retriever.encoder.precision import autocast
from retriever.encoder.text_encoder import TextEncoder
from retriever.errors import installed_by
from retriever.search import exact_search

_HITS = 1000
_SEARCHED = 512  # passages by which a peer's micro-batch is chosen


def run_evaluation(job: Mapping[str, Any], encoder: TextEncoder, device: torch.device) -> dict[str, Any]:
    """Time one evaluation of the encoder by one system, from texts to nDCG@10, without any cache.

    Args:
        job: ``system`` (ours, st or beir, with ``@`` and a precision where it is not its own), ``dataset``,
            ``empty_passages``, ``unknown_qrels``, ``token_budget``, ``peer_batch`` (a number, or ``best``),
            ``cache_dir`` (of what was measured for ours).
        encoder: with the lengths to cut at.
        device: where to run.
    """
    kept = {name: job[name] for name in ("empty_passages", "unknown_qrels")}
    data = load_evaluation_set(job["dataset"], **kept)
    kind = SystemName.parse(job["system"]).kind
    system = {"ours": _ours, "st": _sentence_transformers, "beir": _beir}[kind]
    precision = precision_of(job, encoder, device)
    with tempfile.TemporaryDirectory() as folder:
        saved = str(encoder.eval().save(Path(folder)))
        with autocast(precision, device):
            if job["peer_batch"] == BEST and kind != "ours":
                job = {**job, "peer_batch": _best_peer_batch(data, encoder, saved, device)}
            ndcg, took = measure(system(job, data, encoder, saved, device), device)
    of_peer = {} if kind == "ours" else {"peer_batch": str(job["peer_batch"])}
    return {**took, "ndcg@10": ndcg, "precision": precision, **of_peer}


def _best_peer_batch(data: EvaluationSet, encoder: TextEncoder, folder: str, device: torch.device) -> int:
    """What sentence-transformers is fastest with, on some passages from all over the corpus."""
    with installed_by("bench", "Measuring sentence-transformers"):
        from sentence_transformers import SentenceTransformer
    peer, texts = SentenceTransformer(folder, device=str(device)), data.corpus.read_by(encoder).to_pylist()
    some = texts[:: max(1, len(texts) // _SEARCHED)]
    return fastest(lambda size: peer.encode(some, batch_size=size), device)


def run_search(job: Mapping[str, Any], encoder: TextEncoder, device: torch.device) -> dict[str, Any]:
    """Time exact search over random embeddings of the encoder's size: ``job`` has ``queries`` and ``passages``."""
    random = np.random.default_rng(0)
    queries, passages = (
        random.standard_normal((job[name], encoder.dimension), dtype=np.float32) for name in ("queries", "passages")
    )
    return measure(lambda: exact_search(queries, passages, _HITS), device)[1]


def _ours(job: Mapping[str, Any], data: EvaluationSet, encoder: TextEncoder, folder: str, device: torch.device):
    def evaluate() -> float:
        texts = {"query": list(data.queries.values()), "passage": data.corpus.read_by(encoder).to_pylist()}
        tokens = [encoder.tokenize(of_kind, kind) for kind, of_kind in texts.items()]
        queries, passages = (embed(of_kind, encoder, job["token_budget"]) for of_kind in tokens)
        runs = search_blocks(data, queries, passages, _HITS + 1)
        return mean_scores(score_runs(data, runs, Metrics()))[MAIN]

    return evaluate


def _sentence_transformers(
    job: Mapping[str, Any], data: EvaluationSet, encoder: TextEncoder, folder: str, device: torch.device
):
    with installed_by("bench", "Measuring sentence-transformers"):
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
    peer = SentenceTransformer(folder, device=str(device))
    evaluator = InformationRetrievalEvaluator(
        data.queries,
        dict(zip(data.corpus.ids.to_pylist(), data.corpus.read_by(encoder).to_pylist(), strict=True)),
        data.relevant(),
        batch_size=job["peer_batch"],
        ndcg_at_k=[10],
        accuracy_at_k=[10],
        precision_recall_at_k=[100],
        map_at_k=[100],
        mrr_at_k=[10],
        write_csv=False,
    )
    return lambda: next(value for name, value in evaluator(peer).items() if name.endswith("cosine_ndcg@10"))


def _beir(job: Mapping[str, Any], data: EvaluationSet, encoder: TextEncoder, folder: str, device: torch.device):
    with installed_by("bench", "Measuring beir"):
        from beir.retrieval.evaluation import EvaluateRetrieval
        from beir.retrieval.search.dense import DenseRetrievalExactSearch
        from sentence_transformers import SentenceTransformer
    logging.getLogger("beir").setLevel(logging.ERROR)
    model = _BeirModel(SentenceTransformer(folder, device=str(device)))
    search = DenseRetrievalExactSearch(model, batch_size=job["peer_batch"])
    columns = (column.to_pylist() for column in (data.corpus.ids, data.corpus.titles, data.corpus.texts))
    joins = encoder.spec.passage_titles
    corpus = {
        passage: {"title": title if joins else "", "text": text} for passage, title, text in zip(*columns, strict=True)
    }

    def evaluate() -> float:
        retriever = EvaluateRetrieval(search, k_values=[10, _HITS], score_function="cos_sim")
        run = retriever.retrieve(corpus, data.queries)
        return retriever.evaluate(data.qrels, run, [10])[0]["NDCG@10"]

    return evaluate


class _BeirModel:
    """What beir's search asks of a model. (Its own SentenceBERT stands beside a vLLM model whose import may fail.)"""

    def __init__(self, model: Any) -> None:
        self.model = model

    def encode_queries(self, queries: list[str], batch_size: int, **options: Any) -> Any:
        return self.model.encode(queries, batch_size=batch_size, **options)

    def encode_corpus(self, corpus: list[dict[str, str]], batch_size: int, **options: Any) -> Any:
        texts = [f"{passage['title']} {passage['text']}".strip() for passage in corpus]
        return self.model.encode(texts, batch_size=batch_size, **options)
