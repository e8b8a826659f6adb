"""BAAI's layered Gemma reranker, which stops at a layer and averages passage tokens on the way."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, Gemma2Config, PreTrainedModel
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.models.gemma2.modeling_gemma2 import Gemma2Model, Gemma2PreTrainedModel

from retriever.errors import InputError
from retriever.teachers.pair_tokens import TokenizedPairs
from retriever.teachers.transformers_teacher import TransformersTeacher, last_real, project_in_float32


class LayeredGemma(TransformersTeacher):
    """bge-reranker-v2.5-gemma2-lightweight: the logit of its first head at one layer, at the last token.

    The published code was written for transformers 4; this is its computation, and the code that comes with the model
    is not run. It has a head for each layer at which one may stop, but uses the first, whichever layer it stops at;
    so does this, for published figures are those of that head.

    Args:
        model: see :class:`TransformersTeacher`.
        prompt: the question at the end, never cut.
        cutoff_layer: stop after this layer; None is the last.
        compress_ratio: average this number of neighbouring passage tokens (1, 2, 4 or 8).
        compress_layers: the layers at which they are averaged.
        **common: arguments of :class:`TransformersTeacher`.
    """

    kind = "layered_gemma"
    meaning = "the logit of the first head after the cutoff layer, at the last token"
    decides = ("cutoff_layer", "compress_ratio", "compress_layers")

    def __init__(
        self,
        model: str,
        *,
        prompt: str = "Predict whether passage B contains an answer to query A.",
        cutoff_layer: int | None = None,
        compress_ratio: int = 1,
        compress_layers: Sequence[int] = (),
        **common: Any,
    ) -> None:
        super().__init__(model, **common)
        if compress_ratio not in (1, 2, 4, 8):
            raise InputError(f"teacher.compress_ratio is {compress_ratio}; it must be 1, 2, 4 or 8.")
        self.template = ["A: {query}", "\n", "B: {passage}", "\n", prompt]
        self.cutoff_layer = cutoff_layer
        self.compress_ratio = compress_ratio
        self.compress_layers = list(compress_layers)

    def _template(self) -> list[str]:
        assert self.template is not None  # set by __init__
        first, *others = self.template
        return [(self.tokenizer.bos_token or "") + first, *others]

    def _load_model(self) -> PreTrainedModel:
        # eager: torch's attention does not cap logits
        model = self._pretrained(LayeredGemmaModel, "layered Gemma reranker", attn_implementation="eager")
        if not model.lm_head:
            raise InputError(
                f"{self.name} has no head at any layer, so it is no layered Gemma reranker. Check teacher.model, or "
                "choose the teacher that fits it."
            )
        first, last = model.config.start_layer, model.config.num_hidden_layers
        if self.cutoff_layer is not None and self.cutoff_layer not in range(first, last + 1, model.config.layer_sep):
            raise InputError(
                f"teacher.cutoff_layer is {self.cutoff_layer}; {self.name} has heads at {first} to {last}."
            )
        for layer in self.compress_layers:
            if not 0 < layer < (self.cutoff_layer or last):
                raise InputError(
                    f"teacher.compress_layers holds {layer}; layers must be above 0 and below the cutoff layer."
                )
        project_in_float32(model.lm_head[0]["linear_head"])
        return model

    def _logits(self, ids: Tensor, mask: Tensor, pairs: TokenizedPairs, rows: np.ndarray) -> Tensor:
        before, after = (torch.from_numpy(n[rows]).to(self.device)[:, None] for n in (pairs.before, pairs.after))
        model, hidden = self.model.model, self.model.model.embed_tokens(ids)
        at = set(self.compress_layers) if self.compress_ratio > 1 else set()
        for number, layer in enumerate(model.layers[: self.cutoff_layer]):
            if number in at:
                hidden, mask = average_passages(hidden, mask, before, after, self.compress_ratio)
            if number == 0 or number in at:
                positions = torch.arange(hidden.shape[1], device=self.device)[None]
                rotary = model.rotary_emb(hidden, positions)
                allowed = {
                    kind: create(model.config, hidden, mask, past_key_values=None, position_ids=positions)
                    for kind, create in _MASKS.items()
                }
            hidden = layer(hidden, attention_mask=allowed[model.config.layer_types[number]], position_embeddings=rotary)
        logits = self.model.lm_head[0]["linear_head"](model.norm(last_real(hidden, mask)))[:, 0]
        cap = model.config.final_logit_softcapping
        return logits if cap is None else torch.tanh(logits / cap) * cap


_MASKS = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}


class LayeredGemmaConfig(Gemma2Config):
    """Gemma 2's, with the layers that have heads: every ``layer_sep``-th from ``start_layer`` on."""

    model_type = "cost_wise_gemma"

    start_layer: int = 28
    layer_sep: int = 28
    layer_wise: bool = False


class LayeredGemmaModel(Gemma2PreTrainedModel):
    """Holds the weights by the names that they have on the hub; :class:`LayeredGemma` computes with them."""

    config_class = LayeredGemmaConfig

    def __init__(self, config: LayeredGemmaConfig) -> None:
        super().__init__(config)
        self.model = Gemma2Model(config)
        heads = range(config.start_layer, config.num_hidden_layers + 1, config.layer_sep)
        self.lm_head = nn.ModuleList(
            nn.ModuleDict({"linear_head": nn.Linear(config.hidden_size, 1, bias=False)}) for _ in heads
        )
        self.post_init()


# so that the tokenizer loads, too, without the model's own code
AutoConfig.register(LayeredGemmaConfig.model_type, LayeredGemmaConfig, exist_ok=True)


def average_passages(hidden: Tensor, mask: Tensor, before: Tensor, after: Tensor, ratio: int) -> tuple[Tensor, Tensor]:
    """Average each ``ratio`` neighbouring tokens of the passages; the last group of a passage may have fewer.

    Args:
        hidden: [n, L, D], padded on the right.
        mask: int64 [n, L], 1 for real tokens.
        before: int64 [n, 1], tokens in front of the passage, which stay as they are.
        after: int64 [n, 1], those behind it, likewise.
        ratio: at least 1.

    Returns:
        The same of the shorter rows.
    """
    place = torch.arange(hidden.shape[1], device=hidden.device).expand_as(mask)
    passage = mask.sum(1, keepdim=True) - before - after
    left = -(-passage // ratio)
    inside = place - before
    goes_to = torch.where(inside < passage, before + inside // ratio, place - passage + left)
    goes_to = torch.where(inside < 0, place, goes_to)
    lengths = before + left + after
    longest = int(lengths.max())
    total = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
    total.scatter_add_(1, goes_to[..., None].expand_as(hidden), hidden.float())
    count = torch.zeros_like(mask).scatter_add_(1, goes_to, torch.ones_like(mask))
    mean = total / count.clamp(min=1)[..., None]
    return mean[:, :longest].to(hidden.dtype), (place[:, :longest] < lengths).long()
