"""A server that speaks OpenAI's protocol: a vLLM cluster, or any other."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

from datamodules.pipeline.engines.engine import Answer, Conversation, Engine
from retriever.errors import InputError, choose, require_positive

_SAMPLING = ("temperature", "top_p", "max_tokens", "frequency_penalty", "stop")


class ServerEngine(Engine):
    """Chat completions, many at a time, each with its seed.

    Args:
        model: what the server calls it.
        sampling: of the chat completion.
        chat_template: variables of the chat template, for servers that take ``chat_template_kwargs``, as vLLM does.
        base_url: for example ``http://host:8000/v1``.
        key_variable: environment variable that holds the key; the key itself stands in no file.
        parallel: requests under way at once.
        retries: of one request, with growing pauses.
        timeout: of one request, in seconds.
    """

    def __init__(
        self,
        model: str,
        sampling: Mapping[str, Any],
        *,
        chat_template: Mapping[str, Any] | None = None,
        base_url: str | None = None,
        key_variable: str = "OPENAI_API_KEY",
        parallel: int = 64,
        retries: int = 5,
        timeout: float = 600.0,
    ) -> None:
        super().__init__()
        for key in sampling:
            choose("generator.sampling: the key", key, _SAMPLING)
        require_positive(parallel=parallel, timeout=timeout)
        if not base_url:
            raise InputError("generator.server.base_url is not set; name the server, as in http://host:8000/v1.")
        self.model = model
        self.sampling = dict(sampling)
        self.chat_template = dict(chat_template or {})
        self.base_url = base_url
        self.key_variable = key_variable
        self.parallel = parallel
        self.retries = retries
        self.timeout = timeout

    @property
    def _settings(self) -> dict[str, Any]:
        # the address does not decide what is answered
        own = {"sampling": self.sampling, "chat_template": self.chat_template}
        return {"engine": "server", "model": self.model, **own}

    @cached_property
    def _client(self) -> Any:
        try:
            from openai import OpenAI
        except ImportError as error:
            raise InputError("generator.engine is server, which needs a package: pip install '.[server]'") from error
        return OpenAI(
            base_url=self.base_url,
            api_key=os.environ.get(self.key_variable, "none"),
            max_retries=self.retries,
            timeout=self.timeout,
        )

    def release(self) -> None:
        """Nothing is held here."""

    def answer(
        self, conversations: Sequence[Conversation], seeds: Sequence[int], advance: Callable[[int], None]
    ) -> list[Answer]:
        """See :class:`Engine`."""
        client = self._client
        from openai import OpenAIError

        def ask(conversation: Conversation, seed: int) -> Answer:
            extra = {"extra_body": {"chat_template_kwargs": self.chat_template}} if self.chat_template else {}
            done = client.chat.completions.create(
                model=self.model, messages=conversation, seed=seed, **self.sampling, **extra
            ).choices[0]
            advance(1)
            return Answer(done.message.content or "", done.finish_reason != "length")

        try:
            with ThreadPoolExecutor(self.parallel) as pool:
                return list(pool.map(ask, conversations, seeds))
        except OpenAIError as error:
            raise InputError(
                f"{self.base_url}: {' '.join(str(error).split())[:300]} (after {self.retries} retries). Is the server "
                f"there, and does it serve {self.model!r}? What is done so far is kept; start again to go on."
            ) from error
