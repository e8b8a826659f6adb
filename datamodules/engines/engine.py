"""What the engines have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retriever.errors import InputError
from retriever.packaged_weights import file_sha256

Conversation = list[dict[str, str]]


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        text: without the prompt.
        finished: False where it was cut at the maximum number of tokens.
    """

    text: str
    finished: bool


class Engine(ABC):
    """A chat model that answers conversations. Nothing is loaded before the first call of :meth:`answer`."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """JSON values that decide what is answered: model, its content, sampling, how seeds work."""

    @abstractmethod
    def answer(
        self, conversations: Sequence[Conversation], seeds: Sequence[int], advance: Callable[[int], None]
    ) -> list[Answer]:
        """Answer a block of conversations.

        The same conversations with the same seeds, in one call, give the same answers, whatever was answered before.

        Args:
            conversations: of ``{"role": …, "content": …}``.
            seeds: one per conversation, in [0, 2^31).
            advance: called with the number of conversations that are done.
        """

    @abstractmethod
    def release(self) -> None:
        """Give the memory of a loaded model back, for the teacher that comes later."""


def model_identity(model: str, revision: str | None) -> dict[str, Any]:
    """What a model is known by: a folder by its name and its weights' SHA-256, a hub model by name and revision."""
    folder = Path(model)
    if not folder.is_dir():
        return {"model": model, "revision": revision}
    weights = sorted(p for p in folder.glob("*.safetensors") if p.is_file())
    if not weights:
        raise InputError(f"{folder}: no *.safetensors in it. Name a folder with weights, or a model on the hub.")
    return {"model": folder.name, "weights": [file_sha256(p) for p in weights]}
