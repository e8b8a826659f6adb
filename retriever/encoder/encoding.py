"""Encodes many texts under a token budget, with gradient (checkpointed micro-batches, gradient caching) or without."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from retriever.encoder.budget import fastest_token_budget
from retriever.encoder.host_memory import give_freed_memory_back, reuse_freed_memory
from retriever.encoder.text_encoder import TextEncoder
from retriever.encoder.tokens import TokenizedTexts, micro_batches

_TRIM_TOKENS = 2**15  # between two trims of the heap: after each, the next micro-batches must fault memory in again


def encode(
    encoder: TextEncoder,
    tokens: TokenizedTexts,
    token_budget: int | None = None,
    on_micro_batch: Callable[[int], None] | None = None,
    uncheckpointed_tokens: int | None = None,
) -> Tensor:
    """Embed texts, in micro-batches of at most ``token_budget`` tokens of nearly one length.

    Where gradients are on, micro-batches are encoded under activation checkpointing: their activations are computed
    again in the backward pass, with the same dropout, one micro-batch at a time, and the gradient is exactly the full
    batch's (the effect of gradient caching, Gao et al. 2021, arXiv 2101.06983). The last ``uncheckpointed_tokens``
    tokens keep their activations: the backward pass comes to them first, before it computes any others again, so memory
    is that of the larger of the two, and a batch that fits is not computed twice.

    Args:
        encoder: in whichever mode (train, eval) the caller wants.
        tokens: N texts; where they hold states, the encoder starts from these.
        token_budget: rows × longest row of a micro-batch, padding included; None takes the machine's
            (:func:`retriever.encoder.budget.fastest_token_budget`).
        uncheckpointed_tokens: tokens, padding included, that are not computed again; None takes ``token_budget``.
        on_micro_batch: called with the number of texts after each micro-batch (for progress bars).

    Returns:
        float32 [N, dimension] on the encoder's device, in the order of ``tokens``.
    """
    device = device_of(encoder)
    if not len(tokens):
        return torch.zeros(0, encoder.dimension, device=device)

    lengths = tokens.lengths

    def inputs(rows: np.ndarray) -> tuple[Tensor, Tensor, list[int], Tensor | None]:
        states = tokens.padded_states(rows, device)
        return *tokens.padded(rows, encoder.pad_id, device), lengths[rows].tolist(), states

    return in_micro_batches(encoder, lengths, token_budget, inputs, on_micro_batch, uncheckpointed_tokens)


def in_micro_batches(
    model: nn.Module,
    lengths: np.ndarray,
    token_budget: int | None,
    inputs: Callable[[np.ndarray], tuple[object, ...]],
    on_micro_batch: Callable[[int], None] | None = None,
    uncheckpointed_tokens: int | None = None,
) -> Tensor:
    """Call a model on micro-batches of nearly one length, checkpointed as :func:`encode` says.

    Args:
        model: called with what ``inputs`` gives; a row of its output for each row.
        lengths: tokens of each of N ≥ 1 rows.
        token_budget: as for :func:`encode`.
        inputs: rows of a micro-batch → the model's arguments; called anew where activations are computed again, so
            that no more than one micro-batch's arguments need memory.
        on_micro_batch: called with the number of rows after each micro-batch.
        uncheckpointed_tokens: as for :func:`encode`.

    Returns:
        The outputs [N, …], in the order of ``lengths``.
    """
    device, with_gradient = device_of(model), torch.is_grad_enabled()
    on_host = device.type == "cpu"
    if token_budget is None:
        token_budget = fastest_token_budget(model, device, with_gradient=with_gradient)
    parts = micro_batches(lengths, token_budget, on_gpu=not on_host)
    sizes = [len(rows) * max(1, int(lengths[rows].max())) for rows in parts]
    behind = np.cumsum(sizes[::-1])[::-1]  # tokens of this and all later micro-batches
    if on_host:
        reuse_freed_memory()

    untrimmed = 0

    def run(rows: np.ndarray, *_: Tensor) -> Tensor:
        nonlocal untrimmed
        arguments: Any = inputs(rows)
        untrimmed += arguments[0].numel()
        if with_gradient and on_host and untrimmed >= _TRIM_TOKENS:
            give_freed_memory_back()
            untrimmed = 0
        return model(*arguments)

    at = torch.empty(0, device=device)  # torch keeps the random state of the devices of what it is given

    def output(rows: np.ndarray, tokens: int) -> Tensor:
        if with_gradient and tokens > (token_budget if uncheckpointed_tokens is None else uncheckpointed_tokens):
            return checkpoint(run, rows, at, use_reentrant=False, preserve_rng_state=True)
        return run(rows)

    outputs, together = [], None
    for rows, tokens in zip(parts, behind, strict=True):
        part = output(rows, tokens)
        if with_gradient:
            outputs.append(part)
        else:
            # written in place: thousands of small tensors that are kept would fragment the heap
            together = part.new_empty(len(lengths), *part.shape[1:]) if together is None else together
            together[torch.from_numpy(rows).to(part.device)] = part
        if on_micro_batch:
            on_micro_batch(len(rows))
    if together is None:
        together = torch.cat(outputs)
        in_order = np.argsort(np.concatenate(parts))  # where each row is among the outputs
        together = together[torch.from_numpy(in_order).to(together.device)]
    return together


def device_of(encoder: nn.Module) -> torch.device:
    """Return the device that the encoder's weights are on."""
    return next(encoder.parameters()).device
