"""A server that speaks OpenAI's protocol: a vLLM cluster, or any other."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datamodules.pipeline.engines.engine import Answer, Conversation, Engine
from retriever.errors import InputError, shown
from retriever.web import WebClient


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
        address = f"{base_url.rstrip('/')}/chat/completions"
        doubt = f"Is the server there, and does it serve {model!r}?"
        self.client = WebClient(address, "generator.server", key_variable, parallel, retries, timeout, doubt)

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
        same = {"model": self.model, **self.sampling}
        if self.chat_template:
            same["chat_template_kwargs"] = self.chat_template
        asked = [same | {"messages": c, "seed": seed} for c, seed in zip(conversations, seeds, strict=True)]
        found = []
        for answer in self.client.post(asked):
            try:
                choice = answer.json()["choices"][0]
                found.append(Answer(choice["message"]["content"] or "", choice["finish_reason"] != "length"))
            except (ValueError, LookupError, TypeError) as error:
                raise InputError(
                    f"{self.client.url} answered {shown(answer.text)}; expected a chat completion. {self.client.doubt}"
                ) from error
            advance(1)
        return found
