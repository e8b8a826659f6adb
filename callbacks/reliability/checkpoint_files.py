"""The checkpoints that a run can go on from."""

from pathlib import Path

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


def has_checkpoint(folder: str | Path) -> bool:
    """Whether a run folder has something to resume from."""
    return any((Path(folder) / "checkpoints" / name).is_file() for name in (LAST, PREVIOUS))
