"""StepSeeds: what a step draws at random depends on the seed, the step and the rank, and on nothing else."""

from typing import Any

import lightning as L
import numpy as np
import torch


class StepSeeds(L.Callback):
    """Seed torch before every training batch, so that a resumed run draws the dropout that an unbroken one would.

    Args:
        seed: the run's seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed from (seed, epoch, batch, rank)."""
        key = (self.seed, trainer.current_epoch, batch_idx, trainer.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))
