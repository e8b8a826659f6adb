"""BeirEvaluation: nDCG@10 over whole BEIR corpora, before the first step and at every validation."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch.distributed as dist

from callbacks.scoring import METRICS, score_run, without_self_hits
from datamodules.caches import cached_embeddings, cached_tokens, embed
from datamodules.corpus import EvaluationSet, load_evaluation_set
from datamodules.files import atomic_path, write_json
from retriever.encoding import device_of
from retriever.errors import InputError, require_positive
from retriever.module import RetrieverModule
from retriever.search import exact_search, merge_hits
from retriever.tokens import TokenizedTexts

log = logging.getLogger(__name__)
_OPTIONS = ("path", "split", "name", "queries")


@dataclass
class PreparedSet:
    """An evaluation set with its token ids, and its passage embeddings where the passage encoder is frozen."""

    data: EvaluationSet
    queries: TokenizedTexts
    passages: TokenizedTexts
    frozen: np.ndarray | None


class BeirEvaluation(L.Callback):
    """Exact search over each corpus and BEIR's metrics; the base model before the first step, the tuned one later.

    Logs ``val/<dataset>/<metric>`` and ``val/<dataset>/ndcg@10_delta``, the difference to the base model. Keeps
    per-query values and a TREC run file of every evaluation in the run folder. Passages are spread over the ranks and
    the hits merged. What has not changed (base weights, a frozen passage encoder) is encoded once, then read from the
    cache.

    Args:
        datasets: mappings with ``path`` (a BEIR-layout folder, a shipped or a BEIR name) and, as options, ``split``
            (default test), ``name`` (for the metric names), and ``queries: dev``: only the queries of the data
            module's dev lists, for choosing settings without looking at test queries.
        folder: the run folder.
        hits: hits kept per query (BEIR: 1,000).
        ignore_identical_ids: take the query's own id out of its hits (BEIR's default).
        unknown_qrels: ``error`` or ``keep``, see :func:`~datamodules.corpus.load_evaluation_set`.
        empty_passages: ``error`` or ``keep``.
        run_hits: hits per query in the TREC run files.
        cache_dir: where token ids and embeddings are kept.
        data_dir: where downloaded data sets lie.
        token_budget: tokens of a micro-batch.
    """

    module_class: type[L.LightningModule] = RetrieverModule
    mismatch = "This evaluation searches with embeddings; a cross-encoder (module=reranker) needs evaluation=rerank."

    def __init__(
        self,
        datasets: Sequence[Mapping],
        folder: str | Path,
        *,
        hits: int = 1000,
        ignore_identical_ids: bool = True,
        unknown_qrels: str = "error",
        empty_passages: str = "error",
        run_hits: int = 100,
        cache_dir: str | Path = "outputs/cache",
        data_dir: str | Path = "data",
        token_budget: int = 16_384,
    ) -> None:
        require_positive(hits=hits, run_hits=run_hits, token_budget=token_budget)
        if hits < 100:
            raise InputError(f"evaluation.hits is {hits}; recall@100 and map@100 need at least 100.")
        self.folder = Path(folder)
        self.hits = hits
        self.ignore_identical_ids = ignore_identical_ids
        self.run_hits = run_hits
        self.cache_dir = Path(cache_dir)
        self.token_budget = token_budget
        self.specs = [_checked(spec) for spec in datasets]
        corpora: dict[str, Any] = {}
        self.data: list[EvaluationSet] = []
        for spec in self.specs:
            loaded = load_evaluation_set(
                spec["path"],
                spec.get("split", "test"),
                name=spec.get("name"),
                data_dir=data_dir,
                unknown_qrels=unknown_qrels,
                empty_passages=empty_passages,
                corpus=corpora.get(spec["path"]),
            )
            corpora[spec["path"]] = loaded.corpus
            self.data.append(loaded)
        names = [data.name for data in self.data]
        if len(set(names)) < len(names):
            raise InputError(
                f"evaluation.datasets: two have one name ({', '.join(names)}). Give one a name: of its own."
            )
        self.base: dict[str, dict[str, float]] = {}
        self.history: list[dict[str, Any]] = []
        self._prepared: list[PreparedSet] | None = None

    def setup(self, trainer: L.Trainer, pl_module: RetrieverModule, stage: str) -> None:
        """Tokenise, and encode what is frozen, while the weights are the base model's: before a checkpoint is read."""
        if not isinstance(pl_module, self.module_class):
            raise InputError(self.mismatch)
        if self._prepared is not None:
            return
        self._prepared = []
        for number, (spec, data) in enumerate(zip(self.specs, self.data, strict=True)):
            if spec.get("queries") == "dev":
                data = self.data[number] = _only(data, trainer.datamodule.dev_query_ids(data.corpus.name))
            queries = cached_tokens(list(data.queries.values()), pl_module.encoder, "query", self.cache_dir)
            passages = cached_tokens(data.corpus.passages, pl_module.encoder, "passage", self.cache_dir)
            frozen = None
            if not pl_module.train_passage_encoder:
                frozen = self._cached(trainer, pl_module, passages, data.name)
            self._prepared.append(PreparedSet(data, queries, passages, frozen))

    def on_train_start(self, trainer: L.Trainer, pl_module: RetrieverModule) -> None:
        """Evaluate the base model, unless a validation before training or an earlier part of this run did."""
        if not self.base:
            self._log_directly(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: RetrieverModule) -> None:
        """Evaluate and log."""
        if not trainer.sanity_checking:
            pl_module.log_dict(self._evaluate_and_keep(trainer, pl_module))

    def on_train_end(self, trainer: L.Trainer, pl_module: RetrieverModule) -> None:
        """Evaluate the last step, where training ended between two validations."""
        if self.history[-1]["step"] != trainer.global_step:
            self._log_directly(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The base model's figures and the history, so that a resumed run keeps them."""
        return {"base": self.base, "history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a resumed run's figures."""
        self.base, self.history = state_dict["base"], state_dict["history"]

    def evaluate(self, trainer: L.Trainer, module: RetrieverModule, step: int) -> dict[str, dict[str, float]]:
        """Evaluate the module as it is now: data set → metric → value, in [0, 1]. Files are written for ``step``."""
        results = {}
        encoded: dict[int, np.ndarray] = {}  # sets over one corpus share its embeddings
        for prepared in self._prepared:
            corpus = id(prepared.data.corpus)
            if corpus not in encoded:
                encoded[corpus] = self._passages(trainer, module, prepared)
            run = self._search(trainer, module, prepared, encoded[corpus])
            if self.ignore_identical_ids:
                run = without_self_hits(run)
            results[prepared.data.name], per_query = score_run(prepared.data.qrels, run)
            if trainer.is_global_zero:
                self._write(prepared.data.name, step, run, per_query)
        return results

    def _log_directly(self, trainer: L.Trainer, module: RetrieverModule) -> None:
        """Evaluate and log outside of validation, where the module's own ``log`` may not be called."""
        figures = self._evaluate_and_keep(trainer, module)
        for logger in trainer.loggers:
            logger.log_metrics(figures, trainer.global_step)

    def _evaluate_and_keep(self, trainer: L.Trainer, module: RetrieverModule) -> dict[str, float]:
        """Evaluate at this step and remember it; what to log."""
        step = trainer.global_step
        results = self.evaluate(trainer, module, step)
        self.base = self.base or results
        self.history = [h for h in self.history if h["step"] != step] + [{"step": step, "metrics": results}]
        flat = {}
        for name, metrics in results.items():
            flat |= {f"val/{name}/{metric}": metrics[metric] for metric in METRICS}
            flat[f"val/{name}/ndcg@10_delta"] = metrics["ndcg@10"] - self.base[name]["ndcg@10"]
            log.info(
                "step %d: %s nDCG@10 %.4f (%+.4f)", step, name, metrics["ndcg@10"], flat[f"val/{name}/ndcg@10_delta"]
            )
        return flat

    def _cached(self, trainer: L.Trainer, module: RetrieverModule, tokens: TokenizedTexts, name: str) -> np.ndarray:
        if device_of(module.encoder) != trainer.strategy.root_device:  # to() takes a sharded encoder's weights apart
            module.encoder.to(trainer.strategy.root_device)
        with trainer.precision_plugin.forward_context():
            return cached_embeddings(tokens, module.encoder, self.cache_dir, self.token_budget, f"encode {name}")

    def _search(
        self, trainer: L.Trainer, module: RetrieverModule, prepared: PreparedSet, passages: np.ndarray
    ) -> dict[str, dict[str, float]]:
        queries = self._embeddings(trainer, module, prepared.queries, f"{prepared.data.name} queries")
        own = self._own(trainer, prepared)
        found = exact_search(queries, passages, self.hits + 1, first_row=int(own[0]) if len(own) else 0)
        if trainer.world_size > 1:
            parts: list = [None] * trainer.world_size
            dist.all_gather_object(parts, found)
            found = merge_hits(parts, self.hits + 1)
        scores, rows = found
        ids = prepared.data.corpus.ids.take(rows.ravel()).to_pylist()
        width = rows.shape[1]
        return {
            query: dict(zip(ids[i * width : (i + 1) * width], scores[i].tolist(), strict=True))
            for i, query in enumerate(prepared.data.queries)
        }

    def _own(self, trainer: L.Trainer, prepared: PreparedSet) -> np.ndarray:
        """Rows of this rank's share of the passages."""
        return np.array_split(np.arange(len(prepared.passages)), trainer.world_size)[trainer.global_rank]

    def _passages(self, trainer: L.Trainer, module: RetrieverModule, prepared: PreparedSet) -> np.ndarray:
        """Embeddings of this rank's share of the passages, float32 [n, D]."""
        own = self._own(trainer, prepared)
        if prepared.frozen is not None:
            return prepared.frozen[own[0] : own[-1] + 1] if len(own) else prepared.frozen[:0]
        tokens = prepared.passages.select(own) if trainer.world_size > 1 else prepared.passages
        return self._embeddings(trainer, module, tokens, prepared.data.name)

    def _embeddings(self, trainer: L.Trainer, module: RetrieverModule, tokens: TokenizedTexts, name: str) -> np.ndarray:
        """Embeddings by the weights as they are now: from the cache where these are the base model's."""
        if trainer.global_step == 0:
            return self._cached(trainer, module, tokens, name)
        with trainer.precision_plugin.forward_context():
            return embed(tokens, module.encoder, self.token_budget, f"encode {name}")

    def _write(self, name: str, step: int, run: dict[str, dict[str, float]], per_query: dict) -> None:
        write_json(self.folder / "per_query" / name / f"step-{step:06d}.json", per_query)
        with (
            atomic_path(self.folder / "trec_runs" / name / f"step-{step:06d}.trec") as temporary,
            open(temporary, "w", encoding="utf-8") as file,
        ):
            for query, hits in run.items():
                # trec_eval's order: by score, ties by descending id
                ranked = sorted(hits.items(), key=lambda item: (item[1], item[0]), reverse=True)
                for place, (passage, score) in enumerate(ranked[: self.run_hits], 1):
                    file.write(f"{query} Q0 {passage} {place} {score:.9g} step-{step}\n")


def _checked(spec: Mapping) -> Mapping:
    unknown = sorted(set(spec) - set(_OPTIONS))
    if unknown or "path" not in spec:
        raise InputError(
            f"evaluation.datasets: {dict(spec)} must have path, may have {', '.join(_OPTIONS[1:])}, and no more."
        )
    if spec.get("queries") not in (None, "dev"):
        raise InputError(f"evaluation.datasets: queries is {spec['queries']!r}; it is 'dev' or left out.")
    return spec


def _only(data: EvaluationSet, query_ids: list[str]) -> EvaluationSet:
    kept = {q: data.queries[q] for q in query_ids if q in data.queries}
    if not kept:
        raise InputError(f"evaluation set {data.name}: none of its queries is a dev list's; check split and data.dev.")
    return EvaluationSet(data.name, data.corpus, kept, {q: data.qrels[q] for q in kept})


def read_per_query(path: Path, metric: str = "ndcg@10") -> dict[str, float]:
    """Query id → value of a metric, from a file under ``per_query``."""
    return json.loads(path.read_text(encoding="utf-8"))[metric]
