"""AtomicCheckpoints: a checkpoint file is whole or not there, whenever the process is killed; and the one before it."""

import logging
import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from callbacks.reliability.checkpoint_files import LAST, PREVIOUS, has_checkpoint
from datamodules.storage.files import atomic_path
from retriever.errors import InputError

log = logging.getLogger(__name__)


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes beside the checkpoint's name and renames; keeps the ``last.ckpt`` before this one as ``previous.ckpt``.

    A disk may damage a file that was whole, so there are two to resume from. Each of them names the best checkpoint of
    its time, which is kept with it: so a folder holds these two, and at most two of the best (three for a moment).

    Lightning's own plugin writes to the system's temporary folder. From there it must copy to another file system, and
    a kill in the middle leaves an incomplete ``last.ckpt``: nothing to resume from. It also holds the whole file in
    memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self._best_of_last: set[str] | None = None  # None: this process knows of no last.ckpt

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save, replacing what is there."""
        path = Path(path)
        with atomic_path(path) as temporary:
            torch.save(checkpoint, temporary)
            if path.name == LAST and path.is_file():
                _keep_as_previous(path)
        if path.name == LAST:
            self._remove_superseded(path.parent, _best(checkpoint))

    def load_checkpoint(self, path: str | Path, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Load, and know what the checkpoint that is resumed from names."""
        checkpoint = super().load_checkpoint(path, *arguments, **options)
        if Path(path).name in (LAST, PREVIOUS):
            self._best_of_last = _best(checkpoint)
        return checkpoint

    def remove_checkpoint(self, path: str | Path) -> None:
        """Keep it for now: the checkpoints to resume from may name it. It goes when they no longer do."""

    def _remove_superseded(self, folder: Path, best: set[str]) -> None:
        if self._best_of_last is not None:
            _remove_best_but(best | self._best_of_last, folder)
        self._best_of_last = best


def _remove_best_but(named: set[str], folder: Path) -> None:
    """Remove the best checkpoints that are not named."""
    for path in folder.glob("step-*.ckpt"):
        if path.name not in named:
            path.unlink()


def _keep_as_previous(path: Path) -> None:
    """Give a file a second name; it keeps its own, so that there is a ``last.ckpt`` at every moment."""
    with atomic_path(path.with_name(PREVIOUS)) as temporary:
        try:
            os.link(path, temporary)
        except OSError:  # a file system without second names
            shutil.copyfile(path, temporary)


def remove_spare_checkpoints(folder: str | Path) -> None:
    """Remove what a finished run needs no more: ``previous.ckpt``, and best checkpoints that ``last.ckpt`` names not.

    Nothing is removed where ``last.ckpt`` is not whole.
    """
    last, previous = (Path(folder) / "checkpoints" / name for name in (LAST, PREVIOUS))
    if not (previous.is_file() and _is_whole(last)):
        return
    named = _best(torch.load(last, "cpu", mmap=True, weights_only=True))
    _remove_best_but(named, last.parent)
    previous.unlink()


def find_checkpoint(folder: str | Path) -> Path:
    """The checkpoint to resume a run from: the last one that is whole, with the best one that it names. It says which.

    All of it is read, which takes minutes for a large model: one process does it for all.

    Raises:
        InputError: there is none.
    """
    checkpoints = Path(folder) / "checkpoints"
    if not has_checkpoint(folder):
        raise InputError(
            f"resume: {checkpoints / LAST}: no such checkpoint. Name the folder of a run that was cut off."
        )
    damaged: list[str] = []
    for path in (checkpoints / LAST, checkpoints / PREVIOUS):
        if not path.is_file():
            damaged.append(f"{path} is missing")
            continue
        found = _read_whole(path)
        if isinstance(found, str):
            damaged.append(found)
            continue
        place = f"{path} (epoch {found['epoch']}, step {found['global_step']})"
        if damaged:
            log.warning("%s; going on from the checkpoint before it, %s", damaged[0], place)
        else:
            log.info("Going on from %s", place)
        return path
    raise InputError(
        f"resume: no whole checkpoint is left: {'; '.join(damaged)}. Put a copy back, or start the run anew in another "
        "folder."
    )


def _read_whole(path: Path) -> dict[str, Any] | str:
    """A checkpoint, mapped; or, in words, what is wrong with it, or with the best one that it names."""
    if not _is_whole(path):
        return f"{path} is incomplete"
    checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    for name in sorted(_best(checkpoint)):
        if not _is_whole(path.with_name(name)):
            return f"{path.with_name(name)}, the best checkpoint that {path.name} names, is incomplete or missing"
    return checkpoint


def _is_whole(path: Path) -> bool:
    """Whether every part of the archive has the checksum that was written with it; torch.load looks at none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, ValueError):
        return False


def _best(checkpoint: Mapping[str, Any]) -> set[str]:
    """Names of the files that a checkpoint names as the best."""
    states = (state for state in checkpoint.get("callbacks", {}).values() if isinstance(state, dict))
    paths = {Path(state["best_model_path"]).name for state in states if state.get("best_model_path")}
    return paths - {LAST}
