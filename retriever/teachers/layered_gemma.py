"""BAAI's layered Gemma reranker, which stops at a layer and averages passage tokens on the way."""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers import __version__ as transformers_version

from retriever.errors import InputError
from retriever.teachers.pair_tokens import TokenizedPairs
from retriever.teachers.transformers_teacher import TransformersTeacher, last_real, project_in_float32

_ARGUMENTS = ("cutoff_layers", "compress_ratio", "compress_layer", "query_lengths", "prompt_lengths")


class LayeredGemma(TransformersTeacher):
    """bge-reranker-v2.5-gemma2-lightweight: the logit of the head at one layer, at the last token.

    The model brings Python code, which must be allowed by ``trust_remote_code``.

    Args:
        model: see :class:`TransformersTeacher`.
        prompt: the question at the end, never cut.
        cutoff_layer: stop after this layer; None is the last.
        compress_ratio: average this number of neighbouring passage tokens (1, 2, 4 or 8).
        compress_layers: the layers at which they are averaged.
        **common: arguments of :class:`TransformersTeacher`.
    """

    kind = "layered_gemma"
    meaning = "the logit at the cutoff layer's head, at the last token"
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
        if not self.trust_remote_code:
            raise InputError(
                f"{model} brings Python code, which is run only if you ask for it: read the *.py files of "
                "the model, then say teacher.trust_remote_code=true."
            )
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

    def load(self) -> None:
        """See :class:`ModelTeacher`."""
        try:
            super().load()
        except InputError as error:
            if isinstance(error.__cause__, ImportError | AttributeError | TypeError):
                raise InputError(
                    f"{error} The model's code was written for transformers 4, and this is {transformers_version}: "
                    "take another teacher, or score with this one in a separate environment and import the scores."
                ) from error
            raise

    def _load_model(self) -> PreTrainedModel:
        model = self._pretrained(AutoModelForCausalLM, "layered Gemma reranker")
        lacking = [name for name in _ARGUMENTS if name not in inspect.signature(model.forward).parameters]
        if lacking:
            raise InputError(
                f"{self.name} is a {type(model).__name__} that takes no {', '.join(lacking)}, so it is no layered "
                "Gemma reranker. Check teacher.model, or choose the teacher that fits it."
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
        for layer in model.get_output_embeddings().modules():
            if isinstance(layer, nn.Linear):
                project_in_float32(layer)
        return model

    def _logits(self, ids: Tensor, mask: Tensor, pairs: TokenizedPairs, rows: np.ndarray) -> Tensor:
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            return_dict=True,
            cutoff_layers=None if self.cutoff_layer is None else [self.cutoff_layer],
            compress_ratio=self.compress_ratio,
            compress_layer=self.compress_layers,
            query_lengths=pairs.before[rows].tolist(),
            prompt_lengths=pairs.after[rows].tolist(),
        )
        # compression shortens the rows; the mask that comes back says where they end
        return last_real(output.logits[0], output.attention_masks[0])
