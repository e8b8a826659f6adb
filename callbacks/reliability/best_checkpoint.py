"""The checkpoint that the dev criterion chose: its step, and its weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch

from retriever.distributed.sharding import gather_weights, load_whole_weights, release_weights


def best_checkpoint_step(trainer: L.Trainer) -> int:
    """The optimiser step of the checkpoint that the dev criterion chose; the last step where there is none."""
    path = getattr(trainer.checkpoint_callback, "best_model_path", "")
    return _read(path)["global_step"] if path else trainer.global_step


def load_best_weights(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Put the weights of that checkpoint into the module; without one, they stay as they are."""
    path = getattr(trainer.checkpoint_callback, "best_model_path", "")
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


def _read(path: str) -> dict[str, Any]:
    """The checkpoint, memory-mapped: the optimiser's part is never read."""
    return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
