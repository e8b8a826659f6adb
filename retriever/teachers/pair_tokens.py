"""Tokenises pairs: a template around query and passage, of which only the passage is cut."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from retriever.encoder.tokens import TokenizedTexts
from retriever.errors import InputError

_FIXED, _QUERY, _PASSAGE = 0, 1, 2
_OWNERS = {"{query}": _QUERY, "{passage}": _PASSAGE}
# of each pair, see TokenizedPairs
_FACTS = {
    "truncated": bool,
    "before": np.int64,
    "after": np.int64,
    "passage_ends": np.int64,
    "query_truncated": bool,
    "query_ends": np.int64,
}
_BLOCK = 1_000  # pairs whose character offsets are held at a time


@dataclass(frozen=True)
class TokenizedPairs:
    """n pairs.

    Attributes:
        tokens: their token ids, template included.
        types: the same shape, token type ids; None where the tokenizer gives none.
        truncated: bool [n], where the passage was cut.
        before: int64 [n], tokens in front of the template's part that holds the passage.
        after: int64 [n], tokens after that part.
        passage_ends: int64 [n], characters of the passage that are left.
        query_truncated: bool [n], where the query was cut.
        query_ends: int64 [n], characters of the query that are left.
    """

    tokens: TokenizedTexts
    types: TokenizedTexts | None
    truncated: np.ndarray
    before: np.ndarray
    after: np.ndarray
    passage_ends: np.ndarray
    query_truncated: np.ndarray
    query_ends: np.ndarray


@dataclass(frozen=True)
class _Encoded:
    """One part of one pair: token ids, types, which text each token belongs to, and where in it the token ends."""

    ids: np.ndarray
    types: np.ndarray | None
    owners: np.ndarray
    ends: np.ndarray


class PairTokenizer:
    """Puts query and passage into a template and cuts the passage's last tokens until the whole fits.

    The text is tokenised whole and then cut by tokens, so that the rest of a long passage and the template after it
    have the same tokens as in a pair that fits.

    Args:
        tokenizer: a fast one (it says which characters each token covers).
        max_length: tokens of a pair, at most.
        query_max_length: tokens of a query, at most; a longer one is cut.
        template: one text with ``{query}`` and ``{passage}``, to which the tokenizer adds its special tokens; or
            several, each tokenised by itself, without special tokens other than those written out. None: as the
            tokenizer joins two texts.
        reserve_query: cut each passage as if its query had ``query_max_length`` tokens, to the same tokens whatever
            its query is.

    Raises:
        InputError: a slow tokenizer, a template without its two places, no room for a passage.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        query_max_length: int,
        template: str | Sequence[str] | None = None,
        *,
        reserve_query: bool = False,
    ) -> None:
        if not tokenizer.is_fast:
            raise InputError(
                f"{tokenizer.name_or_path} has a slow tokenizer, which does not say which characters a token covers. "
                "Save a tokenizer.json beside the model."
            )
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.query_max_length = query_max_length
        self.reserve_query = reserve_query
        parts = None if template is None else [template] if isinstance(template, str) else list(template)
        self._parts = None if parts is None else [re.split(r"(\{query\}|\{passage\})", part) for part in parts]
        if parts is not None:
            for place in _OWNERS:
                if "".join(parts).count(place) != 1:
                    raise InputError(f"The teacher's template {parts} must hold {place} exactly once.")
            self._passage_part = next(i for i, part in enumerate(parts) if "{passage}" in part)
        fixed = len(self([""], [""]).tokens.ids)
        if fixed + query_max_length >= max_length:
            raise InputError(
                f"teacher.max_length is {max_length}: after {fixed} tokens of the template and {query_max_length} of "
                "the query (teacher.query_max_length) nothing is left for the passage. Raise the one or lower the "
                "other."
            )

    def __call__(self, queries: Sequence[str], passages: Sequence[str]) -> TokenizedPairs:
        """Tokenise n pairs, ``queries[i]`` with ``passages[i]``."""
        pairs = []
        for start in range(0, len(queries), _BLOCK):
            block = slice(start, start + _BLOCK)
            pairs += [self._fit(parts) for parts in self._encode(list(queries[block]), list(passages[block]))]
        types = [types for _, types, _ in pairs if types is not None]  # of all pairs or of none
        facts = np.array([facts for _, _, facts in pairs], dtype=list(_FACTS.items()))
        return TokenizedPairs(
            tokens=_ragged([ids for ids, _, _ in pairs]),
            types=_ragged(types) if types else None,
            **{name: facts[name] for name in _FACTS},
        )

    def _encode(self, queries: list[str], passages: list[str]) -> list[list[_Encoded]]:
        """Tokenise the parts of each pair, uncut."""
        if self._parts is None:
            return [[encoded] for encoded in self._encode_together(queries, passages)]
        special = len(self._parts) == 1
        columns = [self._encode_part(pieces, queries, passages, special) for pieces in self._parts]
        return [list(parts) for parts in zip(*columns, strict=True)]

    def _encode_together(self, queries: list[str], passages: list[str]) -> list[_Encoded]:
        batch = self.tokenizer(queries, passages, padding=False, truncation=False, verbose=False)
        has_types = "token_type_ids" in batch
        encoded = []
        for row in batch.encodings:
            # the tokenizer says 0 for the first text, 1 for the second, None for what it put around them
            owners = np.array([_FIXED if s is None else s + 1 for s in row.sequence_ids], dtype=np.int8)
            ends = np.array([end for _, end in row.offsets], dtype=np.int64)
            types = np.array(row.type_ids, dtype=np.int32) if has_types else None
            encoded.append(_Encoded(np.array(row.ids, dtype=np.int32), types, owners, ends))
        return encoded

    def _encode_part(self, pieces: list[str], queries: list[str], passages: list[str], special: bool) -> list[_Encoded]:
        filled = [_fill(pieces, query, passage) for query, passage in zip(queries, passages, strict=True)]
        if not any(piece in _OWNERS for piece in pieces):
            filled = filled[:1]  # the same for every pair
        batch = self.tokenizer(
            [text for text, _ in filled],
            add_special_tokens=special,
            padding=False,
            truncation=False,
            verbose=False,
        )
        encoded = []
        for row, (_, spans) in zip(batch.encodings, filled, strict=True):
            ends = np.array([end for _, end in row.offsets], dtype=np.int64)
            owners = np.zeros(len(ends), dtype=np.int8)
            # by a token's end: a space that a tokenizer joins to the next word belongs to that word; a token that
            # reaches into the template belongs to the template, and is kept
            within = np.zeros_like(ends)
            for owner, (first, last) in spans.items():
                inside = (ends > first) & (ends <= last)
                owners[inside], within[inside] = owner, ends[inside] - first
            encoded.append(_Encoded(np.array(row.ids, dtype=np.int32), None, owners, within))
        return encoded * len(queries) if len(encoded) < len(queries) else encoded

    def _fit(self, parts: list[_Encoded]) -> tuple[np.ndarray, np.ndarray | None, tuple]:
        """Cut a pair: its ids, types, and ``_FACTS``."""
        owners = np.concatenate([p.owners for p in parts])
        ends = np.concatenate([p.ends for p in parts])
        query, passage = np.flatnonzero(owners == _QUERY), np.flatnonzero(owners == _PASSAGE)
        queried = min(len(query), self.query_max_length)
        left = self.query_max_length if self.reserve_query else queried
        room = max(0, self.max_length - (len(owners) - len(query) - len(passage)) - left)
        keep = np.ones(len(owners), dtype=bool)
        keep[query[queried:]] = False
        keep[passage[room:]] = False
        kept = [int(k.sum()) for k in np.split(keep, np.cumsum([len(p.ids) for p in parts])[:-1])]
        middle = 0 if self._parts is None else self._passage_part
        facts = (
            len(passage) > room,
            sum(kept[:middle]),
            sum(kept[middle + 1 :]),
            ends[passage[:room]].max(initial=0),
            len(query) > queried,
            ends[query[:queried]].max(initial=0),
        )
        types = None if parts[0].types is None else parts[0].types[keep]
        return np.concatenate([p.ids for p in parts])[keep], types, facts


def _fill(pieces: list[str], query: str, passage: str) -> tuple[str, dict[int, tuple[int, int]]]:
    """Fill a part, and return where query and passage are in it; braces inside of them are text."""
    text, spans = "", {}
    for piece in pieces:
        filling = {"{query}": query, "{passage}": passage}.get(piece, piece)
        if piece in _OWNERS:
            spans[_OWNERS[piece]] = (len(text), len(text) + len(filling))
        text += filling
    return text, spans


def _ragged(rows: Sequence[np.ndarray]) -> TokenizedTexts:
    if not rows:
        return TokenizedTexts.from_lists([])
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return TokenizedTexts(np.concatenate(rows), offsets)
