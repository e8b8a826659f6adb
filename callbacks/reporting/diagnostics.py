"""Diagnostics: what the objective does, measured on the batch of every n-th training step."""

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor

from retriever.agreement import TEACHER_TEMPERATURE
from retriever.batch import EncodedBatch
from retriever.diagnostics import (
    WholeBatch,
    alignment,
    anisotropy,
    duplicate_share,
    embedding_gradients,
    kendall_tau_b,
    norms_and_cosines,
    teacher_entropy,
    top1_agreement,
    uniformity,
)
from retriever.errors import InputError, require_positive
from retriever.module import RetrieverModule
from retriever.objectives.infonce import InfoNCELoss
from retriever.query_list_module import QueryListModule


class Diagnostics(L.Callback):
    """Logs, at the first step and every n-th behind it, the figures of :func:`measure` under ``diagnostics/``.

    Beside them ``diagnostics/tokens_per_second``: tokens (without padding) that all ranks encoded in that step, by the
    seconds that it took without these measurements; of a module that is no :class:`RetrieverModule`, this alone. With
    accumulated gradients the first batch of a step is measured. The run stays what it is, to the bit.

    Args:
        every_n_steps: optimiser steps from one measurement to the next, a whole number of at least 1; None: none.
        teacher_temperature: at which the teacher's entropy is taken.
    """

    def __init__(self, every_n_steps: int | None = 10, teacher_temperature: float = TEACHER_TEMPERATURE) -> None:
        if every_n_steps is not None and (not isinstance(every_n_steps, int) or every_n_steps < 1):
            raise InputError(
                f"diagnostics.every_n_steps is {every_n_steps}; it is a whole number of at least 1, or null for none."
            )
        require_positive(**{"diagnostics.teacher_temperature": teacher_temperature})
        self.every_n_steps = every_n_steps
        self.teacher_temperature = teacher_temperature
        self._step: int | None = None  # the step that is being measured
        self._figures: dict[str, float] = {}
        self._began = self._spent = 0.0

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: QueryListModule, batch: Any, batch_idx: int) -> None:
        """Start the clock and watch the step, if it is one to measure."""
        if self.every_n_steps is None:
            return
        if trainer.global_step % self.every_n_steps or batch_idx % trainer.accumulate_grad_batches:
            return
        if isinstance(pl_module, RetrieverModule):
            pl_module.watch = partial(self._watch, pl_module)
        self._step, self._figures, self._spent = trainer.global_step, {}, 0.0
        self._began = _now(pl_module.device)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: QueryListModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log what was measured. The module's own ``log`` would repeat the figures at every step until the next."""
        if self._step is None:
            return
        seconds = _now(pl_module.device) - self._began - self._spent
        self._figures["tokens_per_second"] = pl_module.encoded_in_step.tokens / seconds
        for logger in trainer.loggers:
            logger.log_metrics({f"diagnostics/{name}": value for name, value in self._figures.items()}, self._step)
        if isinstance(pl_module, RetrieverModule):
            pl_module.watch = None
        self._step = None

    def _watch(self, module: RetrieverModule, batch: EncodedBatch, parts: Mapping[str, Tensor]) -> None:
        began = _now(module.device)
        self._figures = measure(module, batch, parts, self.teacher_temperature)
        self._spent = _now(module.device) - began


def measure(
    module: RetrieverModule, batch: EncodedBatch, parts: Mapping[str, Tensor], teacher_temperature: float
) -> dict[str, float]:
    """Figures of one training step, over the batches of all ranks, which must all take part.

    * ``query_gradient_norm/<part>``, ``passage_gradient_norm/<part>``: norm of the gradient of each part of the
      objective (and of ``loss``) with respect to the embeddings; unweighted, as ``train/<part>`` is. Times its weight
      it is what the part adds to the loss's. Passages have none where they are frozen.
    * ``query_gradient_cosine/<part>-<part>``, ``passage_gradient_cosine/<part>-<part>``: of two of these gradients;
      below 0 the parts pull against each other. Weights do not change it.
    * ``masked_negatives``: :meth:`~retriever.objectives.infonce.InfoNCELoss.masked_share`, where the objective has one.
    * ``duplicate_positives``: share of queries whose positive (the labelled one, else the teacher's first) is another
      query's positive too.
    * ``teacher_entropy``: of the lists, in nats; ``teacher_entropy_share``: of the most that the length allows.
    * ``kendall_tau``, ``top1_agreement``: of student and teacher on the lists.
    * ``query_anisotropy``, ``passage_anisotropy``, ``query_uniformity``, ``passage_uniformity``: of the batch's queries
      and distinct passages.
    * ``alignment``: of queries and their positives.

    Args:
        module: whose objective it is.
        batch: the embedded batch of this rank.
        parts: what the objective made of it, with the graph.
        teacher_temperature: of the entropy.

    Returns:
        Name → value; what is not defined on this batch is left out.
    """
    figures: dict[str, float] = {}
    with torch.no_grad(), torch.autocast(batch.queries.device.type, enabled=False):
        whole = WholeBatch(batch)
        for side, gradients in embedding_gradients(parts, batch, whole).items():
            norms, cosines = norms_and_cosines(gradients)
            figures |= {f"{side}_gradient_norm/{part}": norm for part, norm in norms.items()}
            figures |= {f"{side}_gradient_cosine/{a}-{b}": cosine for (a, b), cosine in cosines.items()}

        positive = torch.where(batch.positive_index >= 0, batch.positive_index, batch.teacher_top1)
        of_queries = _of_queries(module, batch, positive, teacher_temperature)
        means = whole.of_queries(torch.stack([v.float() for v in of_queries.values()], 1)).nanmean(0)
        figures |= dict(zip(of_queries, means.tolist(), strict=True))
        figures["duplicate_positives"] = float(duplicate_share(whole.of_queries(batch.passage_keys[positive])))
        embeddings = {"query": whole.of_queries(batch.queries), "passage": whole.passage_means(batch.passages)}
        for side, rows in embeddings.items():
            figures[f"{side}_anisotropy"] = float(anisotropy(rows))
            figures[f"{side}_uniformity"] = float(uniformity(rows))
    return {name: value for name, value in figures.items() if value == value}  # nan: not defined


def _of_queries(
    module: RetrieverModule, batch: EncodedBatch, positive: Tensor, teacher_temperature: float
) -> dict[str, Tensor]:
    """Name → a value for each of this rank's queries, [Q]; nan where it is not defined."""
    lists = batch.list_scores, batch.teacher_scores, batch.list_mask
    entropy = teacher_entropy(batch.teacher_scores, batch.list_mask, teacher_temperature)
    values = {
        "teacher_entropy": entropy,
        "teacher_entropy_share": entropy / batch.list_mask.sum(1).log(),
        "kendall_tau": kendall_tau_b(*lists),
        "top1_agreement": top1_agreement(*lists),
        "alignment": alignment(batch.queries, batch.passages[positive]),
    }
    contrast = next((part for part in module.modules() if isinstance(part, InfoNCELoss)), None)
    return values if contrast is None else values | {"masked_negatives": contrast.masked_share(batch)}


def _now(device: torch.device) -> float:
    """Seconds on a clock, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
