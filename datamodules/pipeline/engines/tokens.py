"""Tokens of prompts before they are sent, and what tokens cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2 import TemplateError

from retriever.errors import InputError

_MILLION = 1_000_000
_BYTES = 4  # of UTF-8 a token: four characters of English, two of Russian, one or two of Chinese


@dataclass(frozen=True)
class Price:
    """Prices of a million tokens, in any currency (``generator.price``).

    Attributes:
        input: of prompts.
        output: of answers.
    """

    input: float
    output: float

    def __post_init__(self) -> None:
        """Check the values."""
        for name, value in vars(self).items():
            if not 0 <= value < float("inf"):
                raise InputError(f"{name} is {value}; it must be a number of at least 0.")

    def of(self, prompt_tokens: float, answer_tokens: float) -> float:
        """The price of some tokens."""
        return (self.input * prompt_tokens + self.output * answer_tokens) / _MILLION


class PromptTokens:
    """Counts the tokens of conversations, by the model's tokenizer where this machine has it.

    Args:
        model: folder or hub name; what a server calls it may be one.
        revision: on the hub.
        trust_remote_code: run the Python code that the model brings.
        chat_template: variables of the model's chat template.
    """

    def __init__(
        self, model: str, revision: str | None, trust_remote_code: bool, chat_template: Mapping[str, Any]
    ) -> None:
        self.model, self.chat_template = model, chat_template
        self._options = {"revision": revision, "trust_remote_code": trust_remote_code}

    def count(self, conversations: Sequence[Sequence[Mapping[str, str]]]) -> list[int]:
        """Count the tokens of each conversation."""
        if self._tokenizer is None:
            return [sum(-(-len(turn["content"].encode()) // _BYTES) for turn in talk) for talk in conversations]
        try:
            texts = [
                self._tokenizer.apply_chat_template(
                    list(talk), tokenize=False, add_generation_prompt=True, **self.chat_template
                )
                for talk in conversations
            ]
        except (ValueError, TemplateError):  # none, or another than the server has
            texts = ["\n".join(turn["content"] for turn in talk) for talk in conversations]
        return [len(ids) for ids in self._tokenizer(texts, add_special_tokens=False)["input_ids"]] if texts else []

    @property
    def way(self) -> str:
        """How they are counted, for people."""
        if self._tokenizer is None:
            return f"estimated as UTF-8 bytes / {_BYTES}, for this machine has no tokenizer of {self.model}"
        return f"counted by the tokenizer of {self.model}"

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self.model, local_files_only=True, **self._options)
        except Exception:  # no name of the hub, not downloaded, not readable: whatever it is, there is no tokenizer
            return None
