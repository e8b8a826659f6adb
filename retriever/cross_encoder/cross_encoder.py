"""CrossEncoder: a Hugging Face sequence classifier with one logit that reads a query and a passage together."""

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from retriever.cross_encoder.spec import PairSpec
from retriever.encoder import packing
from retriever.encoder.encoding import Encoder
from retriever.encoder.precision import training_attention
from retriever.encoder.text_encoder import max_positions, set_dropout
from retriever.encoder.tokens import Pairs, TokenizedTexts, to_be_saved
from retriever.encoder.weights import update_with_weights
from retriever.errors import InputError, choose
from retriever.pretrained.loading import is_pair, load, load_whole, readable_length
from retriever.pretrained.preset import with_preset
from retriever.pretrained.source import find_model


@dataclass(frozen=True)
class _Template:
    """The token ids that a tokenizer puts around two texts, and token types in the order of the parts."""

    before: np.ndarray
    between: np.ndarray
    behind: np.ndarray
    types: tuple[np.ndarray, int, np.ndarray, int, np.ndarray] | None
    lead: int  # special tokens before and after a text alone
    tail: int

    @property
    def size(self) -> int:
        return len(self.before) + len(self.between) + len(self.behind)


class CrossEncoder(Encoder):
    """Scores a query and a passage by one logit; higher is more relevant.

    Args:
        backbone: a ``transformers`` sequence classifier with ``num_labels=1``.
        spec: lengths.
        **common: arguments of :class:`~retriever.encoder.encoding.Encoder`.
    """

    spec: PairSpec

    def check(self) -> None:
        """See :class:`Encoder`."""
        if self.backbone.config.num_labels != 1:
            labels = self.backbone.config.num_labels
            raise InputError(f"{self.name} has {labels} logits; a cross-encoder here has one.")
        if self.backbone.config.pad_token_id is None:  # decoders look for the last token that is not padding
            self.backbone.config.pad_token_id = self.pad_id
        self._template = _template(self.tokenizer, self.backbone, self.name)
        self._check_lengths()

    def _check_lengths(self) -> None:
        spec, template = self.spec, self._template
        single = template.lead + template.tail
        least = spec.query_max_length - single + template.size + 1
        if spec.pair_max_length < least:
            raise InputError(
                f"encoder.pair_max_length is {spec.pair_max_length}; beside a query of {spec.query_max_length} tokens "
                f"it must be at least {least}, for a passage to have room."
            )
        limit = max_positions(self.backbone)
        longest = min(
            spec.pair_max_length, spec.query_max_length + spec.passage_max_length - 2 * single + template.size
        )
        if limit and longest > limit:
            raise InputError(
                f"encoder.pair_max_length is {spec.pair_max_length}, but {self.name} has {limit} positions."
            )

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        *,
        preset: Mapping[str, object] | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        attention: str | None = None,
        dropout: float | None = None,
        **spec: int | None,
    ) -> "CrossEncoder":
        """Load a sequence classifier with one logit, or a plain backbone, which gets a new head.

        Args:
            model: a local folder or a hub name.
            preset: as for :meth:`TextEncoder.from_pretrained`, with fields of :class:`PairSpec`.
            revision: branch, tag or commit on the hub.
            trust_remote_code: run the Python code that the model folder brings. Off unless asked for.
            attention: attention implementation of ``transformers``; None takes ``sdpa``, or ``eager`` where the
                backbone has no other.
            dropout: probability set in every dropout layer; None keeps those of the model's configuration.
            **spec: fields of :class:`PairSpec`; None takes the preset's, where it is about ``model``, or else the
                default, lowered to what the model can read.

        Raises:
            InputError: no such model, no weights or tokenizer in it, a head of several logits, an unknown field or
                value, or lengths that the model cannot read.
        """
        for field in spec:
            choose("encoder option", field, PairSpec.__dataclass_fields__)
        if attention == packing.NAME:
            raise InputError("encoder.attention is 'packed', which text encoders offer; for a cross-encoder take null.")
        model = str(model)
        asked, packaged = with_preset(model, preset, spec, PairSpec.__dataclass_fields__)
        PairSpec(**asked)
        source = find_model(model, revision, packaged)
        options: dict[str, Any] = {"revision": source.revision, "trust_remote_code": trust_remote_code}
        advice = (
            "Name a folder that holds config.json, model.safetensors and tokenizer.json, or a model on the hub that "
            "this machine can reach; a classifier must have one logit."
        )
        config = load(AutoConfig, source.load_from, advice, **options)
        if is_pair(config):
            raise InputError(
                f"{model!r} is a model of encoder and decoder ({config.model_type}), or the encoder of one, "
                "which a cross-encoder here is not. Name one on an encoder (BERT, DeBERTa, …) or a decoder (Llama, …)."
            )
        if config.num_labels != 1 and any("Classification" in name for name in config.architectures or ()):
            raise InputError(
                f"{model!r} has a head of {config.num_labels} logits; a cross-encoder must have one logit. Name "
                "another classifier, or a plain backbone, which gets a new head."
            )
        backbone = load_whole(
            AutoModelForSequenceClassification,
            source.load_from,
            advice,
            _may_be_new,
            num_labels=1,
            dtype=torch.float32,
            attn_implementation=attention,
            **options,
        )
        tokenizer = load(AutoTokenizer, source.load_from, advice, **options)
        if dropout is not None:
            set_dropout(backbone, dropout)
        longest = readable_length(max_positions(backbone), tokenizer)
        defaults = asdict(PairSpec())
        lengths = {name: min(length, longest) for name, length in defaults.items()} | asked
        if "query_max_length" not in asked:  # a passage has room beside it
            lengths["query_max_length"] = min(lengths["query_max_length"], max(3, lengths["pair_max_length"] // 2))
        return cls(backbone, tokenizer, PairSpec(**lengths), name=model, origin=source.origin)

    def prompted_for(self, *names: str | None) -> "CrossEncoder":
        """Give itself: pairs have no prompts."""
        return self

    def tokenize(self, texts: Sequence[str], kind: str) -> TokenizedTexts:
        """Tokenise texts of one kind alone, special tokens included, so that caches serve every kind of model."""
        return TokenizedTexts.from_texts(self.tokenizer, texts, self.spec.max_length(kind))

    def pairs(
        self, queries: TokenizedTexts, passages: TokenizedTexts, query_rows: np.ndarray, passage_rows: np.ndarray
    ) -> Pairs:
        """Put queries and passages together as the tokenizer would, cutting the passage at ``pair_max_length``.

        Args:
            queries: from :meth:`tokenize`.
            passages: from :meth:`tokenize`.
            query_rows: integers [N] into ``queries``.
            passage_rows: integers [N] into ``passages``.

        Returns:
            N pairs.
        """
        template, ids, types, lengths = self._template, [], [], []
        for query_row, passage_row in zip(query_rows, passage_rows, strict=True):
            query, passage = self._bare(queries, query_row), self._bare(passages, passage_row)
            passage = passage[: self.spec.pair_max_length - template.size - len(query)]
            ids += [template.before, query, template.between, passage, template.behind]
            lengths.append(template.size + len(query) + len(passage))
            if template.types is not None:
                before, of_query, between, of_passage, behind = template.types
                types += [before, np.full(len(query), of_query), between, np.full(len(passage), of_passage), behind]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        tokens = TokenizedTexts(np.concatenate(ids or [np.empty(0)]).astype(np.int32), offsets)
        if template.types is None:
            return Pairs(tokens, None)
        return Pairs(tokens, TokenizedTexts(np.concatenate(types or [np.empty(0)]).astype(np.int32), offsets))

    def _bare(self, texts: TokenizedTexts, row: int) -> np.ndarray:
        """Return the token ids of a text without its special tokens."""
        return texts.ids[texts.offsets[row] + self._template.lead : texts.offsets[row + 1] - self._template.tail]

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Score token ids.

        Args:
            input_ids: int64 [n, L].
            attention_mask: int64 [n, L], 1 for real tokens.
            token_type_ids: int64 [n, L], where the model has types.

        Returns:
            float32 [n], raw logits.
        """
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        with training_attention(input_ids.device, self.training):
            scores = self.backbone(input_ids=input_ids, attention_mask=attention_mask, **types).logits
        return scores.squeeze(-1).float()

    def save(self, folder: str | Path) -> Path:
        """Write a plain ``transformers`` sequence classifier, which sentence-transformers' CrossEncoder loads too."""
        folder = Path(folder)
        # without this, that class puts a sigmoid on a single logit
        self.backbone.config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
        self.backbone.save_pretrained(folder)
        tokenizer = to_be_saved(self.tokenizer, self.backbone)
        tokenizer.model_max_length = self.spec.pair_max_length
        tokenizer.save_pretrained(folder)
        return folder

    def fingerprint(self) -> str:
        """Hash weights and configuration by SHA-256: equal if and only if equal pairs of tokens give equal logits."""
        origin = ("_name_or_path", "architectures", "sentence_transformers", "transformers_version")
        config = {key: value for key, value in self.backbone.config.to_dict().items() if key not in origin}
        digest = hashlib.sha256(json.dumps([config, asdict(self.spec)], sort_keys=True, default=str).encode())
        update_with_weights(digest, self.backbone)
        return digest.hexdigest()


def _may_be_new(weight: str, backbone: str) -> bool:
    """Tell whether a plain backbone, whose folder holds no classifier, may lack this weight."""
    return not weight.startswith(backbone) or weight.startswith(f"{backbone}pooler.")


def _template(tokenizer: PreTrainedTokenizerBase, backbone: nn.Module, name: str) -> _Template:
    """Find a tokenizer's special tokens in a tokenised text and a tokenised pair."""
    first, second = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("cells", "divide"))
    pair, alone = tokenizer("cells", "divide"), tokenizer("cells")["input_ids"]
    ids = pair["input_ids"]
    lead, start = _find(first, alone, 0), _find(first, ids, 0)
    middle = start + len(first)
    at = _find(second, ids, middle) if start >= 0 else -1
    if not first or not second or min(lead, start, at) < 0:
        raise InputError(f"The tokenizer of {name} does not join a query and a passage with special tokens.")
    end = at + len(second)
    types = pair.get("token_type_ids")
    if types is not None and "token_type_ids" in inspect.signature(backbone.forward).parameters:
        parts = (types[:start], types[start], types[middle:at], types[at], types[end:])
        types = tuple(np.array(part, np.int32) if isinstance(part, list) else part for part in parts)
    else:
        types = None
    return _Template(
        before=np.array(ids[:start], np.int32),
        between=np.array(ids[middle:at], np.int32),
        behind=np.array(ids[end:], np.int32),
        types=types,
        lead=lead,
        tail=len(alone) - lead - len(first),
    )


def _find(part: list[int], whole: list[int], start: int) -> int:
    """Find where ``part`` begins in ``whole``, from ``start`` on; −1 where it does not."""
    places = range(start, len(whole) - len(part) + 1)
    return next((at for at in places if whole[at : at + len(part)] == part), -1)
