"""Answers of a server, kept as they come, so that what was paid for is asked for once."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any
from uuid import uuid4

from datamodules.pipeline.engines.engine import Answer
from datamodules.storage.files import disk_full, is_disk_full
from retriever.chat import Completion
from retriever.errors import InputError


def request_id(body: Mapping[str, Any]) -> str:
    """Name a request by its content: 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Paid:
    """An answer and what the server says that it took.

    Attributes:
        request: see :func:`request_id`.
        text: of the answer.
        finished: False where it was cut at the maximum number of tokens.
        prompt_tokens: by the server's count; where it gives none, the estimate.
        answer_tokens: the same; where it gives none, 0.
        estimate: of the prompt's tokens, before it was sent; 0 where none was made.
    """

    request: str
    text: str
    finished: bool
    prompt_tokens: int
    answer_tokens: int
    estimate: int = 0

    @classmethod
    def of(cls, request: str, found: Completion, estimate: int = 0) -> "Paid":
        """From a chat completion."""
        tokens = found.usage.get("prompt_tokens") or estimate, found.usage.get("completion_tokens") or 0
        text = found.text.encode(errors="replace").decode()  # half a character cannot be written
        return cls(request, text, found.choice["finish_reason"] != "length", *tokens, estimate)


class AnswerJournal:
    """Answers by request, in memory and, once :meth:`open` is called, in a folder.

    Each process appends to a file of its own, and reads those of the others.

    Attributes:
        answers: request → answer.
        prompt_tokens: of all answers together.
        answer_tokens: likewise.
        longer: how many times longer than its estimate a prompt has been, at most; at least 1.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.prompt_tokens = self.answer_tokens = 0
        self.longer = 1.0
        self._own: Path | None = None
        self._read: dict[Path, int] = {}  # file → bytes that were read
        self._lock = Lock()

    def open(self, folder: Path) -> None:
        """Keep answers in a folder from now on, and read those that are there."""
        folder.mkdir(parents=True, exist_ok=True)
        self._own = folder / f"{uuid4().hex}.jsonl"
        self.refresh()

    def refresh(self) -> None:
        """Read what other processes have added."""
        others = sorted(self._own.parent.glob("*.jsonl")) if self._own else ()
        for path in others:
            if path == self._own:
                continue
            with open(path, "rb") as file:
                file.seek(self._read.get(path, 0))
                added = file.read()
            added = added[: added.rfind(b"\n") + 1]  # a process that was killed left a part of a line
            self._read[path] = self._read.get(path, 0) + len(added)
            with self._lock:
                self._take(Paid(**json.loads(line)) for line in added.split(b"\n") if line)

    def add(self, paid: Iterable[Paid]) -> None:
        """Keep answers.

        Raises:
            InputError: the disk is full.
        """
        paid = list(paid)
        with self._lock:
            self._take(paid)
            if self._own is None:
                return
            try:
                with open(self._own, "ab") as file:
                    file.write("".join(json.dumps(vars(p), ensure_ascii=False) + "\n" for p in paid).encode())
            except OSError as error:
                if is_disk_full(error, self._own.parent):
                    raise InputError(disk_full(self._own)) from error
                raise

    def _take(self, paid: Iterable[Paid]) -> None:
        for p in paid:
            if p.request in self.answers:
                continue
            self.answers[p.request] = Answer(p.text, p.finished)
            self.prompt_tokens += p.prompt_tokens
            self.answer_tokens += p.answer_tokens
            if p.estimate:
                self.longer = max(self.longer, p.prompt_tokens / p.estimate)
