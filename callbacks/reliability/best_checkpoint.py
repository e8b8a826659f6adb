"""The checkpoint that the dev criterion chose: keeping it, its step, and its weights."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from retriever.distributed.sharding import gather_weights, load_whole_weights, release_weights

log = logging.getLogger(__name__)


class BestCheckpoint(ModelCheckpoint):
    """Keeps the checkpoint with the best criterion; the base model, validated before training, is the first one.

    So a run that never beats its base model keeps it, as the paper does. Arguments are those of ``ModelCheckpoint``.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._of_base: Tensor | None = None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember the base model's criterion; save what is better."""
        if trainer.state.fn == "validate":
            self._of_base = trainer.callback_metrics.get(str(self.monitor))
        super().on_validation_end(trainer, pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the base model."""
        super().on_train_start(trainer, pl_module)
        if self._of_base is not None and not trainer.global_step and not self.best_model_path:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer) | {str(self.monitor): self._of_base})

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say where the base model is kept."""
        super().on_train_end(trainer, pl_module)
        if trainer.global_step and not best_checkpoint_step(trainer):
            log.warning("By %s no step was better than the base model, which is kept.", self.monitor)

    @property
    def state_key(self) -> str:
        """That of ``ModelCheckpoint``, under which earlier versions kept the state."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)


def best_checkpoint_step(trainer: L.Trainer) -> int:
    """The optimiser step of the checkpoint that the dev criterion chose; the last step where there is none."""
    path = _best_path(trainer)
    return _step_of(path) if path else trainer.global_step


def load_best_weights(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Put the weights of that checkpoint into the module; without one, they stay as they are."""
    path = _best_path(trainer)
    if path:
        load_whole_weights(module, _read(path)["state_dict"])


@contextmanager
def best_weights(trainer: L.Trainer, module: L.LightningModule) -> Iterator[None]:
    """Have the module hold the weights of that checkpoint for a while; then those of the last step again."""
    release_weights(module)
    last = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    load_best_weights(trainer, module)
    try:
        yield
    finally:
        release_weights(module)
        module.load_state_dict(last)
        gather_weights(module)


def _best_path(trainer: L.Trainer) -> str:
    return getattr(trainer.checkpoint_callback, "best_model_path", "")


@cache  # several callbacks ask; a file's name says its step, so it is the same whenever it was written
def _step_of(path: str) -> int:
    return _read(path)["global_step"]


def _read(path: str) -> dict[str, Any]:
    """The checkpoint, memory-mapped: the optimiser's part is never read."""
    return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
