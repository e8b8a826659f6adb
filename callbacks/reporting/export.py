"""ExportBest: the model that the dev criterion chose, as a folder that sentence-transformers loads."""

import logging
import shutil
from collections.abc import Mapping
from typing import Any

import lightning as L

from callbacks.evaluation.history import History
from callbacks.evaluation.sets import OpenedSet
from callbacks.reliability.best_checkpoint import best_checkpoint_step, load_best_weights
from callbacks.reporting.model_card import CardFacts, Figure, model_card
from callbacks.reporting.statistics import paired_difference
from retriever.query_list_module import QueryListModule

log = logging.getLogger(__name__)


class ExportBest(L.Callback):
    """At the end of training, load the best checkpoint into the module and save its encoder, with a model card.

    Args:
        history: of the evaluation; the model goes to ``model`` in its folder.
        facts: ``name``, ``seed``, ``objective``, ``settings``, ``training`` and ``criterion``, see
            :class:`~callbacks.reporting.model_card.CardFacts`.
    """

    def __init__(self, history: History, facts: Mapping[str, Any]) -> None:
        self.history = history
        self.folder = history.folder
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
        lists, accumulated = trainer.datamodule.lists_of_step, trainer.accumulate_grad_batches
        chosen = {
            "training": {"lists of a step": lists} | self.facts["training"],
            "settings": self.facts["settings"] | {"learning_rate": module.peak_learning_rate(lists * accumulated)},
        }
        facts = CardFacts(
            **(self.facts | chosen),
            data=trainer.datamodule.report,
            encoder=module.encoder,
            frozen_passages=not module.train_passage_encoder,
            step=step,
            figures=[self._figure(opened, step) for opened in self.history.sets],
            passage_encoder=trainer.datamodule.passage_encoder,
        )
        return model_card(facts)

    def _figure(self, opened: OpenedSet, step: int) -> Figure:
        name, spec = opened.data.name, opened.spec
        base, model = self.history.base[name], self.history.steps[step][name]
        difference = paired_difference(self.history.per_query(name, step), self.history.per_query(name, 0))
        return Figure(name, spec.path, spec.split, spec.chooses, base, model, difference)
