"""The checkpoint that the dev criterion chose: its step, and its weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import lightning as L
import torch


def best_checkpoint_step(trainer: L.Trainer) -> int:
    """The optimiser step of the checkpoint that the dev criterion chose; the last step where there is none."""
    path = getattr(trainer.checkpoint_callback, "best_model_path", "")
    return torch.load(path, map_location="cpu", weights_only=True)["global_step"] if path else trainer.global_step


def load_best_weights(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Put the weights of that checkpoint into the module; without one, they stay as they are."""
    path = getattr(trainer.checkpoint_callback, "best_model_path", "")
    if path:
        module.load_state_dict(torch.load(path, map_location=module.device, weights_only=True)["state_dict"])


@contextmanager
def best_weights(trainer: L.Trainer, module: L.LightningModule) -> Iterator[None]:
    """Have the module hold the weights of that checkpoint for a while; then those of the last step again."""
    last = {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}
    load_best_weights(trainer, module)
    try:
        yield
    finally:
        module.load_state_dict(last)
