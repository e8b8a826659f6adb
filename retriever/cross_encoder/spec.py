"""PairSpec: how much of queries and passages a cross-encoder reads."""

from dataclasses import dataclass

from retriever.encoder.spec import KINDS
from retriever.errors import InputError, choose


@dataclass(frozen=True)
class PairSpec:
    """How long queries, passages and pairs may be, in tokens, special tokens included.

    Attributes:
        query_max_length: what is longer is cut; a pair never cuts a query further.
        passage_max_length: of a passage alone, as it is kept in the token cache. Where it is less than
            ``pair_max_length``, an exported model reads more of a long passage than was read here.
        pair_max_length: of query and passage together; the passage is cut to what the query leaves.
    """

    query_max_length: int = 64
    passage_max_length: int = 512
    pair_max_length: int = 512

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("query_max_length", "passage_max_length"):
            if getattr(self, name) < 3:
                raise InputError(f"encoder.{name} is {getattr(self, name)}; it must be at least 3 tokens.")

    def prompt(self, kind: str) -> str:
        """Return the empty text: cross-encoders have no prompts."""
        return ""

    def max_length(self, kind: str) -> int:
        """Return the most tokens of a ``query`` or ``passage`` alone."""
        return self.query_max_length if choose("kind", kind, KINDS) == "query" else self.passage_max_length
