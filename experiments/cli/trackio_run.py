"""The trackio run of an experiment: local files, which need no account and no server."""

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from callbacks.reporting.trackio_logger import TrackioLogger
from datamodules.storage.files import write_text
from experiments.cli.redact import redact
from retriever.errors import InputError, installed_by


@contextlib.contextmanager
def trackio_logger(config: DictConfig, folder: Path, arm: str) -> Iterator[TrackioLogger]:
    """Log to a trackio run in the block, on the first rank.

    Its id is kept in ``folder/trackio_id.txt``: a resumed run takes the place of its earlier part.

    Raises:
        InputError: trackio is not installed, or keeps its files elsewhere in this process.
    """
    trackio = open_trackio(Path(config.logger.trackio.folder))
    project, kept = config.logger.trackio.project, folder / "trackio_id.txt"
    if config.resume is not None and kept.is_file():
        before = kept.read_text(encoding="utf-8").strip()
        for run in trackio.Api().runs(project):
            if run.id == before:
                run.delete()
    with contextlib.redirect_stdout(io.StringIO()):  # how to look at it, which README says
        run = trackio.init(
            project=project,
            name=f"{arm}-seed{config.seed}",
            group=config.group or folder.parent.name,
            config=redact(OmegaConf.to_container(config, resolve=True)) | {"job_type": arm},
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
    write_text(kept, f"{run.id}\n")
    try:
        yield TrackioLogger(run)
    finally:
        with contextlib.redirect_stdout(io.StringIO()):
            run.finish()


def open_trackio(folder: Path) -> Any:
    """Import trackio, to keep its files in a folder; it looks where to once, when it is imported.

    Raises:
        InputError: it is not installed, or was imported for another folder.
    """
    os.environ["TRACKIO_DIR"] = str(folder.absolute())
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    with installed_by("trackio", "logger=trackio"):
        import trackio
    if Path(trackio.utils.TRACKIO_DIR) != folder.absolute():
        raise InputError(
            f"logger.trackio.folder is {folder}, and this process keeps trackio's files in "
            f"{trackio.utils.TRACKIO_DIR} already. Give all jobs of a sweep one folder."
        )
    return trackio
