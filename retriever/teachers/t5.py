"""RankT5 and monoT5: encoder-decoders that answer at their first decoder step."""

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from retriever.teachers.pair_tokens import TokenizedPairs
from retriever.teachers.transformers_teacher import TransformersTeacher, project_on_rows


class _FirstStep(TransformersTeacher):
    """Computes logits of a few tokens at the first decoder step."""

    def __init__(self, model: str, *, template: str, **common: Any) -> None:
        super().__init__(model, **common)
        self.template = template

    @abstractmethod
    def _answers(self) -> list[int]:
        """Return the ids of the tokens whose logits make the score."""

    def _load_model(self) -> PreTrainedModel:
        model = self._pretrained(AutoModelForSeq2SeqLM, "encoder-decoder with a language model head")
        project_on_rows(model, self._answers())
        return model

    def _answer_logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        start = torch.full_like(ids[:, :1], self.model.config.decoder_start_token_id)
        output = self.model(input_ids=ids, attention_mask=mask, decoder_input_ids=start, use_cache=False)
        return output.logits[:, 0].float()


class RankT5(_FirstStep):
    """RankT5 (Zhuang et al. 2023, arXiv 2210.10634): the logit of one token that was trained to be the score.

    Args:
        model: see :class:`TransformersTeacher`.
        template: with ``{query}`` and ``{passage}``.
        score_token: the token whose logit is the score.
        **common: arguments of :class:`TransformersTeacher`.
    """

    kind = "rankt5"
    meaning = "the score token's logit at the first decoder step"
    decides = ("score_token",)

    def __init__(
        self,
        model: str,
        *,
        template: str = "Query: {query} Document: {passage}",
        score_token: str = "<extra_id_10>",
        **common: Any,
    ) -> None:
        super().__init__(model, template=template, **common)
        self.score_token = score_token

    def _answers(self) -> list[int]:
        return [self._token_id("score_token", self.score_token)]

    def _logits(self, ids: Tensor, mask: Tensor, pairs: TokenizedPairs, rows: np.ndarray) -> Tensor:
        return self._answer_logits(ids, mask)[:, 0]


class MonoT5(_FirstStep):
    """monoT5 (Nogueira et al. 2020, arXiv 2003.06713): the log-probability of "true" against "false".

    Args:
        model: see :class:`TransformersTeacher`.
        template: with ``{query}`` and ``{passage}``; its closing words are never cut.
        true_token: as the vocabulary writes it (with ``▁`` for the space in front).
        false_token: the same.
        **common: arguments of :class:`TransformersTeacher`.
    """

    kind = "monot5"
    meaning = "log p(true), of true and false alone, at the first decoder step"
    decides = ("true_token", "false_token")

    def __init__(
        self,
        model: str,
        *,
        template: str = "Query: {query} Document: {passage} Relevant:",
        true_token: str = "▁true",
        false_token: str = "▁false",
        **common: Any,
    ) -> None:
        super().__init__(model, template=template, **common)
        self.true_token = true_token
        self.false_token = false_token

    def _answers(self) -> list[int]:
        return [self._token_id("true_token", self.true_token), self._token_id("false_token", self.false_token)]

    def _logits(self, ids: Tensor, mask: Tensor, pairs: TokenizedPairs, rows: np.ndarray) -> Tensor:
        return self._answer_logits(ids, mask).log_softmax(-1)[:, 0]
