"""EncoderSpec: how a text becomes an embedding, beside the weights."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import get_type_hints

from retriever.errors import InputError, choose
from retriever.typed import check_value

KINDS = ("query", "passage")
DEFAULT = "default"  # the prompt of texts whose names have none
POOLINGS = ("cls", "mean", "last")


@dataclass(frozen=True)
class EncoderSpec:
    """How a text becomes an embedding, beside the weights.

    Attributes:
        pooling: ``cls``, ``mean`` or ``last``.
        query_prompt: put before every query unchanged (a trailing space counts); or name → prompt, where a name is a
            query type, an evaluation set or a corpus, and ``default`` is for all others, see :meth:`prompted_for`.
        passage_prompt: put before every passage; or name → prompt, of corpora.
        passage_titles: a passage is its title, a space and its text; False: its text alone, an empty one where it has
            none. Whoever reads passages from a corpus for an encoder goes by it.
        query_max_length: tokens of a query, prompt and special tokens included; what is longer is cut.
        passage_max_length: the same for a passage.
        normalize: scale embeddings to length 1, so that inner products are cosines.
        truncate_dim: keep this number of dimensions from the start (before normalising), as Matryoshka models allow.
    """

    pooling: str = "mean"
    query_prompt: str | Mapping[str, str] = ""
    passage_prompt: str | Mapping[str, str] = ""
    passage_titles: bool = True
    query_max_length: int = 64
    passage_max_length: int = 512
    normalize: bool = True
    truncate_dim: int | None = None

    def __post_init__(self) -> None:
        """Check the values, which may come from a model's files."""
        for name, hint in get_type_hints(EncoderSpec).items():
            check_value(f"encoder.{name}", hint, getattr(self, name))
        for name in ("query_prompt", "passage_prompt"):
            given = getattr(self, name)
            for key, prompt in given.items() if isinstance(given, Mapping) else ():
                if not isinstance(key, str) or not isinstance(prompt, str):
                    raise InputError(
                        f"encoder.{name} has {key!r}: {prompt!r}; expected a name and its prompt, as texts."
                    )
        choose("encoder.pooling", self.pooling, POOLINGS)
        for name in ("query_max_length", "passage_max_length"):
            if getattr(self, name) < 3:
                raise InputError(f"encoder.{name} is {getattr(self, name)}; it must be at least 3 tokens.")
        if self.truncate_dim is not None and self.truncate_dim < 1:
            raise InputError(f"encoder.truncate_dim is {self.truncate_dim}; it must be at least 1, or null.")

    def prompt(self, kind: str) -> str:
        """Return the prompt for ``query`` or ``passage``; of several, the default."""
        given = self.query_prompt if choose("kind", kind, KINDS) == "query" else self.passage_prompt
        return given.get(DEFAULT, "") if isinstance(given, Mapping) else given

    def prompted_for(self, *names: str | None) -> "EncoderSpec":
        """Choose among several prompts: of the first name that has one, else the default.

        Args:
            names: of what texts belong to, the most particular first: a query's type or evaluation set, its corpus.
        """

        def chosen(given: str | Mapping[str, str]) -> str:
            if isinstance(given, str):
                return given
            return next((given[name] for name in (*names, DEFAULT) if name is not None and name in given), "")

        return replace(self, query_prompt=chosen(self.query_prompt), passage_prompt=chosen(self.passage_prompt))

    @property
    def prompted_names(self) -> set[str]:
        """Return the names that have a prompt of their own."""
        given = [p for p in (self.query_prompt, self.passage_prompt) if isinstance(p, Mapping)]
        return {name for prompts in given for name in prompts} - {DEFAULT}

    def max_length(self, kind: str) -> int:
        """Return the most tokens of a ``query`` or ``passage``."""
        return self.query_max_length if choose("kind", kind, KINDS) == "query" else self.passage_max_length
