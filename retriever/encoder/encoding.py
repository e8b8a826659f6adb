"""Encodes many texts under a token budget, with gradient (checkpointed micro-batches, gradient caching) or without."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedTokenizerBase

from retriever.encoder.budget import fastest_token_budget
from retriever.encoder.host_memory import give_freed_memory_back, reuse_freed_memory
from retriever.encoder.tokens import Pairs, TokenizedTexts, micro_batches, padding_token

_TRIM_TOKENS = 2**15  # between two trims of the heap: after each, the next micro-batches must fault memory in again


class Encoder(nn.Module):
    """What :func:`encode` calls: a backbone with its tokenizer.

    Args:
        backbone: normally a ``transformers`` model.
        tokenizer: its tokenizer.
        spec: how it reads texts.
        name: what the model is called in tables and model cards.
        origin: where the weights come from, in words (``package …``, ``folder …``, ``hub … at …``).
    """

    def __init__(
        self,
        backbone: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        spec: Any,
        name: str = "encoder",
        origin: str = "memory",
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.spec = spec
        self.name = name
        self.origin = origin
        self.check()
        self.train()  # from_pretrained leaves a backbone in evaluation mode, and Lightning keeps the mode it finds

    def check(self) -> None:
        """Refuse, with an InputError, what does not fit together; take from the parts what else is needed."""
        raise NotImplementedError

    @property
    def pad_id(self) -> int:
        """Return the token id that fills a micro-batch; masked, so any id that the backbone knows will do."""
        return padding_token(self.tokenizer, self.backbone)[1]


def encode(
    encoder: nn.Module,
    texts: TokenizedTexts | Pairs,
    token_budget: int | None = None,
    on_micro_batch: Callable[[int], None] | None = None,
    uncheckpointed_tokens: int | None = None,
) -> Tensor:
    """Embed texts, or score pairs, in micro-batches of at most ``token_budget`` tokens of nearly one length.

    Where gradients are on, micro-batches are encoded under activation checkpointing: their activations are computed
    again in the backward pass, with the same dropout, one micro-batch at a time, and the gradient is exactly the full
    batch's (the effect of gradient caching, Gao et al. 2021, arXiv 2101.06983). The last ``uncheckpointed_tokens``
    tokens keep their activations: the backward pass comes to them first, before it computes any others again, so memory
    is that of the larger of the two, and a batch that fits is not computed twice.

    Args:
        encoder: of texts or, for pairs, a cross-encoder; in whichever mode (train, eval) the caller wants.
        texts: N texts or pairs; where texts hold states, the encoder starts from these.
        token_budget: rows × longest row of a micro-batch, padding included; None takes the machine's
            (:func:`retriever.encoder.budget.fastest_token_budget`).
        on_micro_batch: called with the number of rows after each micro-batch (for progress bars).
        uncheckpointed_tokens: tokens, padding included, that are not computed again; None takes ``token_budget``.

    Returns:
        float32 [N, dimension] or, of pairs, [N] on the encoder's device, in the order of ``texts``.
    """
    device, with_gradient = device_of(encoder), torch.is_grad_enabled()
    if not len(texts):
        return torch.zeros((0, encoder.dimension) if isinstance(texts, TokenizedTexts) else 0, device=device)
    lengths = texts.lengths
    on_host = device.type == "cpu"
    if token_budget is None:
        token_budget = fastest_token_budget(encoder, device, with_gradient=with_gradient)
    parts = micro_batches(lengths, token_budget, on_gpu=not on_host)
    sizes = [len(rows) * max(1, int(lengths[rows].max())) for rows in parts]
    behind = np.cumsum(sizes[::-1])[::-1]  # tokens of this and all later micro-batches
    if on_host:
        reuse_freed_memory()

    untrimmed = 0

    def run(rows: np.ndarray, *_: Tensor) -> Tensor:
        nonlocal untrimmed
        # made anew where activations are computed again: no more than one micro-batch's arguments need memory
        arguments: Any = texts.inputs(rows, encoder.pad_id, device)
        untrimmed += arguments[0].numel()
        if with_gradient and on_host and untrimmed >= _TRIM_TOKENS:
            give_freed_memory_back()
            untrimmed = 0
        return encoder(*arguments)

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


@contextmanager
def evaluating(encoder: nn.Module) -> Iterator[None]:
    """Put an encoder into evaluation mode, without gradient, and back."""
    training = encoder.training
    encoder.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        encoder.train(training)


def device_of(encoder: nn.Module) -> torch.device:
    """Return the device that the encoder's weights are on."""
    return next(encoder.parameters()).device
