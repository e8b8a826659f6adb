"""AtomicCheckpoints: a checkpoint file is whole or not there, whenever the process is killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from datamodules.files import atomic_path


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes beside the checkpoint's name and renames.

    Lightning's own plugin writes to the system's temporary folder. From there it must copy to another file system, and
    a kill in the middle leaves a torn ``last.ckpt``: nothing to resume from. It also holds the whole file in memory.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save, replacing what is there."""
        with atomic_path(path) as temporary:
            torch.save(checkpoint, temporary)
