"""The trainer's settings: what Lightning would refuse, and what would train or validate nothing."""

import json
import math
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from retriever.errors import InputError
from retriever.optimizer import make_optimizer, make_scheduler

# settings that a run makes itself → what to set in their place
_SET_BY_RUN = {
    "callbacks": "say +callbacks.NAME._target_=…",
    "logger": "choose it by logger=csv or logger=wandb",
    "enable_checkpointing": "say save_checkpoints=false",
    "enable_progress_bar": "a terminal gets a bar, a file none",
    "default_root_dir": "say hydra.run.dir=FOLDER",
}
# settings that make another thing of a run → what to set in their place
_NOT_IN_A_RUN = {
    "overfit_batches": "to train on few lists, give a file in data.train a draw: {path: …, corpus: …, draw: 16}",
    "fast_dev_run": "to try a run, say trainer.max_steps=2",
    "barebones": "a run needs its logger, checkpoints and callbacks",
    "use_distributed_sampler": "the data module cuts the batches for the ranks",
    "limit_test_batches": "evaluation.datasets are evaluated whole; a sample is set there",
    "limit_predict_batches": "a run predicts nothing",
}
_PRECISIONS = ("32-true", "32", 32, "bf16-mixed", "bf16", "16-mixed", "16", 16, None)
# null → what it then is
_SHARES = {"limit_train_batches": "all", "limit_val_batches": "all", "val_check_interval": "each epoch"}
_DURATION = re.compile(r"\d+:\d\d:\d\d:\d\d")
_MADE = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def check_trainer(trainer: DictConfig, patience: int | None, resumable: bool = True) -> None:
    """Refuse what is wrong in ``trainer``, before anything is loaded.

    Args:
        trainer: the settings.
        patience: ``early_stopping.patience``.
        resumable: whether checkpoints are written or read.

    Raises:
        InputError: with the setting, its value and what to do.
    """
    settings = OmegaConf.to_container(trainer, resolve=True)
    _check_counts(settings, patience)
    if resumable:
        _check_strategy(settings.get("strategy"))
    for name, instead in _SET_BY_RUN.items():
        if name in settings:
            raise InputError(f"trainer.{name} is set by the run itself: {instead}.")
    for name, instead in _NOT_IN_A_RUN.items():
        if settings.get(name):
            raise InputError(f"trainer.{name} is {_as_typed(settings[name])}, which is not for a run: {instead}.")
    for name, null in _SHARES.items():
        _check_share(name, settings.get(name), null)
    for name in ("val_check_interval", "max_time"):
        _check_duration(name, settings.get(name))
    if settings.get("max_time") is not None and (settings.get("check_val_every_n_epoch") or 1) > 1:
        raise InputError(
            f"trainer.check_val_every_n_epoch is {settings['check_val_every_n_epoch']}, and trainer.max_time may end "
            "the run in an epoch that is not validated: its last step would be lost. Validate every epoch."
        )
    if settings.get("precision") not in _PRECISIONS:
        raise InputError(
            f"trainer.precision is {settings['precision']!r}; weights, scores and losses are float32 here: take "
            "32-true, bf16-mixed, 16-mixed, or auto."
        )
    strategy = str(settings.get("strategy"))
    if any(way in strategy for way in ("spawn", "fork", "notebook")):
        raise InputError(
            f"trainer.strategy is {strategy!r}, whose ranks would keep the results to themselves. Take ddp, which "
            "starts the command once for each rank."
        )
    if settings.get("accelerator") in ("gpu", "cuda") and not torch.cuda.is_available():
        raise InputError(
            f"trainer.accelerator is {settings['accelerator']!r}, and torch finds no GPU on this machine. "
            "trainer=default takes what there is."
        )
    _build(trainer, settings)


def _check_counts(settings: dict[str, Any], patience: int | None) -> None:
    for name in ("max_epochs", "max_steps"):
        value = settings.get(name)
        if value is not None and value < 1 and value != -1:
            raise InputError(f"trainer.{name} is {value}; it must be at least 1, or -1 for no limit.")
    limits = [settings.get("max_steps") not in (None, -1), settings.get("max_time") is not None, patience is not None]
    if settings.get("max_epochs") == -1 and not any(limits):
        raise InputError(
            "trainer.max_epochs and trainer.max_steps are both without a limit, and nothing else stops the run: it "
            "would never end. Set one of them, trainer.max_time or early_stopping.patience."
        )
    for name in ("accumulate_grad_batches", "num_nodes", "check_val_every_n_epoch", "log_every_n_steps"):
        if settings.get(name) is not None and settings[name] < 1:
            raise InputError(f"trainer.{name} is {settings[name]}; it must be at least 1.")
    clip = settings.get("gradient_clip_val")
    if clip is not None and clip < 0:
        raise InputError(f"trainer.gradient_clip_val is {clip}; it must not be negative (0 or null: no clipping).")


def _check_strategy(strategy: Any) -> None:
    """Refuse checkpoints that are folders, a file for each rank: they could be neither checked nor resumed."""
    if not isinstance(strategy, dict):
        return
    name, wrong = str(strategy.get("_target_")).rpartition(".")[2], None
    if name == "ModelParallelStrategy" and strategy.get("save_distributed_checkpoint", True):
        wrong = "save_distributed_checkpoint is true", "set it to false, as trainer=fsdp does"
    elif name == "FSDPStrategy" and strategy.get("state_dict_type") == "sharded":
        wrong = "state_dict_type is 'sharded'", "set it to full, or take trainer=fsdp"
    if wrong:
        raise InputError(f"trainer.strategy.{wrong[0]}; only whole checkpoints can be resumed: {wrong[1]}.")


def _check_share(name: str, value: Any, null: str) -> None:
    """A number of batches or a share of them; Lightning takes 0 for none at all, or divides by it."""
    right = 0 < value <= 1 if isinstance(value, float) else not isinstance(value, int) or value >= 1
    if not right:
        raise InputError(
            f"trainer.{name} is {value}; it must be a whole number of batches, at least 1, or a share of them above 0 "
            f"and at most 1.0, or null ({null})."
        )


def _check_duration(name: str, value: Any) -> None:
    wrong = value is not None and name == "max_time"
    if isinstance(value, str):
        wrong = not _DURATION.fullmatch(value) or not value.strip("0:")
    elif isinstance(value, dict):
        try:
            wrong = timedelta(**value) <= timedelta()
        except TypeError:
            wrong = True
    if wrong:
        raise InputError(
            f"trainer.{name} is {value!r}; a time is written days:hours:minutes:seconds, as in '00:08:30:00', or as a "
            "mapping, {hours: 8, minutes: 30}. Quote it on the command line: \"'00:08:30:00'\"."
        )


def _build(trainer: DictConfig, settings: dict[str, Any]) -> None:
    """Have Lightning look at the settings."""
    try:
        instantiate(trainer, **_MADE, callbacks=[])
    except Exception as error:
        name = _culprit(settings)
        raise _refusal(error, settings, [name] if name else []) from None


def _culprit(settings: dict[str, Any]) -> str | None:
    """The setting without which Lightning has nothing against the others."""
    for name in (name for name in settings if not name.startswith("_")):
        others = OmegaConf.create({k: v for k, v in settings.items() if k != name})
        with suppress(Exception):
            instantiate(others, **_MADE, callbacks=[])
            return name
    return None


def _as_typed(value: Any) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


def _refusal(error: BaseException, settings: dict[str, Any], names: list[str]) -> InputError:
    """What Lightning says, behind the settings that it is about."""
    while error.__cause__ is not None:  # Hydra wraps what a constructor raises
        error = error.__cause__
    said = " ".join(str(error).split()).rstrip(".")
    about = ", ".join(f"trainer.{name} is {_as_typed(settings.get(name))}" for name in names)
    return InputError(f"{about or 'The settings of trainer do not fit'}, which Lightning refuses: {said}.")


@contextmanager
def lightning_explained(trainer: DictConfig) -> Iterator[None]:
    """Make a sentence of what Lightning refuses while it validates and trains.

    Raises:
        InputError: with the settings of ``trainer`` that Lightning names.
    """
    wrong = None
    try:
        yield
    except (MisconfigurationException, ValueError) as error:
        if isinstance(error, InputError) or not _is_lightnings(error):
            raise
        settings = OmegaConf.to_container(trainer, resolve=True)
        words = set(re.findall(r"\w+", str(error)))
        wrong = _refusal(error, settings, [name for name in settings if name in words])
    if wrong is not None:  # outside of the except block, or the error would become its context
        raise wrong


def _is_lightnings(error: BaseException) -> bool:
    """Whether Lightning itself raised it, and no code that it called."""
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    return isinstance(error, MisconfigurationException) or Path(L.__file__).parent in Path(raised_in).parents


def check_optimizer(config: DictConfig) -> None:
    """Have optimiser and scheduler refuse wrong settings, on one weight.

    Raises:
        InputError: what they say.
    """
    make, schedule = (instantiate(config[part], _partial_=True) for part in ("optimizer", "scheduler"))
    rates = config.module.get("learning_rate") or 1e-4, config.module.get("weight_decay", 0.0)
    optimizer = make_optimizer(make, [torch.nn.Parameter(torch.zeros(1, 1))], *rates, fused=False)
    make_scheduler(schedule, optimizer, 100, 10)


def check_batches(trainer: L.Trainer, train: int, dev: int) -> None:
    """Refuse limits and intervals that the number of batches makes impossible, before anything is encoded.

    Args:
        trainer: that has not begun.
        train: batches of a training epoch, without limits.
        dev: batches of a validation, without limits.

    Raises:
        InputError: a share of the batches that is less than one, or an interval that is longer than an epoch.
    """
    batches = _taken("limit_train_batches", trainer.limit_train_batches, train)
    _taken("limit_val_batches", trainer.limit_val_batches, dev)
    interval = getattr(trainer, "val_check_interval", None)  # there is none where it is a time
    if trainer.check_val_every_n_epoch is not None and isinstance(interval, int) and interval > batches:
        raise InputError(
            f"trainer.val_check_interval is {interval}, and an epoch has {batches} batches: take at most {batches}, a "
            "share of the epoch such as 0.5, or trainer.check_val_every_n_epoch=null, which counts on over epochs."
        )


def _taken(name: str, limit: int | float, batches: int) -> int:
    """How many of an epoch's batches are taken."""
    if isinstance(limit, int):
        return min(limit, batches)
    taken = int(batches * limit)
    if not taken:
        raise InputError(
            f"trainer.{name} is {limit}, less than one of {batches} batches: take at least "
            f"{math.ceil(100 / batches) / 100}, or a whole number of batches."
        )
    return taken
