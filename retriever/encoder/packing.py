"""Attention over texts that are concatenated in one row, without padding: ``attention: packed``.

Registered with ``transformers`` as an attention implementation, so it serves every backbone whose attention goes
through that registry and that takes ``position_ids``. A micro-batch of n texts with T tokens is one row [1, T]; nothing
is computed for padding, and attention needs no mask.
"""

import inspect
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from retriever.errors import InputError

NAME = "packed"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    text_lengths: list[int],
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Compute the attention of each text to itself.

    On a GPU in half precision this is one call of torch's variable-length flash attention; elsewhere one call of its
    scaled dot product attention for each run of texts of one length.

    Args:
        module: the backbone's attention module; may say that it is causal.
        query: [1, heads, T, d].
        key: [1, key heads, T, d]; so is ``value``.
        value: see ``key``.
        attention_mask: None; lengths say where a text ends.
        text_lengths: tokens of each text, together T.
        scaling: of the scores; None takes d^−½.
        dropout: of the attention weights.
        is_causal: whether a token sees only those before it; None asks ``module``.
        sliding_window: tokens that a token sees; only None is offered.

    Returns:
        [1, T, heads, d], and None in place of the weights.
    """
    if sliding_window is not None:
        raise NotImplementedError("packed attention offers no sliding window")
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and not dropout:
        return _flash(query, key, value, text_lengths, scaling, causal), None
    parts, start = [], 0
    for length, run in groupby(text_lengths):
        texts = len(list(run))
        stop = start + texts * length
        # [1, heads, texts · length, d] → [texts, heads, length, d]
        q, k, v = (t[0, :, start:stop].unflatten(1, (texts, length)).transpose(0, 1) for t in (query, key, value))
        gqa = q.shape[1] != k.shape[1]
        out = scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, scale=scaling, is_causal=causal and length > 1, enable_gqa=gqa
        )
        parts.append(out.transpose(1, 2).flatten(0, 1))
        start = stop
    return torch.cat(parts).unsqueeze(0), None


def _flash(
    query: Tensor, key: Tensor, value: Tensor, text_lengths: list[int], scaling: float | None, causal: bool
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    ends = torch.tensor([0, *text_lengths]).cumsum(0).int().to(query.device, non_blocking=True)
    longest = max(text_lengths)
    q, k, v = (t[0].transpose(0, 1).contiguous() for t in (query, key, value))
    gqa = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}
    window = (-1, 0) if causal else (-1, -1)
    out = varlen_attn(q, k, v, ends, ends, longest, longest, scale=scaling, window_size=window, **gqa)
    return out.unsqueeze(0)


def check_flash(backbone: PreTrainedModel) -> None:
    """Refuse a torch without the variable-length attention that a backbone is to use on a GPU.

    Raises:
        InputError: it has not, or an older one.
    """
    needed = {"scale", "window_size"}
    heads = getattr(backbone.config, "num_attention_heads", None)
    if getattr(backbone.config, "num_key_value_heads", heads) != heads:
        needed.add("enable_gqa")
    try:
        from torch.nn.attention.varlen import varlen_attn

        lacking = needed - inspect.signature(varlen_attn).parameters.keys()
    except ImportError:
        lacking = needed
    if lacking:
        raise InputError(
            f"encoder.attention is 'packed', but torch {torch.__version__} lacks the variable-length attention for "
            f"GPUs that it needs (with {', '.join(sorted(lacking))}; 2.13 has it). Take encoder.attention=sdpa, or a "
            "newer torch."
        )


def packed_hidden_states(
    backbone: PreTrainedModel, input_ids: Tensor, text_lengths: list[int], first_position: int = 0
) -> Tensor:
    """Compute token embeddings of texts by a backbone with packed attention.

    Args:
        backbone: loaded with ``attn_implementation="packed"``.
        input_ids: int64 [n, L], padded on the right.
        text_lengths: tokens of each of the n texts.
        first_position: position of a text's first token in this backbone.

    Returns:
        [n, L, D], 0 where padded.
    """
    columns = torch.arange(input_ids.shape[1], device=input_ids.device)
    lengths = torch.tensor(text_lengths).to(input_ids.device, non_blocking=True)
    mask = columns < lengths.unsqueeze(1)
    # with the number of tokens given, the host need not wait for the device to count them
    at = torch.nonzero_static(mask.flatten(), size=sum(text_lengths)).squeeze(1)
    row, positions = input_ids.flatten()[at].unsqueeze(0), columns.repeat(len(lengths))[at].unsqueeze(0)
    hidden = backbone(
        input_ids=row, position_ids=positions + first_position, text_lengths=text_lengths
    ).last_hidden_state.squeeze(0)
    padded = hidden.new_zeros(input_ids.numel(), hidden.shape[1])
    return padded.index_copy(0, at, hidden).unflatten(0, tuple(input_ids.shape))


AttentionInterface.register(NAME, packed_attention)
