"""Computes a function of many queries block by block, so that only one block's matrices are in memory."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# numbers in the largest matrix of a block: 16 MiB in float32
BLOCK_NUMBERS = 2**22


def in_query_blocks(function: Callable[..., Tensor], *rows: Tensor, numbers_per_query: int) -> Tensor:
    """Call a function on blocks of queries and concatenate its results.

    Where gradients are on and there is more than one block, each is called under activation checkpointing: what it
    computed on the way is computed again in the backward pass, block by block, and never held for all queries.

    Args:
        function: rows of some queries → a row for each; what it returns for a query must not depend on the others.
        rows: tensors with a row for each of Q ≥ 1 queries.
        numbers_per_query: numbers that the function's largest matrix holds for each query.

    Returns:
        [Q, …].
    """
    size = max(1, BLOCK_NUMBERS // max(1, numbers_per_query))
    blocks = list(zip(*(r.split(size) for r in rows), strict=True))
    if len(blocks) == 1 or not torch.is_grad_enabled():
        return torch.cat([function(*block) for block in blocks])
    return torch.cat([checkpoint(function, *block, use_reentrant=False, preserve_rng_state=False) for block in blocks])
