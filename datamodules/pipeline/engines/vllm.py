"""vLLM in this process."""

import gc
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import set_seed

from datamodules.pipeline.engines.engine import Answer, Conversation, Engine, model_identity, refused
from retriever.errors import choose
from retriever.pretrained.vllm import deciding_options, load_llm

_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "max_tokens",
    "min_tokens",
    "frequency_penalty",
    "repetition_penalty",
    "stop",
)


class VllmEngine(Engine):
    """vLLM's offline engine.

    Args:
        model: as for :class:`Engine`, as are the next four.
        sampling: of ``vllm.SamplingParams``.
        chat_template: variables of the model's chat template.
        revision: on the hub.
        trust_remote_code: run code that the model brings.
        seeds: ``request``: each conversation has a seed of its own; ``block``: one seed for all conversations of a
            call, by which they come out alike as long as the call holds the same ones (vLLM 0.32 crashes on seeded
            requests on a CPU); ``auto``: by the device.
        **options: of ``vllm.LLM``: tensor_parallel_size, data_parallel_size, max_model_len, gpu_memory_utilization, …
    """

    sampling_keys = _SAMPLING

    def __init__(
        self,
        model: str,
        sampling: Mapping[str, Any],
        *,
        chat_template: Mapping[str, Any] | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        seeds: str = "auto",
        **options: Any,
    ) -> None:
        super().__init__(model, sampling, chat_template, revision, trust_remote_code)
        self.asked_seeds = choose("generator.vllm.seeds", seeds, ("auto", "request", "block"))
        self.seeds = ("request" if torch.cuda.is_available() else "block") if seeds == "auto" else seeds
        self.options = {k: v for k, v in options.items() if v is not None}

    @property
    def _settings(self) -> dict[str, Any]:
        return {
            "engine": "vllm",
            "seeds": self.asked_seeds,
            "sampling": self.sampling,
            "chat_template": self.chat_template,
            **model_identity(self.model, self.revision),
            **deciding_options(self.options),
        }

    @cached_property
    def _llm(self) -> Any:
        return load_llm(
            "Or say generator.engine=transformers, or server.",
            in_process=self.seeds == "block",
            model=self.model,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
            seed=0,
            enable_prefix_caching=True,
            **self.options,
        )

    def release(self) -> None:
        """See :class:`Engine`."""
        if self.__dict__.pop("_llm", None) is not None:
            gc.collect()
            torch.cuda.empty_cache()

    def answer(
        self, conversations: Sequence[Conversation], seeds: Sequence[int], advance: Callable[[int], None]
    ) -> list[Answer]:
        """See :class:`Engine`."""
        llm = self._llm
        from vllm import SamplingParams

        # a block starts from the same state whatever was answered before
        llm.reset_prefix_cache()
        if self.seeds == "request":
            params = [SamplingParams(seed=seed, **self.sampling) for seed in seeds]
        else:
            params = SamplingParams(**self.sampling)
            set_seed(sum(seeds) % 2**31)
        try:
            found = llm.chat(list(conversations), params, use_tqdm=False, chat_template_kwargs=self.chat_template)
        except (ValueError, TemplateError) as error:
            raise refused(self.model, error) from error
        advance(len(found))
        return [Answer(o.outputs[0].text, o.outputs[0].finish_reason != "length") for o in found]
