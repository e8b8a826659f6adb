"""YesNo: causal language models that are asked whether a passage fits, like Qwen3-Reranker."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from retriever.errors import InputError
from retriever.teachers.pair_tokens import TokenizedPairs
from retriever.teachers.transformers_teacher import TransformersTeacher, last_real, project_on_rows


class YesNo(TransformersTeacher):
    """Scores by the log-probability of "yes" against "no" as the next token.

    Args:
        model: see :class:`TransformersTeacher`.
        template: parts of the prompt, each tokenised by itself, with ``{instruction}``, ``{query}`` and ``{passage}``.
        instruction: what the passage should do for the query.
        yes_token: as the vocabulary writes it.
        no_token: the same.
        **common: arguments of :class:`TransformersTeacher`.
    """

    kind = "yes_no"
    meaning = "log p(yes), of yes and no alone, as the next token"
    decides = ("yes_token", "no_token")

    def __init__(
        self,
        model: str,
        *,
        template: str | Sequence[str],
        instruction: str = "",
        yes_token: str = "yes",
        no_token: str = "no",
        **common: Any,
    ) -> None:
        super().__init__(model, **common)
        parts = [template] if isinstance(template, str) else list(template)
        filled = [part.replace("{instruction}", instruction) for part in parts]
        self.template = filled[0] if isinstance(template, str) else filled
        self.yes_token = yes_token
        self.no_token = no_token

    def _load_model(self) -> PreTrainedModel:
        model = self._pretrained(AutoModelForCausalLM, "causal language model")
        made_as = model.config.architectures or [type(model).__name__]
        if not any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in made_as):
            raise InputError(
                f"{self.name} is a {', '.join(made_as)}, no causal language model. Check teacher.model, or choose the "
                "teacher that fits it."
            )
        project_on_rows(model, [self._token_id("yes_token", self.yes_token), self._token_id("no_token", self.no_token)])
        return model

    def _logits(self, ids: Tensor, mask: Tensor, pairs: TokenizedPairs, rows: np.ndarray) -> Tensor:
        # padded on the right: no real token attends to the padding after it, and positions begin at 0
        logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return last_real(logits, mask).float().log_softmax(-1)[:, 0]
