"""transformers' own generation: slower than vLLM, and there wherever torch is."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from jinja2 import TemplateError

from datamodules.pipeline.engines.engine import Answer, Conversation, Engine, model_identity, refused
from retriever.errors import require_positive
from retriever.pretrained.loading import load

_SAMPLING = {"temperature": 0.8, "top_p": 1.0, "max_tokens": 50, "frequency_penalty": 0.0, "stop": ()}


class TransformersEngine(Engine):
    """``generate`` on batches of conversations of nearly one length.

    Args:
        model: folder or hub name.
        sampling: ``temperature`` (0 is greedy), ``top_p``, ``max_tokens``, ``min_tokens``, ``stop``.
            ``frequency_penalty`` is vLLM's and left out here.
        batch_size: conversations at a time.
        dtype: of the weights; None takes float32 on a CPU, else what the model was saved in.
        **common: arguments of :class:`Engine`.
    """

    sampling_keys = (*_SAMPLING, "min_tokens")

    def __init__(
        self,
        model: str,
        sampling: Mapping[str, Any],
        *,
        batch_size: int = 16,
        dtype: str | None = None,
        **common: Any,
    ) -> None:
        super().__init__(model, _SAMPLING | dict(sampling), **common)
        require_positive(batch_size=batch_size)
        self.asked_dtype = dtype
        self.batch_size = batch_size
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = dtype or ("float32" if self.device == "cpu" else "auto")

    @property
    def _settings(self) -> dict[str, Any]:
        # a batch shares its random numbers
        return {
            "engine": "transformers",
            "sampling": {k: v for k, v in self.sampling.items() if k != "frequency_penalty"},
            "batch_size": self.batch_size,
            "dtype": self.asked_dtype,
            "chat_template": self.chat_template,
            **model_identity(self.model, self.revision),
        }

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        options = {"revision": self.revision, "trust_remote_code": self.trust_remote_code}
        advice = "Name in generator.model a folder with a chat model, or one on the hub that this machine can reach."
        tokenizer = load(AutoTokenizer, self.model, advice, group="generator", **options)
        model = load(AutoModelForCausalLM, self.model, advice, group="generator", dtype=self.dtype, **options)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer, model.to(self.device).eval()

    def answer(
        self, conversations: Sequence[Conversation], seeds: Sequence[int], advance: Callable[[int], None]
    ) -> list[Answer]:
        """See :class:`Engine`."""
        tokenizer, _ = self._loaded
        # the template's own special tokens are all that a prompt needs
        try:
            texts = [
                tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True, **self.chat_template)
                for c in conversations
            ]
        except (ValueError, TemplateError) as error:
            raise refused(self.model, error) from error
        prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        order = sorted(range(len(prompts)), key=lambda n: (-len(prompts[n]), n))
        answers: dict[int, Answer] = {}
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            with torch.random.fork_rng(), torch.inference_mode():
                torch.manual_seed(sum(seeds[n] for n in batch) % 2**31)
                found = self._generate([prompts[n] for n in batch])
            answers |= dict(zip(batch, found, strict=True))
            advance(len(batch))
        return [answers[n] for n in range(len(prompts))]

    def release(self) -> None:
        """See :class:`Engine`."""
        if self.__dict__.pop("_loaded", None) is not None:
            torch.cuda.empty_cache()

    def _generate(self, prompts: list[list[int]]) -> list[Answer]:
        tokenizer, model = self._loaded
        length = max(map(len, prompts))
        ids = torch.full((len(prompts), length), tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):  # on the left, so that every answer begins at one place
            ids[row, length - len(prompt) :] = torch.tensor(prompt)
            mask[row, length - len(prompt) :] = 1
        temperature = self.sampling["temperature"]
        random = {"do_sample": True, "temperature": temperature, "top_p": self.sampling["top_p"], "top_k": 0}
        output = model.generate(
            input_ids=ids.to(self.device),
            attention_mask=mask.to(self.device),
            max_new_tokens=self.sampling["max_tokens"],
            min_new_tokens=self.sampling.get("min_tokens"),
            pad_token_id=tokenizer.pad_token_id,
            stop_strings=list(self.sampling["stop"]) or None,
            tokenizer=tokenizer,
            **(random if temperature > 0 else {"do_sample": False}),
        )
        return [self._answer(row[length:].tolist()) for row in output]

    def _answer(self, ids: list[int]) -> Answer:
        tokenizer, _ = self._loaded
        special = set(tokenizer.all_special_ids)
        end = next((n for n, token in enumerate(ids) if token in special), None)
        text = tokenizer.decode(ids[:end], skip_special_tokens=True)
        stops = [text.find(stop) for stop in self.sampling["stop"] if stop in text]
        finished = end is not None or bool(stops)
        return Answer(text[: min(stops)] if stops else text, finished)
