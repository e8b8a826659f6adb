"""Makes the optimiser and its schedule: any of torch's classes, with the facts of the run that it takes."""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from retriever.errors import InputError

MakeOptimizer = Callable[..., Optimizer]
MakeScheduler = Callable[..., LRScheduler]


def make_optimizer(
    make: MakeOptimizer,
    parameters: Sequence[torch.nn.Parameter],
    learning_rate: float,
    weight_decay: float,
    fused: bool,
) -> Optimizer:
    """Make an optimiser; scalars (learned temperatures) get no weight decay.

    Args:
        make: a class of ``torch.optim``, or one with some of its arguments given.
        parameters: what is trained.
        learning_rate: the peak.
        weight_decay: of all parameters but scalars.
        fused: whether AdamW makes one pass over the weights, unless ``make`` says so itself.

    Raises:
        InputError: the class refuses its arguments, takes no weight decay, or is given a learning rate itself.
    """
    takes, given = _arguments(make)
    for name, setting in {"lr": "learning_rate", "weight_decay": "weight_decay"}.items():
        if name in given:
            raise InputError(f"optimizer.{name} is set: say module.{setting}={given[name]} in its place.")
    options: dict[str, Any] = {"lr": learning_rate}
    groups: list[Any] = list(parameters)
    if "weight_decay" in takes:
        options["weight_decay"] = weight_decay
        scalars = [p for p in parameters if p.ndim == 0]
        others = [p for p in parameters if p.ndim > 0]
        groups = [{"params": others}, {"params": scalars, "weight_decay": 0.0}] if scalars else others
    elif weight_decay:
        raise InputError(f"optimizer: {_name(make)} knows no weight decay; say module.weight_decay=0.")
    if _unwrapped(make) is AdamW and "fused" not in given:
        options["fused"] = fused
    try:
        return make(groups, **options)
    except (TypeError, ValueError) as error:
        raise InputError(f"optimizer: {_name(make)} refuses its settings: {str(error).rstrip('.')}.") from error


def make_scheduler(make: MakeScheduler, optimizer: Optimizer, total_steps: float, steps_per_epoch: int) -> LRScheduler:
    """Make a schedule that is stepped after each optimiser step.

    Args:
        make: a class of ``torch.optim.lr_scheduler`` or a function like it, or one with some of its arguments given.
            Of its arguments ``total_steps``, ``T_max`` and ``steps_per_epoch``, those that are not given are the run's.
        optimizer: whose learning rates it sets.
        total_steps: optimiser steps of the run; may be infinite.
        steps_per_epoch: optimiser steps of an epoch.

    Raises:
        InputError: it refuses its arguments, or looks at a metric.
    """
    takes, given = _arguments(make)
    if _unwrapped(make) is ReduceLROnPlateau:
        raise InputError("scheduler: ReduceLROnPlateau follows a metric, and none is there at each step; take another.")
    steps = {"total_steps": total_steps, "T_max": total_steps, "steps_per_epoch": steps_per_epoch}
    try:
        return make(optimizer, **{name: value for name, value in steps.items() if name in takes - given.keys()})
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"scheduler: {_name(make)} refuses its settings: {str(error).rstrip('.')}.") from error


def _unwrapped(make: Callable[..., Any]) -> Callable[..., Any]:
    return make.func if isinstance(make, partial) else make


def _name(make: Callable[..., Any]) -> str:
    return _unwrapped(make).__name__


def _arguments(make: Callable[..., Any]) -> tuple[set[str], dict[str, Any]]:
    """Return the names of all arguments, and the arguments that are given."""
    return set(inspect.signature(_unwrapped(make)).parameters), make.keywords if isinstance(make, partial) else {}
