"""QueryLikelihood: language models that say how likely a query is, given a passage."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, Cache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from retriever.errors import InputError
from retriever.teachers.pair_tokens import PairTokenizer, TokenizedPairs
from retriever.teachers.transformers_teacher import TransformersTeacher, load_pretrained, project_on_rows


class QueryLikelihood(TransformersTeacher):
    """Scores by the mean log-likelihood of the query's tokens after a prompt with the passage, without any training.

    Sachan et al. 2022, "Improving Passage Retrieval with Zero-Shot Question Generation" (arXiv 2204.07496). A causal
    language model goes on from the prompt; an encoder-decoder such as T5 encodes the prompt and decodes the query. All
    passages leave ``query_max_length`` tokens to the query, so that a passage is the same for each of its queries: it
    is read once for all of them in a micro-batch, which holds all that a block has, unless they exceed
    ``token_budget``.

    Args:
        model: see :class:`TransformersTeacher`.
        template: the prompt with ``{passage}``, and then the query, ``{query}`` with at most a blank before it; each
            tokenised by itself, with the special tokens that the model begins (of an encoder: ends) a text with.
        **common: arguments of :class:`TransformersTeacher`.
    """

    kind = "query_likelihood"
    meaning = "mean log p of the query's tokens, given prompt and passage"
    template: list[str]

    def __init__(self, model: str, *, template: Sequence[str], **common: Any) -> None:
        super().__init__(model, **common)
        self.template = list(template)
        if len(self.template) != 2 or "{passage}" not in self.template[0] or self.template[1].lstrip() != "{query}":
            raise InputError(
                f"teacher.template is {self.template}; it must be a prompt with {{passage}}, and ' {{query}}'."
            )

    def _template(self) -> Sequence[str]:
        prompt, query = self.template[0], "{query}"
        added = self.tokenizer.convert_ids_to_tokens(self.tokenizer("")["input_ids"])
        if self.model.config.is_encoder_decoder:
            return "".join(added[:-1]) + prompt + "".join(added[-1:]), query
        return "".join(token for token in added[:1] if token == self.tokenizer.bos_token) + prompt, query

    def _pair_tokenizer(self) -> PairTokenizer:
        made = PairTokenizer(
            self.tokenizer, self.max_length, self.query_max_length, self._template(), reserve_query=True
        )
        alone = made([""], [""])
        if len(alone.tokens.ids) - alone.after[0] < 2:
            raise InputError(f"teacher.template is {self.template}; its prompt needs words beside {{passage}}.")
        return made

    def _score_block(
        self, queries: Sequence[str], passages: Sequence[str], on_batch: Callable[[int], None] | None
    ) -> tuple[np.ndarray, TokenizedPairs]:
        # a blank may be a token by itself, and counts as the query's
        return super()._score_block([self.template[1].replace("{query}", q) for q in queries], passages, on_batch)

    def _load_model(self) -> PreTrainedModel:
        config = load_pretrained(AutoConfig, self.name, self.revision, self.trust_remote_code)
        auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model = self._pretrained(auto_class, "language model")
        if self.dtype != "float32":
            project_on_rows(model, range(model.get_output_embeddings().out_features))
        return model

    def _micro_batches(self, pairs: TokenizedPairs) -> list[np.ndarray]:
        """Put the pairs of a passage into one micro-batch, long passages first."""
        lengths = pairs.tokens.lengths
        passages: dict[bytes, list[int]] = {}
        for row, prompt in enumerate(lengths - pairs.after):
            start = pairs.tokens.offsets[row]
            passages.setdefault(pairs.tokens.ids[start : start + prompt].tobytes(), []).append(row)
        batches: list[list[int]] = []
        batch: list[int] = []
        for rows in sorted(passages.values(), key=lambda rows: -lengths[rows[0]] + pairs.after[rows[0]]):
            size = max(1, self.token_budget // int(lengths[rows].max()))
            for part in (rows[start : start + size] for start in range(0, len(rows), size)):
                if batch and len(batch + part) * int(lengths[batch + part].max()) > self.token_budget:
                    batches.append(batch)
                    batch = []
                batch += part
        return [np.array(rows) for rows in [*batches, batch] if rows]

    def _logits(self, ids: Tensor, mask: Tensor, pairs: TokenizedPairs, rows: np.ndarray) -> Tensor:
        length = mask.sum(1, keepdim=True)
        asked = torch.from_numpy(pairs.after[rows]).to(self.device)[:, None]
        prompt = length - asked
        # prompts padded on the left, queries on the right: no padding between them, wherever a model looks
        columns = torch.arange(int(prompt.max()), device=self.device) + prompt - prompt.max()
        prompts, passage = torch.unique(
            ids.gather(1, columns.clamp(min=0)).masked_fill(columns < 0, -1), dim=0, return_inverse=True
        )
        columns = torch.arange(max(1, int(asked.max())), device=self.device) + prompt
        known = columns < length
        query = ids.gather(1, columns.clamp(max=ids.shape[1] - 1))
        read = self._after_encoder if self.model.config.is_encoder_decoder else self._after_prompt
        logits = read(prompts.clamp(min=0), (prompts >= 0).long(), passage, query, known.long())
        likelihood = logits.float().log_softmax(-1).gather(2, query[..., None])[..., 0]
        return likelihood.masked_fill(~known, 0).sum(1) / asked[:, 0].clamp(min=1)

    def _after_prompt(self, prompts: Tensor, mask: Tensor, passage: Tensor, query: Tensor, known: Tensor) -> Tensor:
        """Compute logits of each query token, [n, Q, V]; the prompt's last token is read with the query."""
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        read = self.model.base_model(
            input_ids=prompts[:, :-1], attention_mask=mask[:, :-1], position_ids=positions[:, :-1], use_cache=True
        ).past_key_values
        if not isinstance(read, Cache):
            raise InputError(f"{self.name} keeps no keys and values of what it has read. Choose another teacher.model.")
        read.batch_select_indices(passage)
        return self.model(
            input_ids=torch.cat([prompts[passage, -1:], query[:, :-1]], 1),
            attention_mask=torch.cat([mask[passage], known[:, :-1]], 1),
            position_ids=positions[passage, -1:] + torch.arange(query.shape[1], device=self.device),
            past_key_values=read,
            use_cache=True,
        ).logits

    def _after_encoder(self, prompts: Tensor, mask: Tensor, passage: Tensor, query: Tensor, known: Tensor) -> Tensor:
        encoded = self.model.get_encoder()(input_ids=prompts, attention_mask=mask).last_hidden_state
        start = torch.full_like(query[:, :1], self.model.config.decoder_start_token_id)
        return self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded[passage]),
            attention_mask=mask[passage],
            decoder_input_ids=torch.cat([start, query[:, :-1]], 1),
            use_cache=False,
        ).logits
