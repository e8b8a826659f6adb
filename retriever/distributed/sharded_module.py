"""When an encoder's weights are whole and when they are shared out, over a training under FSDP (``trainer=fsdp``)."""

import copy
from typing import Any

import lightning as L
import torch

from retriever.distributed.sharding import gather_weights, release_weights, shard, whole_weights
from retriever.errors import InputError


class ShardedModule(L.LightningModule):
    """A module whose ``encoder`` is shared out over the ranks under FSDP; under anything else its hooks do nothing.

    Weights must be whole wherever texts are encoded, because ranks encode different numbers of texts. They are shares
    where gradients are clipped, the optimiser steps and a checkpoint is written.
    """

    encoder: torch.nn.Module

    def __init__(self) -> None:
        super().__init__()
        self._whole_encoder: list[torch.nn.Module] | None = None

    def configure_model(self) -> None:
        """Share the encoder out over the ranks.

        Raises:
            InputError: a temperature is learned, and FSDP shards no scalars; or lower layers are frozen.
        """
        if self.device_mesh is None:
            return
        if self._whole_encoder is not None:
            release_weights(self.encoder)  # the optimiser is made next, and a validation before may have gathered them
            return
        if getattr(self.encoder, "split", None) is not None:
            raise InputError("encoder.trainable_layers: FSDP shards whole layers alone. Train them under DDP, or all.")
        if any(p.requires_grad and p.ndim == 0 for p in self.parameters()):
            raise InputError("module.learnable_temperature: FSDP cannot shard a scalar. Fix it, or train under DDP.")
        self.encoder.cpu()  # evaluation may have moved it; the copy waits there, and what is sharded moves back
        # a list, so that it is no part of this module
        self._whole_encoder = [copy.deepcopy(self.encoder)] if self.trainer.is_global_zero else []
        shard(self.encoder, self.trainer.strategy.root_device)

    def on_validation_start(self) -> None:
        """Gather whole weights."""
        gather_weights(self.encoder)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Gather whole weights; saving a checkpoint has shared them out."""
        gather_weights(self.encoder)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Go back to the shares, to clip and to step."""
        release_weights(self.encoder)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Gather whole weights for what callbacks encode."""
        gather_weights(self.encoder)

    def end_sharding(self) -> None:
        """Give the first rank a whole encoder on the CPU, with the weights as they are; training is over.

        All ranks must take part.
        """
        if self._whole_encoder is None:
            return
        weights = whole_weights(self.encoder)
        for encoder in self._whole_encoder:
            encoder.load_state_dict(weights)
            self.encoder = encoder
