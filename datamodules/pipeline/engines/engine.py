"""What the engines have in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar

from datamodules.pipeline.engines.tokens import Price, PromptTokens
from retriever.errors import InputError, choose
from retriever.hashing import file_sha256
from retriever.pretrained.source import local_folder

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
    """A chat model that answers conversations. Nothing is loaded before the first call of :meth:`answer`.

    Attributes:
        sampling_keys: what ``sampling`` may hold.
        asks_ahead: whether it is faster with the conversations of many blocks, which :meth:`ask_ahead` takes.
        asked: what the configuration leaves to the machine (engine ``auto``, a packaged model), in its own words.
        price: of a million tokens; None where none is known.

    Args:
        model: folder, hub name, or what a server calls it.
        sampling: how tokens are drawn.
        chat_template: variables of the model's chat template.
        revision: on the hub.
        trust_remote_code: run code that the model brings.
    """

    sampling_keys: ClassVar[Collection[str]]
    asks_ahead: ClassVar[bool] = False

    def __init__(
        self,
        model: str,
        sampling: Mapping[str, Any],
        chat_template: Mapping[str, Any] | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        for key in sampling:
            choose("generator.sampling: the key", key, self.sampling_keys)
        self.model, self.revision, self.trust_remote_code = model, revision, trust_remote_code
        self.sampling, self.chat_template = dict(sampling), dict(chat_template or {})
        self.asked: dict[str, Any] = {}
        self.price: Price | None = None

    def settings(self) -> dict[str, Any]:
        """JSON values that decide what is answered, as asked for: the same on machines with and without a GPU."""
        return self._settings | self.asked

    @property
    @abstractmethod
    def _settings(self) -> dict[str, Any]:
        """Model, its content, sampling, how seeds work."""

    @cached_property
    def prompt_tokens(self) -> PromptTokens:
        """Counts the tokens of prompts."""
        return PromptTokens(self.model, self.revision, self.trust_remote_code, self.chat_template)

    def open(self, folder: Path) -> None:  # noqa: B027 - a local model pays for nothing
        """Keep in a folder what is paid for, and find there what was."""

    def ask_ahead(  # noqa: B027 - most are as fast block by block
        self, blocks: Iterable[tuple[Sequence[Conversation], Sequence[int]]]
    ) -> None:
        """Ask for the answers to conversations, with their seeds, of many blocks at once, see :attr:`asks_ahead`."""

    def usage(self) -> dict[str, Any]:
        """Tokens and their cost, as far as they were counted, for the counts of a stage."""
        return {}

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


def refused(model: str, error: Exception) -> InputError:
    """What to say where a model takes no such conversation."""
    return InputError(
        f"{model} does not take these conversations: {' '.join(str(error).split())[:300]} A chat template without a "
        "system role needs generate.system=null; a prompt that is too long a smaller generate.max_characters, or a "
        "larger generator.vllm.max_model_len."
    )


@cache
def model_identity(model: str, revision: str | None) -> dict[str, Any]:
    """What a model is known by: a folder by its name and its files' SHA-256, a hub model by name and revision."""
    folder = local_folder(model, revision, "generator.model")
    if folder is None:
        return {"model": model, "revision": revision}
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"{folder}: no *.safetensors in it. Name a folder with weights, or a model on the hub.")
    # tokenizer, chat template and generation defaults decide as well as weights
    files = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".json", ".jinja", ".model", ".txt"))
    return {"model": folder.name, "files": {p.name: file_sha256(p) for p in files}}
