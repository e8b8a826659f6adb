"""Asks a chat model behind a server that speaks OpenAI's protocol: vLLM's, llama.cpp's, or a hosted one."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from requests import Response

from retriever.errors import InputError, shown
from retriever.web import WebClient

Conversation = list[dict[str, str]]  # of {"role": …, "content": …}


class Completion(NamedTuple):
    """What a model answered.

    Attributes:
        text: of the first choice.
        choice: the first choice, as the protocol has it.
        usage: the protocol's numbers of tokens; empty where the server gives none.
    """

    text: str
    choice: dict[str, Any]
    usage: dict[str, Any]


class ChatClient:
    """One model of one server.

    Args:
        base_url: for example ``http://host:8000/v1``.
        model: what the server calls it.
        sampling: of the chat completions.
        chat_template: variables of the chat template, for servers that take ``chat_template_kwargs``, as vLLM does.
        **client: ``group``, ``key_variable``, ``parallel``, ``retries`` and ``timeout`` of
            :class:`~retriever.web.WebClient`.
    """

    def __init__(
        self, base_url: str, model: str, sampling: Mapping[str, Any], chat_template: Mapping[str, Any], **client: Any
    ) -> None:
        doubt = f"Is the server there, and does it serve {model!r}?"
        self.web = WebClient(f"{base_url.rstrip('/')}/chat/completions", doubt=doubt, **client)
        self.same = {"model": model, **sampling}
        if chat_template:
            self.same["chat_template_kwargs"] = dict(chat_template)

    def complete(self, requests: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Complete conversations, many at a time.

        Args:
            requests: each with ``messages``, a :data:`Conversation`, and what else it says beside the sampling.

        Yields:
            The text of each answer and, as the protocol has it, its first choice.

        Raises:
            InputError: no answer after all retries, a refusal, or an answer of another form.
        """
        for answer in self.web.post([self.body(request) for request in requests]):
            yield self.read(answer)[:2]

    def body(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is posted for a request, see :meth:`complete`."""
        return {**self.same, **request}

    def read(self, answer: Response) -> Completion:
        """Read an answer.

        Raises:
            InputError: it has another form.
        """
        try:
            return read_completion(answer.json())
        except (ValueError, LookupError, TypeError) as error:
            raise InputError(
                f"{self.web.url} answered {shown(answer.text)}; expected a chat completion. {self.web.doubt}"
            ) from error


def read_completion(content: Any) -> Completion:
    """Read a chat completion.

    Raises:
        LookupError, TypeError: it is none.
    """
    choice = content["choices"][0]
    text, _ = choice["message"]["content"] or "", choice["finish_reason"]
    usage = content.get("usage")
    return Completion(text, choice, usage if isinstance(usage, dict) else {})
