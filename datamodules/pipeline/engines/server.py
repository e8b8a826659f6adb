"""A server that speaks OpenAI's protocol: a vLLM cluster, or any other."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datamodules.pipeline.engines.engine import Answer, Conversation, Engine
from retriever.chat import ChatClient
from retriever.errors import InputError


class ServerEngine(Engine):
    """Chat completions, many at a time, each with its seed.

    Args:
        model: what the server calls it.
        sampling: of the chat completion.
        chat_template: variables of the chat template, for servers that take ``chat_template_kwargs``, as vLLM does.
        base_url: for example ``http://host:8000/v1``.
        key_variable: as for :class:`~retriever.web.WebClient`, as are the others.
        parallel: requests under way at once.
        retries: of one request.
        timeout: of one request, in seconds.
    """

    sampling_keys = ("temperature", "top_p", "max_tokens", "min_tokens", "frequency_penalty", "stop")

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
        super().__init__(model, sampling, chat_template)
        if not base_url:
            raise InputError("generator.server.base_url is not set; name the server, as in http://host:8000/v1.")
        web = {"key_variable": key_variable, "parallel": parallel, "retries": retries, "timeout": timeout}
        self.client = ChatClient(base_url, model, self.sampling, self.chat_template, group="generator.server", **web)

    @property
    def _settings(self) -> dict[str, Any]:
        # the address does not decide what is answered
        own = {"sampling": self.sampling, "chat_template": self.chat_template}
        return {"engine": "server", "model": self.model, **own}

    def release(self) -> None:
        """Nothing is held here."""

    def answer(
        self, conversations: Sequence[Conversation], seeds: Sequence[int], advance: Callable[[int], None]
    ) -> list[Answer]:
        """See :class:`Engine`."""
        found = []
        asked = [{"messages": talk, "seed": seed} for talk, seed in zip(conversations, seeds, strict=True)]
        for text, choice in self.client.complete(asked):
            found.append(Answer(text, choice["finish_reason"] != "length"))
            advance(1)
        return found
