"""Encoding many texts under a token budget, with gradient (checkpointed micro-batches) or without."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from retriever.encoder import TextEncoder
from retriever.tokens import TokenizedTexts, micro_batches


def encode(
    encoder: TextEncoder,
    tokens: TokenizedTexts,
    token_budget: int = 16_384,
    on_micro_batch: Callable[[int], None] | None = None,
) -> Tensor:
    """Embed texts, in micro-batches of at most ``token_budget`` tokens of nearly one length.

    Where gradients are on and there is more than one micro-batch, each is encoded under activation checkpointing: its
    activations are computed again in the backward pass, with the same dropout, so that memory holds one micro-batch at
    a time and the gradient is exactly the full batch's (the effect of gradient caching, Gao et al. 2021, arXiv
    2101.06983).

    Args:
        encoder: in whichever mode (train, eval) the caller wants.
        tokens: N texts.
        token_budget: rows × longest row of a micro-batch, padding included.
        on_micro_batch: called with the number of texts after each micro-batch (for progress bars).

    Returns:
        float32 [N, dimension] on the encoder's device, in the order of ``tokens``.
    """
    if not len(tokens):
        return torch.zeros(0, encoder.dimension, device=device_of(encoder))
    device = device_of(encoder)
    parts = micro_batches(tokens.lengths, token_budget)
    recompute = torch.is_grad_enabled() and len(parts) > 1
    embeddings = []
    for rows in parts:
        ids, mask = tokens.padded(rows, encoder.pad_id, device)
        if recompute:
            embeddings.append(checkpoint(encoder, ids, mask, use_reentrant=False, preserve_rng_state=True))
        else:
            embeddings.append(encoder(ids, mask))
        if on_micro_batch:
            on_micro_batch(len(rows))
    order = torch.from_numpy(_inverse(parts)).to(device)
    return torch.cat(embeddings)[order]


def device_of(encoder: TextEncoder) -> torch.device:
    """The device that the encoder's weights are on."""
    return next(encoder.parameters()).device


def _inverse(parts: list[np.ndarray]) -> np.ndarray:
    order = np.concatenate(parts)
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return inverse
