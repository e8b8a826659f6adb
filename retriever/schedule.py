"""The learning rate over the steps: linear warm-up, then a straight line down."""

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
        floor: the lowest factor behind the warm-up, in [0, 1].
        decay: where the line behind the warm-up would end at the last step: ``to_floor`` reaches the floor there,
            ``to_zero`` goes to 0 and is held at the floor from where it meets it, as the paper does.

    Returns:
        a factor in (0, 1], or ``floor`` at the end.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps + 1) / max(1, total_steps - warmup_steps))
    end = floor if decay == "to_floor" else 0.0
    return max(floor, 1 - (1 - end) * progress)
