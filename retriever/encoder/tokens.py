"""Texts as token ids without padding, and how they are cut into micro-batches."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from tokenizers import normalizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from retriever.encoder.states import StoredStates
from retriever.errors import InputError


@dataclass(frozen=True)
class TokenizedTexts:
    """N texts with T tokens in total, one after the other.

    Attributes:
        ids: int32 or uint16 array [T], the token ids of all texts one after the other (may be memory-mapped).
        offsets: int64 array [N + 1] (may be memory-mapped); text ``i`` is ``ids[offsets[i]:offsets[i + 1]]``.
        states: what a backbone's frozen layers (:class:`retriever.encoder.layers.LayerSplit`) make of each token; None:
            they are computed.
    """

    ids: np.ndarray
    offsets: np.ndarray
    states: StoredStates | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Count the tokens of each text, int64 [N]; reads all offsets."""
        return np.diff(self.offsets)

    @classmethod
    def from_lists(cls, sequences: Sequence[Sequence[int]]) -> "TokenizedTexts":
        """Build from one list of token ids per text."""
        offsets = np.zeros(len(sequences) + 1, dtype=np.int64)
        np.cumsum([len(s) for s in sequences], out=offsets[1:])
        flat = np.fromiter(chain.from_iterable(sequences), dtype=np.int32, count=int(offsets[-1]))
        return cls(flat, offsets)

    @classmethod
    def from_texts(cls, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> "TokenizedTexts":
        """Tokenise, special tokens included, cutting at ``max_length`` tokens; ids int32."""

        def call(some: Sequence[str]) -> list[list[int]]:
            options = {"truncation": True, "max_length": max_length, "padding": False, "return_attention_mask": False}
            return tokenizer(list(some), **options)["input_ids"] if len(some) else []

        # The call also builds lists of masks, types and words, which nobody reads. It leaves its truncation set in the
        # backend, which gives the ids alone. Where a tokenizer does more than its backend, the first text shows it.
        backend, first = getattr(tokenizer, "backend_tokenizer", None), call(texts[:1])
        if backend is None or [e.ids for e in backend.encode_batch_fast(list(texts[:1]))] != first:
            return cls.from_lists(call(texts))
        return cls.from_lists([e.ids for e in backend.encode_batch_fast(list(texts))])

    @classmethod
    def concatenate(cls, parts: Sequence["TokenizedTexts"]) -> "TokenizedTexts":
        """Concatenate several sets of texts."""
        offsets = np.concatenate([[0], *(p.lengths for p in parts)]).cumsum().astype(np.int64)
        states = [p.states for p in parts if p.states is not None]
        joined = StoredStates.concatenate(states) if states and len(states) == len(parts) else None
        return cls(np.concatenate([p.ids for p in parts]), offsets, joined)

    def select(self, rows: np.ndarray) -> "TokenizedTexts":
        """Copy the texts in ``rows`` (integers [n]) into a new set, in that order."""
        offsets = np.concatenate([[0], self._lengths_of(rows)[1].cumsum()]).astype(np.int64)
        states = None if self.states is None else self.states.select(rows)
        return TokenizedTexts(np.asarray(self.ids[self.positions(rows)]), offsets, states)

    def positions(self, rows: np.ndarray) -> np.ndarray:
        """Say where the tokens of the texts in ``rows`` are among all T, text by text: int64 [t]."""
        rows, lengths = self._lengths_of(rows)
        before = lengths.cumsum() - lengths
        return np.repeat(self.offsets[rows] - before, lengths) + np.arange(lengths.sum())

    def part(self, start: int, stop: int) -> "TokenizedTexts":
        """Look at the texts from ``start`` up to ``stop``, without a copy."""
        offsets = self.offsets[start : stop + 1]
        states = None if self.states is None else self.states.select(slice(start, stop))
        return TokenizedTexts(self.ids[offsets[0] : offsets[-1]], offsets - offsets[0], states)

    def padded(self, rows: np.ndarray, pad_id: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Pad ``rows`` on the right: token ids and attention mask, both int64 [n, longest].

        Right padding is used for every tokenizer, also those that pad left by default: real tokens then keep
        the positions 0, 1, 2, … in backbones with absolute position embeddings.
        """
        rows, lengths = self._lengths_of(rows)
        columns = np.arange(max(1, int(lengths.max(initial=1))))
        mask = columns[None, :] < lengths[:, None]
        where = np.where(mask, self.offsets[rows][:, None] + columns[None, :], 0)
        ids = np.where(mask, self.ids[where] if len(self.ids) else pad_id, pad_id).astype(np.int64)
        return (
            torch.from_numpy(ids).to(device, non_blocking=True),
            torch.from_numpy(mask.astype(np.int64)).to(device, non_blocking=True),
        )

    def padded_states(self, rows: np.ndarray, device: torch.device | str = "cpu") -> Tensor | None:
        """Pad the states of ``rows`` on the right with 0: float32 [n, longest, D]; None where there are none."""
        if self.states is None:
            return None
        padded = torch.from_numpy(self.states.padded(*self._lengths_of(rows)))
        return padded.to(device, non_blocking=True).float()

    def inputs(self, rows: np.ndarray, pad_id: int, device: torch.device) -> tuple:
        """Make what a text encoder is called with for ``rows``: ids, mask, lengths, and states where there are any."""
        lengths = self._lengths_of(rows)[1].tolist()
        return *self.padded(rows, pad_id, device), lengths, self.padded_states(rows, device)

    def _lengths_of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = np.asarray(rows, dtype=np.int64)
        return rows, self.offsets[rows + 1] - self.offsets[rows]


@dataclass(frozen=True)
class Pairs:
    """N pairs ready for a cross-encoder: token ids and, where it has them, token types of the same offsets."""

    tokens: TokenizedTexts
    types: TokenizedTexts | None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def lengths(self) -> np.ndarray:
        """Count the tokens of each pair, int64 [N]."""
        return self.tokens.lengths

    def inputs(self, rows: np.ndarray, pad_id: int, device: torch.device) -> tuple:
        """Make what a cross-encoder is called with for ``rows``: ids and mask, and types where it has them."""
        types = None if self.types is None else self.types.padded(rows, 0, device)[0]
        return *self.tokens.padded(rows, pad_id, device), types


def lower_case(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Let a tokenizer put texts in lower case before all else, as sentence-transformers' ``do_lower_case`` does.

    Returns:
        True where that changes it.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(f"{type(tokenizer).__name__} cannot put texts in lower case, as the model asks for.")
    before = backend.normalizer
    lowered = [normalizers.Lowercase()] if before is None else [normalizers.Lowercase(), before]
    backend.normalizer = normalizers.Sequence(lowered)
    return True


def padding_token(tokenizer: PreTrainedTokenizerBase, backbone: nn.Module) -> tuple[str | None, int]:
    """Choose a token to pad with, and its id: the tokenizer's, or else the end of a text.

    Padding is masked, so it changes no embedding. But the backbone must have an embedding for the id, and it has none
    for a padding token that was added only to the tokenizer. A token that is not special yet would change how texts are
    tokenised.

    Returns:
        The token and its id; None and 0 where the tokenizer has no special token.
    """
    known = backbone.get_input_embeddings().num_embeddings
    names = (tokenizer.pad_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.bos_token)
    for token in (*names, *tokenizer.all_special_tokens):
        number = None if token is None else tokenizer.convert_tokens_to_ids(token)
        if number is not None and 0 <= number < known:
            return token, number
    return None, 0


def to_be_saved(tokenizer: PreTrainedTokenizerBase, backbone: nn.Module) -> PreTrainedTokenizerBase:
    """Copy a tokenizer, set to pad as texts are padded here, without truncation and padding left by its last call.

    Texts are padded on the right here: in a backbone with absolute positions, padding on the left would shift them.
    """
    tokenizer = copy.deepcopy(tokenizer)
    if hasattr(tokenizer, "backend_tokenizer"):
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    tokenizer.pad_token = padding_token(tokenizer, backbone)[0]
    tokenizer.padding_side = "right"
    return tokenizer


def micro_batches(lengths: np.ndarray, token_budget: int, *, on_gpu: bool = False) -> list[np.ndarray]:
    """Cut texts into micro-batches of at most ``token_budget`` tokens, padding included.

    Texts are sorted by length, the longest first, so that a budget that is too large for the memory fails at once. On a
    CPU a micro-batch ends early where the next text is more than 3% shorter than its longest, unless it has fewer than
    256 tokens (or an eighth of the budget); so hardly any padding is computed. On a GPU none ends early: launching the
    kernels of one more micro-batch takes longer than that padding. A text longer than the budget is alone in its batch.

    Args:
        lengths: tokens of each text, [N].
        token_budget: rows × longest row that a micro-batch may have, at least 1.
        on_gpu: whether they are encoded on a GPU.

    Returns:
        Row numbers, one int64 array per micro-batch; concatenated, a permutation of ``range(N)``.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    falling = np.maximum(np.asarray(lengths, dtype=np.int64)[order], 1)
    batches, start = [], 0
    while start < len(order):
        longest = int(falling[start])
        size = token_budget // longest
        if not on_gpu:
            alike = int(np.searchsorted(-falling, -0.97 * longest, side="right")) - start
            enough = -(-min(token_budget // 8, 256) // longest)
            size = min(size, max(alike, enough))
        size = max(1, size)
        batches.append(order[start : start + size])
        start += size
    return batches


def padding_share(lengths: np.ndarray, parts: list[np.ndarray]) -> float:
    """Compute the share of tokens that is padding, in [0, 1), where ``parts`` are encoded as micro-batches."""
    computed = sum(len(rows) * max(1, int(lengths[rows].max())) for rows in parts)
    return 1 - float(np.sum(lengths)) / max(1, computed)
