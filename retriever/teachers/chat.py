"""ChatTeacher: a teacher that asks a chat model behind a server."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from retriever.chat import ChatClient, Conversation
from retriever.errors import InputError, require_positive, shown
from retriever.teachers.base import Teacher
from retriever.web import check_address

_THOUGHT = "</think>"


class ChatTeacher(Teacher):
    """Asks a server that speaks OpenAI's protocol, by :class:`~retriever.chat.ChatClient`.

    Args:
        model: what the server calls it.
        base_url: for example ``http://host:8000/v1``; it does not count as a part of what decides the scores.
        prompt: what the model is asked, with the subclass's ``places``.
        max_characters: of a passage, at most; a longer one is cut.
        sampling: of the chat completion: temperature, max_tokens, seed, …
        chat_template: variables of the chat template, for servers that take ``chat_template_kwargs``, as vLLM does.
        key_variable: as for :class:`~retriever.web.WebClient`, as are the others.
        parallel: requests under way at once.
        retries: of one request.
        timeout: of one try, in seconds.
    """

    kind: str
    meaning: str
    places: tuple[str, ...]

    def __init__(
        self,
        model: str,
        *,
        base_url: str,
        prompt: str,
        max_characters: int = 2048,
        sampling: Mapping[str, Any] | None = None,
        chat_template: Mapping[str, Any] | None = None,
        key_variable: str = "OPENAI_API_KEY",
        parallel: int = 8,
        retries: int = 5,
        timeout: float = 600.0,
    ) -> None:
        require_positive(**{"teacher.max_characters": max_characters})
        for place in self.places:
            if f"{{{place}}}" not in prompt:
                raise InputError(f"teacher.prompt is {shown(prompt)}; it must hold {{{place}}}.")
        check_address("teacher.base_url", base_url, key_variable)
        self.model = model
        self.prompt = prompt
        self.max_characters = max_characters
        self.sampling = dict(sampling or {})
        self.chat_template = dict(chat_template or {})
        web = {"key_variable": key_variable, "parallel": parallel, "retries": retries, "timeout": timeout}
        self.client = ChatClient(base_url, model, self.sampling, self.chat_template, group="teacher", **web)

    def description(self) -> dict[str, Any]:
        """See :class:`Teacher`."""
        return {
            "kind": self.kind,
            "score": self.meaning,
            "model": self.model,
            "prompt": self.prompt,
            "max_characters": self.max_characters,
            "sampling": self.sampling,
            "chat_template": self.chat_template,
        }

    def filled(self, **values: str) -> Conversation:
        """Fill the prompt's places; braces inside of what fills them are text."""
        text = re.sub(r"\{(\w+)\}", lambda place: values.get(place[1], place[0]), self.prompt)
        return [{"role": "user", "content": text}]

    def ask(self, conversations: Iterable[Conversation], **options: Any) -> list[tuple[str, dict[str, Any]]]:
        """Ask for an answer to each conversation; options are further ones of the chat completion.

        Returns:
            The text of each, without the model's thoughts, and its choice; see :meth:`ChatClient.complete`.
        """
        answers = self.client.complete({"messages": talk, **options} for talk in conversations)
        return [(text.rpartition(_THOUGHT)[2], choice) for text, choice in answers]
