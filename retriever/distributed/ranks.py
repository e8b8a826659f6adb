"""Sums over ranks, and rows of all ranks with gradient, where ranks may hold different numbers of rows."""

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Value = TypeVar("Value")


def world_size() -> int:
    """Count the processes that train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number among them; 0 without a process group."""
    return dist.get_rank() if world_size() > 1 else 0


def sum_over_ranks(numbers: Tensor) -> Tensor:
    """Add numbers up over all ranks, which must all take part; shape and dtype stay."""
    if world_size() > 1:
        numbers = numbers.clone()
        dist.all_reduce(numbers)
    return numbers


def broadcast(value: Value) -> Value:
    """The first rank's value, of any type that can be pickled, on every rank; all must take part."""
    if world_size() == 1:
        return value
    held: list = [value]
    dist.broadcast_object_list(held)
    return held[0]


def gather_sizes(size: int, device: torch.device) -> list[int]:
    """Gather every rank's ``size``, in rank order."""
    sizes = torch.zeros(world_size(), dtype=torch.long, device=device)
    sizes[rank()] = size
    return sum_over_ranks(sizes).tolist()


def gather_rows(rows: Tensor, sizes: list[int]) -> Tensor:
    """Concatenate all ranks' rows in rank order; a row's gradient flows back to the rank that gave it.

    Args:
        rows: this rank's [n_r, …].
        sizes: every rank's n_r, from :func:`gather_sizes`.

    Returns:
        [Σ n_r, …].
    """
    return rows if len(sizes) == 1 else _GatherRows.apply(rows, sizes)


class _GatherRows(torch.autograd.Function):
    """Gathers padded blocks from all ranks; backward sums the gradient over ranks and keeps this rank's block."""

    @staticmethod
    def forward(ctx, rows: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        block = rows.new_zeros((max(sizes), *rows.shape[1:]))
        block[: len(rows)] = rows
        blocks = [torch.empty_like(block) for _ in sizes]
        dist.all_gather(blocks, block)
        return torch.cat([b[:n] for b, n in zip(blocks, sizes, strict=True)])

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        start = sum(ctx.sizes[: rank()])
        return gradient[start : start + ctx.sizes[rank()]], None
