"""Pools token embeddings into one embedding per text."""

import torch
from torch import Tensor


def pool(hidden: Tensor, attention_mask: Tensor, pooling: str) -> Tensor:
    """Pool token embeddings; padding may be on either side.

    Args:
        hidden: token embeddings [n, L, D], floating point.
        attention_mask: [n, L], 1 for real tokens.
        pooling: ``cls`` (first real token), ``mean`` (of the real tokens) or ``last`` (last real token).

    Returns:
        float32 (float64 if ``hidden`` is) [n, D].
    """
    hidden = hidden if hidden.dtype == torch.float64 else hidden.float()
    mask = attention_mask.to(hidden.dtype)
    if pooling == "mean":
        return (hidden * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    # argmax finds the first of equal maxima: the first real token, or (over positions) the last one
    if pooling == "cls":
        return hidden[rows, mask.argmax(1)]
    positions = torch.arange(1, hidden.shape[1] + 1, device=hidden.device)
    # a text without tokens is 0, as it is as a mean
    return hidden[rows, (mask * positions).argmax(1)] * mask.amax(1, keepdim=True)
