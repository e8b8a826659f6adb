"""Imports that take seconds, behind the checks of a command."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Leave out what libraries log below a warning while they are imported in the block."""
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def quiet_training() -> None:
    """Leave out what libraries say of models that are loaded and of steps, and what does not concern a user here."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")  # the data module's state is
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")  # inside Lightning
    warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")  # the run folder
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
