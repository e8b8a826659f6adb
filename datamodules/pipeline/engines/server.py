"""A server that speaks OpenAI's protocol: a vLLM cluster, or any other."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from requests import Response

from datamodules.pipeline.engines.budget import Budget
from datamodules.pipeline.engines.engine import Answer, Conversation, Engine
from datamodules.pipeline.engines.journal import AnswerJournal, Paid, request_id
from datamodules.pipeline.engines.tokens import Price
from retriever.chat import ChatClient
from retriever.errors import InputError, require_positive

Request = tuple[str, int, dict[str, Any]]  # its name, its prompt's tokens by an estimate, what is posted


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
        requests_per_minute: at most; None: any number.
        tokens_per_minute: at most, prompts and the longest answers together; None: any number.
        price: of a million tokens.
        budget: what all answers may cost, in the price's currency; None: anything.
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
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        price: Price | None = None,
        budget: float | None = None,
    ) -> None:
        super().__init__(model, sampling, chat_template)
        self.price = price
        if not base_url:
            raise InputError("generator.server.base_url is not set; name the server, as in http://host:8000/v1.")
        web = {"key_variable": key_variable, "parallel": parallel, "retries": retries, "timeout": timeout}
        self.client = ChatClient(base_url, model, self.sampling, self.chat_template, group="generator.server", **web)
        self.journal = AnswerJournal()
        self.budget = Budget(self.journal, price, budget)
        self.pace = _Pace(requests_per_minute, tokens_per_minute)
        self._longest = self.sampling.get("max_tokens")
        self._estimates = budget is not None or tokens_per_minute is not None
        if self._estimates and not self._longest:
            raise InputError(
                "generator.budget and generator.server.tokens_per_minute need generator.sampling.max_tokens."
            )

    @property
    def _settings(self) -> dict[str, Any]:
        # neither the address nor a batch decides what is answered
        own = {"sampling": self.sampling, "chat_template": self.chat_template}
        return {"engine": "server", "model": self.model, **own}

    def open(self, folder: Path) -> None:
        """See :class:`Engine`."""
        self.journal.open(folder)

    def usage(self) -> dict[str, Any]:
        """See :class:`Engine`."""
        self.journal.refresh()
        found = {"prompt_tokens": self.journal.prompt_tokens, "answer_tokens": self.journal.answer_tokens}
        return found | ({"cost": round(self.budget.spent, 6)} if self.price else {})

    def release(self) -> None:
        """Nothing is held here."""

    def answer(
        self, conversations: Sequence[Conversation], seeds: Sequence[int], advance: Callable[[int], None]
    ) -> list[Answer]:
        """See :class:`Engine`."""
        self.journal.refresh()
        bodies = self._bodies(conversations, seeds)
        requests = self._missing(bodies)
        advance(len(bodies) - len(requests))
        for _ in self.client.web.post(requests, around=self._ask):
            advance(1)
        return [self.journal.answers[request_id(body)] for body in bodies]

    def _bodies(self, conversations: Sequence[Conversation], seeds: Sequence[int]) -> list[dict[str, Any]]:
        asked = zip(conversations, seeds, strict=True)
        return [self.client.body({"messages": talk, "seed": seed}) for talk, seed in asked]

    def _missing(self, bodies: Sequence[dict[str, Any]]) -> list[Request]:
        """Requests that have no answer yet, each once."""
        named = {request_id(body): body for body in bodies}
        missing = [(name, body) for name, body in named.items() if name not in self.journal.answers]
        talks = [body["messages"] for _, body in missing]
        estimates = self.prompt_tokens.count(talks) if self._estimates else [0] * len(talks)
        return [(name, estimate, body) for (name, body), estimate in zip(missing, estimates, strict=True)]

    def _most(self, estimate: int) -> float:
        return self.budget.most(estimate, self._longest or 0)

    def _ask(self, post: Callable[[Any], Response], request: Request) -> Response:
        """Ask for one answer, as pace and budget allow, and keep it at once: it is paid for."""
        name, estimate, body = request
        cost = self._most(estimate)
        self.budget.reserve(cost)
        try:
            self.pace.wait(estimate + (self._longest or 0))
            answer = post(body)
            self.journal.add([Paid.of(name, self.client.read(answer), estimate)])
        finally:
            self.budget.release(cost)
        return answer


class _Pace:
    """Spreads requests evenly, so that no minute has more than a number of them, or of their tokens."""

    def __init__(self, requests: float | None, tokens: float | None) -> None:
        limits = {"requests_per_minute": requests, "tokens_per_minute": tokens}
        require_positive(**{f"generator.server.{name}": limit for name, limit in limits.items()})
        self._requests, self._tokens = requests, tokens
        self._next = 0.0
        self._lock = Lock()

    def wait(self, tokens: int) -> None:
        """Wait for the turn of a request of so many tokens."""
        share = max(1 / self._requests if self._requests else 0.0, tokens / self._tokens if self._tokens else 0.0)
        with self._lock:
            turn = max(time.monotonic(), self._next)
            self._next = turn + 60 * share
        time.sleep(max(0.0, turn - time.monotonic()))
