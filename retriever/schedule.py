"""The learning rate over the steps: linear warm-up, then a straight line down."""

from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from retriever.errors import InputError, choose

DECAYS = ("to_floor", "to_zero")


def default_warmup(steps_per_epoch: int, total_steps: int) -> int:
    """Compute the paper's warm-up steps, max(10, half an epoch), but at most a quarter of a short run."""
    return max(1, min(max(10, steps_per_epoch // 2), total_steps // 4))


def learning_rate_factor(
    step: int, warmup_steps: int, total_steps: float, floor: float, decay: str = "to_floor"
) -> float:
    """Compute the factor of the base learning rate.

    Args:
        step: optimiser steps done before this one; the first step has 0 and gets 1/warmup_steps, not 0.
        warmup_steps: steps until the full rate, at least 1.
        total_steps: steps of the run; infinite keeps the full rate.
        floor: the lowest factor after the warm-up, in [0, 1].
        decay: where the line after the warm-up would end at the last step: ``to_floor`` reaches the floor there,
            ``to_zero`` goes to 0 and is held at the floor from where it meets it, as the paper does.

    Returns:
        a factor in (0, 1], or ``floor`` at the end.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps + 1) / max(1, total_steps - warmup_steps))
    end = floor if decay == "to_floor" else 0.0
    return max(floor, 1 - (1 - end) * progress)


def linear_with_warmup(
    optimizer: Optimizer,
    total_steps: float,
    steps_per_epoch: int,
    warmup_steps: int | None = None,
    decay: str = "to_floor",
    final_learning_rate: float = 0.1,
) -> LambdaLR:
    """Make the schedule that follows :func:`learning_rate_factor`.

    Args:
        optimizer: whose learning rates it sets.
        total_steps: optimiser steps of the run; infinite keeps the full rate.
        steps_per_epoch: optimiser steps of an epoch.
        warmup_steps: optimiser steps of linear warm-up; None takes :func:`default_warmup`.
        decay: ``to_floor`` or ``to_zero``.
        final_learning_rate: the lowest share of the peak after the warm-up, in [0, 1].

    Raises:
        InputError: a value that is out of range.
    """
    if not 0 <= final_learning_rate <= 1:
        raise InputError(f"scheduler.final_learning_rate is {final_learning_rate}; it must be in [0, 1].")
    if warmup_steps is not None and warmup_steps < 1:
        message = f"scheduler.warmup_steps is {warmup_steps}; it must be at least 1, or null for the paper's rule."
        raise InputError(message)
    factor = partial(
        learning_rate_factor,
        warmup_steps=warmup_steps or default_warmup(steps_per_epoch, int(min(total_steps, 2**62))),
        total_steps=total_steps,
        floor=final_learning_rate,
        decay=choose("scheduler.decay", decay, DECAYS),
    )
    return LambdaLR(optimizer, factor)
