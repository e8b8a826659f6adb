"""BeirEvaluation: nDCG@10 over whole BEIR corpora, before the first step and at every validation."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import numpy as np
from filelock import FileLock

from callbacks.evaluation.block_search import search_and_score, trec_file
from callbacks.evaluation.metrics import METRICS, Run, mean_scores
from callbacks.reliability.best_checkpoint import best_checkpoint_step, best_weights
from datamodules.caches import cached_embeddings, cached_tokens, embed, token_range, update_with_tokens
from datamodules.corpus import Corpus, EvaluationSet, find_dataset, find_file, load_corpus, load_evaluation_set
from datamodules.datamodule import QueryListDataModule
from datamodules.held_out import held_out_set
from datamodules.hits import bm25_search
from datamodules.list_choice import chosen_lists
from datamodules.query_lists import open_query_lists
from datamodules.sampled_corpus import Sample, draw_sample, sampled_set, update_with_evaluation_set
from datamodules.specs import SampleSpec
from datamodules.storage.files import atomic_path, read_json, reserve, write_json
from datamodules.storage.made_ahead import made_ahead
from datamodules.text.words import METHOD
from retriever.distributed.sharding import gather_weights
from retriever.encoder.encoding import device_of
from retriever.encoder.tokens import TokenizedTexts
from retriever.errors import InputError, choose, require_positive, shown
from retriever.module import RetrieverModule, Work
from retriever.search import exact_search
from retriever.typed import read_settings

log = logging.getLogger(__name__)
DTYPES = ("float32", "float16")
STORAGES = ("memory", "disk")


@dataclass(frozen=True)
class PreparedSet:
    """An evaluation set with its token ids.

    Attributes:
        data: queries, judgements, and the passages that are searched.
        queries: token ids.
        passages: token ids of the whole corpus.
        base: passage embeddings of the whole corpus by the base weights, [N, D], memory-mapped; None where nothing
            searches with them.
        rows: the passages that are searched, as rows of the whole corpus; None: all.
    """

    data: EvaluationSet
    queries: TokenizedTexts
    passages: TokenizedTexts
    base: np.ndarray | None = None
    rows: np.ndarray | None = None


class BeirEvaluation(L.Callback):
    """Exact search over each corpus and BEIR's metrics; the base model before the first step, the tuned one later.

    Logs ``val/<dataset>/<metric>``; beside it ``val/<dataset>/ndcg@10_base``, the base model's figure at every step, as
    a line to hold the curve against, and ``val/<dataset>/ndcg@10_delta``, the difference. Keeps per-query values and a
    TREC run file of every evaluation in the run folder. Passages are spread over the ranks and the hits merged, some
    queries at a time. What has not changed (base weights, a frozen passage encoder) is encoded once, by all processes
    together, then read from the cache.

    A data set with ``sample`` is validated on a sample of its corpus (``val/<dataset>-sample/…``): the judged passages,
    the best ``depth`` hits of the base model and of BM25 for each query, and a random rest up to ``size``. The base
    model, the best and the last step are measured on the whole corpus, too, so that the sample's error is known.

    Args:
        datasets: mappings with ``path`` (a BEIR-layout folder, a shipped or a BEIR name) and, as options, ``split``
            (default test), ``name`` (for the metric names), ``queries: dev``: only the queries of the data module's dev
            lists, for choosing settings without looking at test queries, ``lists``: a file of query lists whose queries
            are evaluated in place of a split's (:func:`~datamodules.held_out.held_out_set`), ``types``: the query
            types among them, and ``sample``: a mapping with ``size``, ``depth`` (default 100) and ``seed`` (default 1).
        folder: the run folder.
        hits: hits kept per query (BEIR: 1,000).
        ignore_identical_ids: take the query's own id out of its hits (BEIR's default), unless it is judged relevant.
        unknown_qrels: ``error`` or ``keep``, see :func:`~datamodules.corpus.load_evaluation_set`.
        empty_passages: ``error`` or ``keep``.
        on_bad_list: ``error`` or ``drop``, for ``lists``.
        run_hits: hits per query in the TREC run files.
        embedding_dtype: ``float32`` or ``float16``, in which passage embeddings are stored; scores are float32.
        embedding_storage: where passage embeddings of tuned weights are while they are searched: ``memory``, or
            ``disk``: a temporary file in ``cache_dir``. Those of base weights are in the cache on disk anyway.
        cache_dir: where memory-mapped corpora, token ids, embeddings and samples are kept.
        data_dir: where downloaded data sets lie.
        token_budget: tokens of a micro-batch.
    """

    module_class: type[L.LightningModule] = RetrieverModule
    searches = True  # with embeddings of the corpora
    mismatch = "This evaluation searches with embeddings; a cross-encoder (module=reranker) needs evaluation=rerank."
    # of a data set, beside its path
    options: ClassVar[tuple[str, ...]] = ("split", "name", "queries", "lists", "types", "sample")

    def __init__(
        self,
        datasets: Sequence[Mapping],
        folder: str | Path,
        *,
        hits: int = 1000,
        ignore_identical_ids: bool = True,
        unknown_qrels: str = "error",
        empty_passages: str = "error",
        on_bad_list: str = "error",
        run_hits: int = 100,
        embedding_dtype: str = "float32",
        embedding_storage: str = "memory",
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
        self.embedding_dtype = choose("evaluation.embedding_dtype", embedding_dtype, DTYPES)
        self.embedding_storage = choose("evaluation.embedding_storage", embedding_storage, STORAGES)
        self.cache_dir = Path(cache_dir)
        self.token_budget = token_budget
        self.specs = [_checked(spec, self.options) for spec in datasets]
        self.on_bad_list = on_bad_list
        corpora: dict[str, Corpus] = {}
        self.data: list[EvaluationSet] = []
        for spec in self.specs:
            folder = find_dataset(spec["path"], data_dir)
            if spec["path"] not in corpora:
                corpora[spec["path"]] = load_corpus(folder, empty_passages=empty_passages, cache_dir=self.cache_dir)
            corpus = corpora[spec["path"]]
            if spec.get("lists") is None:
                split, name = spec.get("split", "test"), spec.get("name")
                loaded = load_evaluation_set(str(folder), split, name=name, unknown_qrels=unknown_qrels, corpus=corpus)
                self.data.append(loaded)
            else:
                self.data.append(self._held_out(spec, corpus))
        names = [data.name for data in self.data]
        names += [f"{n}-sample" for n, spec in zip(names, self.specs, strict=True) if _sample_spec(spec) is not None]
        if len(set(names)) < len(names):
            raise InputError(
                f"evaluation.datasets: two have one name ({', '.join(names)}). Give one a name: of its own."
            )
        self.base: dict[str, dict[str, float]] = {}
        self.history: list[dict[str, Any]] = []
        self._prepared: list[PreparedSet] = []
        self._samples: dict[str, dict[str, int]] = {}  # data set → how its sample is made up

    def _held_out(self, spec: Mapping, corpus: Corpus) -> EvaluationSet:
        lists, _ = open_query_lists(find_file(spec["lists"]), corpus, self.cache_dir, self.on_bad_list)
        lists = chosen_lists(lists, f"evaluation.datasets: {spec['lists']}", spec.get("types"))
        return held_out_set(spec.get("name") or corpus.name, corpus, lists)

    def open(self, module: L.LightningModule, data: QueryListDataModule) -> None:
        """Take the queries that are those of dev lists from the data module, which must be open.

        Raises:
            InputError: a module that this evaluation does not evaluate, or no dev list has a query of the set.
        """
        if not isinstance(module, self.module_class):
            raise InputError(self.mismatch)
        for number, (spec, evaluated) in enumerate(zip(self.specs, self.data, strict=True)):
            if spec.get("queries") == "dev":
                self.data[number] = _only(evaluated, data.dev_query_ids(evaluated.corpus.name))

    def describe(self) -> list[dict[str, Any]]:
        """What is evaluated: of each set its name, corpus, passages and queries, where they come from, and a sample."""
        return [
            {
                "name": data.name,
                "corpus": data.corpus.name,
                "passages": len(data.corpus),
                "queries": len(data.queries),
                "from": "dev lists" if spec.get("queries") == "dev" else spec.get("lists") or spec.get("split", "test"),
                "sample": (spec.get("sample") or {}).get("size"),
            }
            for spec, data in zip(self.specs, self.data, strict=True)
        ]

    def work(self, module: RetrieverModule) -> dict[str, Work]:
        """What is encoded and searched: ``base`` before training, each ``validation``, and what is left at the ``end``.

        Passages that keep the base model's embeddings are not counted: they are encoded once.
        """
        found = {point: Work() for point in ("base", "validation", "end")}
        searched: dict[int, int] = {}
        for spec, data in zip(self.specs, self.data, strict=True):
            queries, passages, sample = len(data.queries), len(data.corpus), _sample_spec(spec)
            looked_at = passages if sample is None else min(passages, sample.size)
            found["base"] += Work(queries=queries, products=queries * passages)
            found["validation"] += Work(queries=queries, products=queries * looked_at)
            # sets over one corpus share its embeddings, but for samples
            searched[id(data.corpus) if sample is None else -len(searched) - 1] = looked_at
            if sample is not None:  # the best and the last step, on the whole corpus
                whole = Work(queries=queries, products=queries * passages)
                whole += Work(passages=passages if module.train_passage_encoder else 0)
                found["end"] += whole + whole
        if module.train_passage_encoder:
            found["validation"] += Work(passages=sum(searched.values()))
        return found

    def setup(self, trainer: L.Trainer, pl_module: RetrieverModule, stage: str) -> None:
        """Tokenise and encode while the weights are the base model's: before a checkpoint is read.

        One set is tokenised while the one before it is encoded.
        """
        if self._prepared:
            return
        self.open(pl_module, trainer.datamodule)

        def tokenize(data: EvaluationSet) -> PreparedSet:
            queries = cached_tokens(list(data.queries.values()), pl_module.encoder, "query", self.cache_dir)
            passages = cached_tokens(data.corpus.passages, pl_module.encoder, "passage", self.cache_dir)
            return PreparedSet(data, queries, passages)

        for spec, tokens in zip(self.specs, made_ahead(tokenize, self.data), strict=True):
            whole = self._with_base(trainer, pl_module, tokens)
            self._prepared.append(whole)
            sample = _sample_spec(spec)
            if sample is not None:
                self._prepared.append(self._sampled(trainer, pl_module, whole, sample))

    def on_train_start(self, trainer: L.Trainer, pl_module: RetrieverModule) -> None:
        """Evaluate the base model, unless a validation before training or an earlier part of this run did."""
        new = sorted({prepared.data.name for prepared in self._prepared} - self.base.keys())
        if self.base and new:
            raise InputError(
                f"evaluation.datasets: {new[0]} is new in this resumed run, whose base model was evaluated without it. "
                "Resume with the data sets that the run began with."
            )
        if not self.base:
            self._log_directly(trainer, pl_module, trainer.global_step)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: RetrieverModule) -> None:
        """Evaluate and log; once the base model is known, sampled corpora by their samples alone."""
        if trainer.sanity_checking:
            return
        due = [p for p in self._prepared if not self.base or p.data.name not in self._samples]
        pl_module.log_dict(self._evaluate_and_keep(trainer, pl_module, trainer.global_step, due))

    def on_train_end(self, trainer: L.Trainer, pl_module: RetrieverModule) -> None:
        """Evaluate what is still unknown of the last and of the best step.

        That is all of the last step where training ended between two validations, and whole corpora that are sampled.
        """
        gather_weights(pl_module)  # saving a checkpoint took a sharded encoder's apart
        self._log_directly(trainer, pl_module, trainer.global_step)
        best = best_checkpoint_step(trainer)
        if self._unknown(best):
            with best_weights(trainer, pl_module):
                self._log_directly(trainer, pl_module, best)

    def state_dict(self) -> dict[str, Any]:
        """The base model's figures and the history, so that a resumed run keeps them."""
        return {"base": self.base, "history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a resumed run's figures."""
        self.base, self.history = state_dict["base"], state_dict["history"]

    def evaluate(
        self, trainer: L.Trainer, module: RetrieverModule, step: int, sets: Sequence[PreparedSet]
    ) -> dict[str, dict[str, float]]:
        """Evaluate the module as it is now: data set → metric → value, in [0, 1]. Files are written for ``step``."""
        by_corpus: dict[int, list[PreparedSet]] = {}
        for prepared in sets:
            by_corpus.setdefault(id(prepared.data.corpus), []).append(prepared)
        results = {}
        for group in by_corpus.values():  # sets over one corpus share its embeddings, which then are let go
            passages = self._passages(trainer, module, group[0])
            for prepared in group:
                results[prepared.data.name] = self._score(trainer, module, step, prepared, passages)
        return {prepared.data.name: results[prepared.data.name] for prepared in sets}

    def sample_report(self, steps: Mapping[str, int]) -> dict[str, Any]:
        """Data set → how its sample is made up, and metric → point → figures on the whole corpus and on the sample.

        Args:
            steps: point (``base``, …) → its step; evaluated on both.
        """
        by_step = {entry["step"]: entry["metrics"] for entry in self.history}
        report: dict[str, Any] = {}
        for name, facts in self._samples.items():
            report[name] = {**facts, "figures": {metric: {} for metric in METRICS}}
            for metric, figures in report[name]["figures"].items():
                for point, step in steps.items():
                    whole, sample = (by_step[step][key][metric] for key in (name, f"{name}-sample"))
                    figures[point] = {"whole": whole, "sample": sample, "error": round(sample - whole, 5)}
        return report

    def _log_directly(self, trainer: L.Trainer, module: RetrieverModule, step: int) -> None:
        """Evaluate what is unknown of a step, outside of validation, where the module's ``log`` may not be called."""
        unknown = self._unknown(step)
        if unknown:
            figures = self._evaluate_and_keep(trainer, module, step, unknown)
            for logger in trainer.loggers:
                logger.log_metrics(figures, step)

    def _unknown(self, step: int) -> list[PreparedSet]:
        """Sets that have not been evaluated at this step."""
        known: dict[str, Any] = next((entry["metrics"] for entry in self.history if entry["step"] == step), {})
        return [prepared for prepared in self._prepared if prepared.data.name not in known]

    def _evaluate_and_keep(
        self, trainer: L.Trainer, module: RetrieverModule, step: int, sets: Sequence[PreparedSet]
    ) -> dict[str, float]:
        """Evaluate the module, whose weights are those of this step, and remember it; what to log."""
        results = self.evaluate(trainer, module, step, sets)
        self.base = self.base or results
        metrics = {entry["step"]: entry["metrics"] for entry in self.history}
        metrics[step] = metrics.get(step, {}) | results
        self.history = [{"step": number, "metrics": metrics[number]} for number in sorted(metrics)]
        flat: dict[str, float] = {}
        for name, values in results.items():
            flat |= self._to_log(name, values)
            log.info(
                "step %d: %s nDCG@10 %.4f (%+.4f)", step, name, values["ndcg@10"], flat[f"val/{name}/ndcg@10_delta"]
            )
        for name in self._samples:
            if {name, f"{name}-sample"} <= metrics[step].keys():
                error = metrics[step][f"{name}-sample"]["ndcg@10"] - metrics[step][name]["ndcg@10"]
                log.info("step %d: %s nDCG@10 on the sample is off by %+.4f", step, name, error)
        return flat

    def _to_log(self, name: str, values: Mapping[str, float]) -> dict[str, float]:
        """One set's figures under the names that they are logged by."""
        base = self.base[name]["ndcg@10"]
        flat = {f"val/{name}/{metric}": values[metric] for metric in METRICS}
        return flat | {f"val/{name}/ndcg@10_base": base, f"val/{name}/ndcg@10_delta": values["ndcg@10"] - base}

    def _with_base(self, trainer: L.Trainer, module: RetrieverModule, prepared: PreparedSet) -> PreparedSet:
        return replace(prepared, base=self._corpus_embeddings(trainer, module, prepared))

    def _corpus_embeddings(self, trainer: L.Trainer, module: RetrieverModule, prepared: PreparedSet) -> np.ndarray:
        """Passage embeddings of the whole corpus by the weights as they are now, [N, D]; from or to the cache."""
        title = f"encode {prepared.data.name}"
        return self._cached(trainer, module, prepared.passages, title, self.embedding_dtype)

    def _cached(
        self, trainer: L.Trainer, module: RetrieverModule, tokens: TokenizedTexts, title: str, dtype: str
    ) -> np.ndarray:
        if device_of(module.encoder) != trainer.strategy.root_device:  # to() takes a sharded encoder's weights apart
            module.encoder.to(trainer.strategy.root_device)
        with trainer.precision_plugin.forward_context():
            return cached_embeddings(tokens, module.encoder, self.cache_dir, self.token_budget, title, dtype)

    def _sampled(
        self, trainer: L.Trainer, module: RetrieverModule, whole: PreparedSet, spec: SampleSpec
    ) -> PreparedSet:
        """The set over a sample of its corpus, drawn once per content and settings, by one rank."""
        path = self.cache_dir / "samples" / f"{self._sample_key(trainer, module, whole, spec)}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.is_file():
                drawn = self._draw(trainer, module, whole, spec)
                with atomic_path(path) as temporary, open(temporary, "wb") as file:
                    arrays: dict[str, Any] = {"rows": drawn.rows, **drawn.counts}
                    np.savez(file, **arrays)
        with np.load(path) as file:
            stored = dict(file)
        rows, total = stored.pop("rows"), len(whole.data.corpus)
        counts = {name: int(count) for name, count in stored.items()}
        self._samples[whole.data.name] = {"passages": len(rows), "of": total, **asdict(spec), **counts}
        log.info(
            "%s: validations search %d of %d passages (%s)",
            whole.data.name,
            len(rows),
            total,
            ", ".join(f"{count} {name}" for name, count in counts.items()),
        )
        return replace(whole, data=sampled_set(whole.data, rows), rows=rows)

    def _sample_key(self, trainer: L.Trainer, module: RetrieverModule, whole: PreparedSet, spec: SampleSpec) -> str:
        """What a sample depends on: its settings, how the base model embeds, token ids, and the evaluation set."""
        embedded = (module.encoder.fingerprint(), trainer.precision, self.embedding_dtype)
        digest = hashlib.sha256(repr((spec, self.ignore_identical_ids, METHOD, *embedded)).encode())
        for tokens in (whole.queries, whole.passages):
            update_with_tokens(digest, tokens)
        update_with_evaluation_set(digest, whole.data)
        return digest.hexdigest()[:32]

    def _draw(self, trainer: L.Trainer, module: RetrieverModule, whole: PreparedSet, spec: SampleSpec) -> Sample:
        title = f"encode {whole.data.name} queries"
        queries = self._cached(trainer, module, whole.queries, title, "float32")
        depth = spec.depth + self.ignore_identical_ids  # a query's own passage is none of its hits
        assert whole.base is not None  # setup encoded it
        _, base = exact_search(queries, whole.base, depth)
        bm25 = bm25_search(whole.data.corpus.passages.to_pylist(), list(whole.data.queries.values()), depth)
        return draw_sample(whole.data, base, bm25.rows, spec)

    def _score(
        self, trainer: L.Trainer, module: RetrieverModule, step: int, prepared: PreparedSet, passages: np.ndarray
    ) -> dict[str, float]:
        """Search, score and write; the means, on every rank."""
        name = prepared.data.name
        with self._run_file(name, step) if trainer.is_global_zero else nullcontext(lambda run: None) as keep_run:
            per_query = search_and_score(
                prepared.data,
                self._query_embeddings(trainer, module, prepared),
                passages,
                self.hits,
                first_row=_share(trainer, prepared).start,
                ignore_identical_ids=self.ignore_identical_ids,
                keep_run=keep_run,
                device=trainer.strategy.root_device,
            )
        if trainer.is_global_zero:
            write_json(self._per_query_file(name, step), per_query)
        return trainer.strategy.broadcast(mean_scores(per_query))

    def _passages(self, trainer: L.Trainer, module: RetrieverModule, prepared: PreparedSet) -> np.ndarray:
        """Embeddings of this rank's share of the passages that are searched, [n, D]."""
        share = _share(trainer, prepared)
        rows: Any = share if prepared.rows is None else prepared.rows[share]  # a slice, or row numbers
        if not module.train_passage_encoder:
            assert prepared.base is not None  # setup encoded it
            return prepared.base[rows]
        if trainer.global_step == 0:
            return self._corpus_embeddings(trainer, module, prepared)[rows]
        tokens = prepared.passages
        tokens = token_range(tokens, share.start, share.stop) if prepared.rows is None else tokens.select(rows)
        out = self._room(len(tokens), module.encoder.dimension)
        with trainer.precision_plugin.forward_context():
            return embed(tokens, module.encoder, self.token_budget, f"encode {prepared.data.name}", out)

    def _room(self, rows: int, dimension: int) -> np.ndarray:
        """An array for passage embeddings, where the settings want it."""
        if self.embedding_storage == "memory" or not rows:
            return np.empty((rows, dimension), self.embedding_dtype)
        # without a name: it is gone as soon as nobody looks at it any more, also after a kill
        with tempfile.TemporaryFile(dir=self.cache_dir) as file:
            reserve(file, rows * dimension * np.dtype(self.embedding_dtype).itemsize)
            return np.memmap(file, self.embedding_dtype, "w+", shape=(rows, dimension))

    def _query_embeddings(self, trainer: L.Trainer, module: RetrieverModule, prepared: PreparedSet) -> np.ndarray:
        """Embeddings of all queries by the weights as they are now, float32 [Q, D]."""
        title = f"encode {prepared.data.name} queries"
        if trainer.global_step == 0:
            return self._cached(trainer, module, prepared.queries, title, "float32")
        with trainer.precision_plugin.forward_context():
            return embed(prepared.queries, module.encoder, self.token_budget, title)

    def _run_file(self, name: str, step: int) -> AbstractContextManager[Callable[[Run], None]]:
        path = self.folder / "trec_runs" / name / f"step-{step:06d}.trec"
        return trec_file(path, f"step-{step}", self.run_hits)

    def _per_query_file(self, name: str, step: int) -> Path:
        return self.folder / "per_query" / name / f"step-{step:06d}.json"


def _share(trainer: L.Trainer, prepared: PreparedSet) -> slice:
    """This rank's part of the passages that are searched."""
    total, ranks = len(prepared.data.corpus), trainer.world_size
    return slice(total * trainer.global_rank // ranks, total * (trainer.global_rank + 1) // ranks)


def _checked(spec: Mapping, options: Sequence[str]) -> Mapping:
    unknown = sorted(set(spec) - {"path", *options})
    if unknown or "path" not in spec:
        raise InputError(
            f"evaluation.datasets: {dict(spec)} must have path, may have {', '.join(options)}, and no more."
        )
    if spec.get("queries") not in (None, "dev"):
        raise InputError(f"evaluation.datasets: queries is {spec['queries']!r}; it is 'dev' or left out.")
    if spec.get("lists") is not None and "split" in spec:
        raise InputError(
            f"evaluation.datasets: {dict(spec)} has both split and lists; its queries come from one of them."
        )
    if spec.get("types") is not None and spec.get("lists") is None:
        raise InputError(f"evaluation.datasets: {dict(spec)} has types, but no lists to take them from.")
    _sample_spec(spec)
    return spec


def _sample_spec(spec: Mapping) -> SampleSpec | None:
    sample = spec.get("sample")
    return None if sample is None else read_settings(SampleSpec, sample, f"evaluation.datasets: {spec['path']}.sample")


def _only(data: EvaluationSet, query_ids: list[str]) -> EvaluationSet:
    kept = {q: data.queries[q] for q in query_ids if q in data.queries}
    if not kept:
        raise InputError(f"evaluation set {data.name}: none of its queries is a dev list's; check split and data.dev.")
    return EvaluationSet(data.name, data.corpus, kept, {q: data.qrels[q] for q in kept})


def read_per_query(path: Path, metric: str = "ndcg@10") -> dict[str, float]:
    """Query id → value of a metric, from a file under ``per_query``.

    Raises:
        InputError: the file is missing or damaged, or lacks the metric.
    """
    remedy = "Run that experiment again."
    values = read_json(path, remedy).get(metric)
    if not isinstance(values, dict) or not values:
        raise InputError(f"{path}: no {metric!r} of queries in it. {remedy}")
    for query, value in values.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
            raise InputError(f"{path}: {metric} of query {shown(query)} is {shown(value)}; expected 0 to 1. {remedy}")
    return values
