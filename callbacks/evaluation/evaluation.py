"""Evaluation: the callback that has evaluation sets ranked and scored while training, before it and after it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L

from callbacks.evaluation.dense import DenseRanker
from callbacks.evaluation.evaluator import Evaluator
from callbacks.evaluation.history import Figures, History
from callbacks.evaluation.metrics import DEFAULT_METRICS, Metric, Metrics
from callbacks.evaluation.ranker import Ranker, Ranking
from callbacks.evaluation.reranking import CrossEncoderRanker
from callbacks.evaluation.sets import Reading, open_sets
from callbacks.reliability.best_checkpoint import best_checkpoint_step, best_weights
from datamodules.corpus import EvaluationSet
from datamodules.datamodule import QueryListDataModule
from datamodules.specs import read_evaluation_specs
from retriever.distributed.sharding import gather_weights
from retriever.encoder.text_encoder import TextEncoder
from retriever.errors import InputError, require_positive
from retriever.work import Work


class Evaluation(L.Callback):
    """Evaluates at the points that its ranker names: before the first step, at validations, and at the end.

    Logs ``val/<dataset>/<metric>``; beside it ``val/<dataset>/ndcg@10_base``, the base model's figure at every step, as
    a line to hold the curve against, and ``val/<dataset>/ndcg@10_delta``, the difference. Keeps per-query values and a
    TREC run file of every evaluation in the run folder. A corpus of which the ranker has a sample is searched whole for
    the base model, the best and the last step alone; validations search the sample.

    Args:
        datasets: mappings as :class:`~datamodules.specs.EvaluationSpec` describes them.
        folder: the run folder.
        ranker: what orders the passages.
        metrics: names and classes, see :class:`~callbacks.evaluation.metrics.Metrics`.
        hits: hits kept per query (BEIR: 1,000).
        ignore_identical_ids: take the query's own id out of its hits (BEIR's default), unless it is judged relevant.
        unknown_qrels: ``error`` or ``keep``, see :func:`~datamodules.corpus.load_evaluation_set`.
        empty_passages: ``error`` or ``keep``.
        on_bad_list: ``error`` or ``drop``, for ``lists``.
        run_hits: hits per query in the TREC run files.
        cache_dir: where memory-mapped corpora, token ids, embeddings and samples are kept.
        data_dir: where downloaded data sets lie.
        token_budget: tokens of a micro-batch; None takes the machine's.

    Attributes:
        history: figures and files; what recorders are handed.
    """

    def __init__(
        self,
        datasets: Sequence[Mapping],
        folder: str | Path,
        *,
        ranker: Ranker,
        metrics: Sequence[str | Metric] = DEFAULT_METRICS,
        hits: int = 1000,
        ignore_identical_ids: bool = True,
        unknown_qrels: str = "error",
        empty_passages: str = "error",
        on_bad_list: str = "error",
        run_hits: int = 100,
        cache_dir: str | Path = "outputs/cache",
        data_dir: str | Path = "data",
        token_budget: int | None = None,
    ) -> None:
        require_positive(hits=hits, run_hits=run_hits, token_budget=token_budget)
        self.specs = read_evaluation_specs(datasets)
        sampled = [spec.shown_name for spec in self.specs if spec.sample is not None]
        if sampled and not ranker.draws_samples:
            raise InputError(
                f"evaluation.datasets: {sampled[0]} has a sample, and {type(ranker).__name__} searches none: leave it "
                "out."
            )
        self.ranker = ranker
        self.history = History(folder, Metrics(metrics, hits), run_hits)
        self.reading = Reading(unknown_qrels, empty_passages, on_bad_list, cache_dir, data_dir)
        self.how = Ranking(hits, ignore_identical_ids, Path(cache_dir), token_budget)
        self._evaluator: Evaluator | None = None

    def open(self, module: L.LightningModule, data: QueryListDataModule) -> None:
        """Read the evaluation sets, once; those with ``queries: dev`` take the data module's, which must be open.

        Raises:
            InputError: a module that the ranker cannot rank by, or what :func:`~callbacks.evaluation.sets.open_sets`
                refuses.
        """
        self.ranker.check(module)
        if data.passage_encoder is not None:
            self.ranker.encode_passages_by(data.passage_encoder)
        if not self.history.sets:
            self.history.sets = open_sets(self.specs, self.reading, data.dev_query_ids)

    def work(self, module: L.LightningModule) -> dict[str, Work]:
        """What is done at ``base``, each ``validation``, and the ``end``, see :meth:`Ranker.work`; open it before."""
        return self.ranker.work(self.history.sets, module)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Open and prepare while the weights are the base model's: before a checkpoint is read."""
        if self._evaluator is None:
            self.open(pl_module, trainer.datamodule)
            how = self.how.on(trainer)
            self._evaluator = Evaluator(self.ranker, self.history, how)
            self._evaluator.prepare(pl_module.encoder)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate the base model, unless a validation before training or an earlier part of this run did."""
        new = sorted({data.name for data in self.evaluator.sets} - self.history.base.keys())
        if self.history.base and new:
            raise InputError(
                f"evaluation.datasets: {new[0]} is new in this resumed run, whose base model was evaluated without it. "
                "Resume with the data sets that the run began with."
            )
        if not self.history.base and "base" in self.ranker.points:
            self._log_directly(trainer, pl_module, trainer.global_step)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate and log; once the base model is known, sampled corpora by their samples alone."""
        step, points = trainer.global_step, self.ranker.points
        if trainer.sanity_checking or not (self.ranker.every_validation if step else "base" in points):
            return
        known = self.history.samples if self.history.base else ()
        due = [data for data in self.evaluator.sets if data.name not in known]
        pl_module.log_dict(self.history.to_log(self.evaluator.evaluate(pl_module.encoder, step, due)))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate what is still unknown of the last and of the best step, such as whole corpora."""
        gather_weights(pl_module)  # saving a checkpoint took a sharded encoder's apart
        if "last" in self.ranker.points:
            self._log_directly(trainer, pl_module, trainer.global_step)
        best = best_checkpoint_step(trainer)
        if self.evaluator.unknown(best) or self.ranker.finishes:
            with best_weights(trainer, pl_module):
                self._log_directly(trainer, pl_module, best)
                self.evaluator.finish(pl_module.encoder, best)

    def state_dict(self) -> dict[str, Any]:
        """The history, so that a resumed run keeps it."""
        return self.history.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a resumed run's history."""
        self.history.load_state_dict(state_dict)

    @property
    def state_key(self) -> str:
        """The name of its state in a checkpoint, whatever ranks."""
        return "Evaluation"

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Find the state under the names that earlier versions gave it."""
        states = checkpoint.get("callbacks", {})
        for name in ("BeirEvaluation", "RerankEvaluation"):
            if name in states:
                states[self.state_key] = states.pop(name)

    @property
    def evaluator(self) -> Evaluator:
        """What evaluates; there since :meth:`setup`."""
        assert self._evaluator is not None
        return self._evaluator

    def _log_directly(self, trainer: L.Trainer, module: L.LightningModule, step: int) -> None:
        """Evaluate what is unknown of a step, outside of validation, where the module's ``log`` may not be called."""
        unknown: list[EvaluationSet] = self.evaluator.unknown(step)
        if unknown:
            figures: Figures = self.evaluator.evaluate(module.encoder, step, unknown)
            for logger in trainer.loggers:
                logger.log_metrics(self.history.to_log(figures), step)


class DenseEvaluation(Evaluation):
    """An :class:`Evaluation` by a :class:`~callbacks.evaluation.dense.DenseRanker`, all settings in one.

    Args:
        datasets: of the evaluation.
        folder: the run folder.
        embedding_dtype: of the ranker.
        embedding_storage: of the ranker.
        **common: of the evaluation.
    """

    def __init__(
        self,
        datasets: Sequence[Mapping],
        folder: str | Path,
        *,
        embedding_dtype: str = "float32",
        embedding_storage: str = "memory",
        **common: Any,
    ) -> None:
        super().__init__(datasets, folder, ranker=DenseRanker(embedding_dtype, embedding_storage), **common)


class RerankEvaluation(Evaluation):
    """An :class:`Evaluation` by a :class:`~callbacks.evaluation.reranking.CrossEncoderRanker`, all settings in one.

    Args:
        datasets: of the evaluation; ``sample`` is not for it.
        folder: the run folder.
        depth: of the ranker, as all that follow.
        k1: see there.
        b: see there.
        dense: see there.
        dense_weight: see there.
        every_validation: see there.
        **common: of the evaluation.
    """

    def __init__(
        self,
        datasets: Sequence[Mapping],
        folder: str | Path,
        *,
        depth: int = 100,
        k1: float = 0.9,
        b: float = 0.4,
        dense: TextEncoder | None = None,
        dense_weight: float = 0.5,
        every_validation: bool = False,
        **common: Any,
    ) -> None:
        ranker = CrossEncoderRanker(depth, k1, b, dense, dense_weight, every_validation)
        super().__init__(datasets, folder, ranker=ranker, **common)
