"""VllmScorer: classifiers with one logit, scored by vLLM."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer

from retriever.errors import InputError
from retriever.pretrained.vllm import deciding_options, load_llm
from retriever.teachers.model_teacher import ModelTeacher
from retriever.teachers.pair_tokens import PairTokenizer, TokenizedPairs
from retriever.teachers.transformers_teacher import chosen_dtype, load_pretrained


class VllmScorer(ModelTeacher):
    """Scores by vLLM's ``LLM.score``, without its activation.

    Args:
        model: see :class:`ModelTeacher`; a classifier of one label that vLLM supports.
        token_budget: tokens that vLLM puts into one step; None takes 16,384.
        dtype: ``float32`` or ``bfloat16``; ``auto`` takes bfloat16 on a GPU that has it.
        device: only None; vLLM takes the device that it was built for.
        options: further arguments of ``vllm.LLM`` (tensor_parallel_size, gpu_memory_utilization, …).
        **common: arguments of :class:`ModelTeacher`.
    """

    block = 4_096  # of one call; vLLM batches them itself
    kind = "vllm"
    meaning = "the logit of the one class"

    def __init__(
        self,
        model: str,
        *,
        token_budget: int | None = None,
        dtype: str = "float32",
        device: str | None = None,
        options: dict[str, Any] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(model, **common)
        if device is not None:
            raise InputError(f"teacher.device is {device!r}; vLLM chooses the device by its build. Say null.")
        self.token_budget = token_budget or 16_384
        self.dtype = chosen_dtype(dtype, on_gpu=torch.cuda.is_available())
        self.options = dict(options or {})

    @cached_property
    def _pair_tokenizer(self) -> PairTokenizer:
        tokenizer = load_pretrained(AutoTokenizer, self.name, self.revision, self.trust_remote_code)
        return PairTokenizer(tokenizer, self.max_length, self.query_max_length)

    @cached_property
    def _llm(self) -> Any:
        config = load_pretrained(AutoConfig, self.name, self.revision, self.trust_remote_code)
        if config.num_labels != 1:
            raise InputError(
                f"{self.name} has {config.num_labels} labels; vLLM scores classifiers of one alone. Say "
                "teacher=classifier."
            )
        try:
            return load_llm(
                "Or say teacher=classifier, which needs transformers alone.",
                in_process=False,
                model=self.name,
                revision=self.revision,
                trust_remote_code=self.trust_remote_code,
                runner="pooling",
                dtype=self.dtype,
                max_model_len=self.max_length,
                max_num_batched_tokens=max(self.token_budget, self.max_length),
                seed=0,
                **self.options,
            )
        except ValueError as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"vLLM cannot load the teacher {self.name!r}: {reason}") from error

    def load(self) -> None:
        """See :class:`ModelTeacher`."""
        _ = self._pair_tokenizer, self._llm

    def _score_block(
        self, queries: Sequence[str], passages: Sequence[str], on_batch: Callable[[int], None] | None
    ) -> tuple[np.ndarray, TokenizedPairs]:
        from vllm import PoolingParams

        asked, texts, pairs = self._cut(queries, passages)
        raw = PoolingParams(use_activation=False)
        outputs = self._llm.score(asked, texts, pooling_params=raw, use_tqdm=False)
        if on_batch:
            on_batch(len(asked))
        return np.array([output.outputs.score for output in outputs], dtype=np.float32), pairs

    def _cut(self, queries: Sequence[str], passages: Sequence[str]) -> tuple[list[str], list[str], TokenizedPairs]:
        """Cut texts until they fit: vLLM takes no token ids here, and would cut closing tokens first."""
        queries, passages = list(queries), list(passages)
        pairs = self._pair_tokenizer(queries, passages)
        for i in np.flatnonzero(pairs.query_truncated | pairs.truncated):
            queries[i] = queries[i][: pairs.query_ends[i]]
            passages[i] = passages[i][: pairs.passage_ends[i]]
            # a cut text may have one token more than it had inside of the whole
            while len(passages[i]) and self._pair_tokenizer([queries[i]], [passages[i]]).truncated[0]:
                passages[i] = passages[i][:-1]
        # an empty passage counts as none with vLLM, and would lose its closing token
        return queries, [passage or " " for passage in passages], pairs

    def description(self) -> dict[str, Any]:
        """See :class:`ModelTeacher`."""
        return super().description() | {"dtype": self.dtype, "options": deciding_options(self.options)}
