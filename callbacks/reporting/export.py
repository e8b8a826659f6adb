"""ExportBest: the model that the dev criterion chose, as a folder that sentence-transformers loads."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L

from callbacks.evaluation.beir_evaluation import BeirEvaluation, read_per_query
from callbacks.reliability.best_checkpoint import best_checkpoint_step, load_best_weights
from callbacks.reporting.model_card import CardFacts, Figure, model_card
from callbacks.reporting.statistics import paired_difference
from datamodules.specs import read_evaluation_specs
from retriever.module import QueryListModule

log = logging.getLogger(__name__)


class ExportBest(L.Callback):
    """At the end of training, load the best checkpoint into the module and save its encoder, with a model card.

    Args:
        folder: the run folder, where the per-query values are; the model goes to ``model`` in it.
        facts: ``name``, ``seed``, ``objective``, ``settings``, ``training`` and ``criterion``, see
            :class:`~callbacks.reporting.model_card.CardFacts`.
    """

    def __init__(self, folder: str | Path, facts: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.facts = dict(facts)

    def on_train_end(self, trainer: L.Trainer, pl_module: QueryListModule) -> None:
        """Export, on the first rank."""
        load_best_weights(trainer, pl_module)
        pl_module.end_sharding()
        if not trainer.is_global_zero:
            return
        target, temporary = self.folder / "model", self.folder / ".model.tmp"
        for torn in (temporary, self.folder / ".old_model.tmp"):
            shutil.rmtree(torn, ignore_errors=True)
        pl_module.encoder.save(temporary)
        (temporary / "README.md").write_text(self._card(trainer, pl_module), encoding="utf-8")
        if target.exists():  # never half a model under that name
            target.rename(self.folder / ".old_model.tmp")
        temporary.rename(target)
        shutil.rmtree(self.folder / ".old_model.tmp", ignore_errors=True)
        log.info("Exported the model of step %s to %s", best_checkpoint_step(trainer), target)

    def _card(self, trainer: L.Trainer, module: QueryListModule) -> str:
        step = best_checkpoint_step(trainer)
        evaluation = next(c for c in trainer.callbacks if isinstance(c, BeirEvaluation))
        facts = CardFacts(
            **self.facts,
            data=trainer.datamodule.report,
            encoder=module.encoder,
            frozen_passages=not module.train_passage_encoder,
            step=step,
            figures=self._figures(evaluation, step),
        )
        return model_card(facts)

    def _figures(self, evaluation: BeirEvaluation, step: int) -> list[Figure]:
        at_step = {entry["step"]: entry["metrics"] for entry in evaluation.history}[step]
        figures = []
        for spec, data in zip(read_evaluation_specs(evaluation.specs), evaluation.data, strict=True):
            folder = self.folder / "per_query" / data.name
            base, model = (read_per_query(folder / f"step-{number:06d}.json") for number in (0, step))
            figures.append(
                Figure(
                    name=data.name,
                    path=spec.path,
                    split=spec.split,
                    dev=spec.chooses,
                    base=evaluation.base[data.name],
                    model=at_step[data.name],
                    difference=paired_difference(model, base),
                )
            )
        return figures
