"""TextEncoder: a Hugging Face backbone with pooling, prompts and lengths, the same for the base and the tuned model."""

import copy
import hashlib
import json
import logging
import re
import threading
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from retriever.encoder import packing
from retriever.encoder import sentence_transformers_layout as layout
from retriever.encoder.dense import Dense
from retriever.encoder.encoding import Encoder, evaluating
from retriever.encoder.layers import LayerSplit
from retriever.encoder.pooling import pool
from retriever.encoder.precision import training_attention
from retriever.encoder.spec import KINDS, POOLINGS, EncoderSpec
from retriever.encoder.tokens import TokenizedTexts, lower_case, padding_token, to_be_saved
from retriever.encoder.weights import update_with_weights
from retriever.errors import InputError, choose, installed_by
from retriever.pretrained.loading import NO_LIMIT, load, load_backbone, readable_length
from retriever.pretrained.preset import with_preset
from retriever.pretrained.source import find_model

_log = logging.getLogger(__name__)
_ADVICE = (
    "Name a folder that holds config.json, model.safetensors and tokenizer.json, or a model on the hub that this "
    "machine can reach."
)
_POSITIONS_BEHIND_PADDING = ("roberta", "xlm-roberta", "xlm-roberta-xl", "mpnet", "camembert")
# a fast tokenizer keeps the last call's truncation, so two threads must not be in one at once
_TOKENIZER_LOCK = threading.Lock()


class TextEncoder(Encoder):
    """Embeds queries and passages.

    Args:
        backbone: a module that is called with ``input_ids`` and ``attention_mask`` and returns an object with
            ``last_hidden_state`` [n, L, D]; normally a ``transformers`` model.
        spec: pooling, prompts, lengths, normalisation.
        *common: arguments of :class:`~retriever.encoder.encoding.Encoder`, these two among them.
        **named: likewise.
        head: what pooled embeddings go through before they are cut and normalised; it is trained with the backbone,
            whole where of the backbone adapters or upper layers alone learn.
    """

    spec: EncoderSpec

    def __init__(self, *common: Any, head: Sequence[Dense] = (), **named: Any) -> None:
        super().__init__(*common, **named)
        self.head = nn.Sequential(*head)
        spec, width = self.spec, self.backbone.config.hidden_size
        for dense in head:
            if dense.linear.in_features != width:
                raise InputError(
                    f"{self.name}: a Dense module takes {dense.linear.in_features} dimensions, and what comes before "
                    f"it gives {width}. Fetch or export the model again."
                )
            width = dense.linear.out_features
        if spec.truncate_dim is not None and spec.truncate_dim > width:
            raise InputError(f"encoder.truncate_dim is {spec.truncate_dim}, but {self.name} has {width} dimensions.")
        self.dimension = spec.truncate_dim or width

    def check(self) -> None:
        """See :class:`Encoder`."""
        self.lower_case = False  # by the tokenizer, before it does anything else
        self.split: LayerSplit | None = None  # where the lower layers are frozen
        self.projection: str | None = None  # "unfitted" or "fitted", where the head ends in another encoder's space
        name, spec = self.name, self.spec
        if getattr(self.backbone.config, "hidden_size", None) is None:
            raise InputError(f"{name} is a {type(self.backbone).__name__}, which gives no token embeddings of a text.")
        limit = max_positions(self.backbone)
        for kind in KINDS:
            if limit and spec.max_length(kind) > limit:
                raise InputError(
                    f"encoder.{kind}_max_length is {spec.max_length(kind)}, but {name} has {limit} positions."
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
        compile: Mapping[str, object] | None = None,
        dropout: float | None = 0.0,
        lora: Mapping[str, object] | None = None,
        trainable_layers: int | None = None,
        **spec: object,
    ) -> "TextEncoder":
        """Load a backbone and its tokenizer, from a folder, an installed package or the hub.

        Each field of :class:`EncoderSpec` is what ``spec`` states; else what the preset states, where it is about
        ``model``; else what the model's files state in the sentence-transformers layout; else its default. A default
        length is lowered to what the model can read.

        Args:
            model: a local folder or a hub name.
            preset: what is known of one model: ``model``, its name; ``packaged`` (``distribution``, ``folder`` and
                ``sha256`` of a Python package that carries its weights, used instead of the hub where it is
                installed); and fields of :class:`EncoderSpec`. It is ignored for any other ``model``.
            revision: branch, tag or commit on the hub.
            trust_remote_code: run the Python code that the model folder brings. Off unless asked for.
            attention: attention implementation of ``transformers`` (``sdpa``, ``eager``, ``flash_attention_2``, …), or
                ``packed`` (:mod:`retriever.encoder.packing`): concatenated texts, no padding. None takes
                ``sdpa``, or ``eager`` where the backbone has no other.
            compile: options of ``torch.compile`` to compile the backbone with, for example ``{"dynamic": True}``; None
                does not compile. Takes a minute at the first steps.
            dropout: probability set in every dropout layer (the paper: 0); None keeps those of the model.
            lora: arguments of ``peft.LoraConfig``; the backbone is then frozen, and the adapters learn.
            trainable_layers: the number of last layers that learn; those below, and the token embeddings, are frozen,
                and what they make of a text is computed once and stored. None trains all.
            **spec: fields of :class:`EncoderSpec`; None where nothing is stated.

        Raises:
            InputError: no such model, a folder without weights or tokenizer, an unknown field or value, a length that
                the model cannot read, or a model that sentence-transformers would not encode as it is encoded here.
        """
        if compile is not None and attention == packing.NAME:
            raise InputError("encoder.compile and encoder.attention=packed exclude each other: choose one of them.")
        model = str(model)
        asked, packaged = with_preset(model, preset, spec, EncoderSpec.__dataclass_fields__)
        for name in ("query_prompt", "passage_prompt"):
            given = asked.get(name)
            if any("\\n" in str(text) for text in (given.values() if isinstance(given, Mapping) else [given])):
                _log.warning(
                    "encoder.%s is %r, with a backslash and an n in it, which is no new line. In bash, a new line is "
                    "typed as encoder.%s=$'\"first line\\nsecond line\"'",
                    name,
                    asked[name],
                    name,
                )
        source = find_model(model, revision, packaged)
        stated = _stated(model, source.files, asked)
        options: dict[str, Any] = {"revision": source.revision, "trust_remote_code": trust_remote_code}
        backbone = load_backbone(source.load_from, _ADVICE, attention, **options)
        tokenizer = load(AutoTokenizer, source.load_from, _ADVICE, **options)
        if padding_token(tokenizer, backbone)[0] is None:
            raise InputError(
                f"The tokenizer of {model!r} has no padding token, and no special token that could pad instead: an "
                "exported model could not encode several texts. Give it one (tokenizer.pad_token = …) and save it."
            )
        if getattr(backbone, "pooler", None) is not None:
            backbone.pooler = None  # unused here: no gradient (which DDP refuses), and random where not in the file
        if dropout is not None:
            set_dropout(backbone, dropout)
        whole = _that_fit(EncoderSpec(**(stated | asked)), asked, stated, backbone, tokenizer)
        head = layout.read_head(source.files)
        encoder = cls(backbone, tokenizer, whole, name=model, origin=source.origin, head=head)
        if layout.lowers_case(source.files):
            encoder.lower_case = lower_case(tokenizer)
        if encoder.packed and torch.cuda.is_available():
            packing.check_flash(backbone)
        if encoder.packed and not _packs(backbone):
            raise InputError(
                f"encoder.attention is 'packed', but {model!r} gives other embeddings with it: its backbone offers no "
                "attention over texts of several lengths in one row. Take encoder.attention=null."
            )
        if trainable_layers is not None:
            with _unpacked(backbone):
                encoder.split = LayerSplit(backbone, trainable_layers)
        if lora:
            encoder.add_lora(lora)
        if compile is not None:
            encoder.backbone.compile(**compile)
            if encoder.split is not None:
                encoder.split.upper.compile(**compile)
        return encoder

    def add_lora(self, options: Mapping[str, object]) -> "TextEncoder":
        """Freeze the backbone and put trainable low-rank adapters on it (peft), on its upper layers where it is split.

        Raises:
            InputError: peft is missing, or refuses the options.
        """
        with installed_by("lora", "encoder.lora"):
            from peft import LoraConfig, get_peft_model
        if self.split is not None:
            without: Any = options.get("exclude_modules") or []
            if isinstance(without, str):  # a regular expression
                without = [name for name, _ in self.backbone.named_modules() if re.fullmatch(without, name)]
            options = {**options, "exclude_modules": [*without, *self.split.frozen_modules]}
        try:
            self.backbone = get_peft_model(self.backbone, LoraConfig(**options))
        except (TypeError, ValueError) as error:
            where = f" Only the last {self.split.trainable_layers} layers take adapters." if self.split else ""
            raise InputError(f"encoder.lora: peft refuses its options: {error}{where}") from error
        if self.split is not None:
            with _unpacked(self.split.backbone):
                self.split.freeze()  # peft lets biases or whole modules learn where it is asked to
        return self

    def tokenize(self, texts: Sequence[str], kind: str) -> TokenizedTexts:
        """Tokenise texts of one kind, prompt in front, cut at that kind's maximum length."""
        prompt = self.spec.prompt(kind)
        with _TOKENIZER_LOCK:
            return TokenizedTexts.from_texts(self.tokenizer, [prompt + t for t in texts], self.spec.max_length(kind))

    def prompted_for(self, *names: str | None) -> "TextEncoder":
        """Give this encoder with the prompts of :meth:`EncoderSpec.prompted_for`; its weights are the same objects."""
        spec = self.spec.prompted_for(*names)
        if spec == self.spec:
            return self
        other = copy.copy(self)
        other.spec = spec
        return other

    @property
    def packed(self) -> bool:
        """Tell whether texts are concatenated instead of padded."""
        return self.backbone.config._attn_implementation == packing.NAME

    @property
    def starts_from_states(self) -> bool:
        """Tell whether what the lower layers give can be stored, and the upper ones start there."""
        return self.split is not None and not self.packed

    @property
    def computed_share(self) -> float:
        """Return the share of the layers that each encoding computes, where states are stored."""
        return self.split.trainable_layers / self.split.layers if self.split and self.starts_from_states else 1.0

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        text_lengths: list[int] | None = None,
        states: Tensor | None = None,
    ) -> Tensor:
        """Embed token ids.

        Args:
            input_ids: int64 [n, L], padded on the right where the encoder packs.
            attention_mask: int64 [n, L], 1 for real tokens.
            text_lengths: real tokens of each text; None counts them, for which a packing GPU must be waited for.
            states: what the lower layers made of the texts, float32 [n, L, D]; None computes it.

        Returns:
            float32 [n, dimension]; of length 1 where ``spec.normalize``.
        """
        # not for compiled code, into which it would be compiled
        trains = self.training and self.backbone._compiled_call_impl is None
        with training_attention(input_ids.device, trains):
            if states is not None:
                assert self.split is not None
                hidden = self.split.upper(states, input_ids, attention_mask)
            elif self.packed:
                lengths = attention_mask.sum(1).tolist() if text_lengths is None else text_lengths
                hidden = packing.packed_hidden_states(self.backbone, input_ids, lengths, first_position(self.backbone))
            else:
                hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        embeddings = pool(hidden, attention_mask, self.spec.pooling)
        with torch.autocast(embeddings.device.type, enabled=False):  # a few products for each text, in float32
            embeddings = self.head(embeddings)[:, : self.dimension]
        return nn.functional.normalize(embeddings, dim=-1) if self.spec.normalize else embeddings

    def merged_backbone(self) -> nn.Module:
        """Return the backbone as a plain ``transformers`` model, LoRA adapters merged into a copy of the weights."""
        if hasattr(self.backbone, "merge_and_unload"):
            return copy.deepcopy(self.backbone).merge_and_unload()
        return self.backbone

    def save(self, folder: str | Path) -> Path:
        """Write the model in the sentence-transformers layout; :meth:`from_pretrained` reads it back."""
        folder = Path(folder)
        self.merged_backbone().save_pretrained(folder)
        to_be_saved(self.tokenizer, self.backbone).save_pretrained(folder)
        layout.write_spec(folder, asdict(self.spec), self.backbone.config.hidden_size, self.lower_case, [*self.head])
        return folder

    def fingerprint(self) -> str:
        """Hash weights, pooling and normalisation by SHA-256: equal if and only if equal tokens embed equally."""
        relevant = replace(self.spec, query_prompt="", passage_prompt="", query_max_length=64, passage_max_length=64)
        embeds = {name: value for name, value in asdict(relevant).items() if name != "passage_titles"}
        digest = hashlib.sha256(json.dumps(embeds, sort_keys=True).encode())
        digest.update(json.dumps(self.backbone.config.to_dict(), sort_keys=True, default=str).encode())
        update_with_weights(digest, self.backbone)
        if len(self.head):
            digest.update(json.dumps([dense.config for dense in self.head], sort_keys=True).encode())
            update_with_weights(digest, self.head)
        return digest.hexdigest()


def max_positions(backbone: nn.Module) -> int | None:
    """Return the most tokens that a ``transformers`` backbone reads; None where it has no such limit."""
    config = backbone.config
    limit = getattr(config, "max_position_embeddings", None)
    return limit - first_position(backbone) if limit and limit > 0 else None


def first_position(backbone: nn.Module) -> int:
    """Return the position of a text's first token: RoBERTa-like backbones start after the padding id."""
    config = backbone.config
    return config.pad_token_id + 1 if config.model_type in _POSITIONS_BEHIND_PADDING else 0


def _packs(backbone: nn.Module) -> bool:
    """Tell whether texts in one row get the embeddings that they get alone and padded."""
    limit = min(256, max_positions(backbone) or 256)
    lengths = [limit, limit // 2, limit // 2, 3]
    ids = torch.arange(sum(lengths)) % min(1000, backbone.config.vocab_size - 1)
    ids += ids == backbone.config.pad_token_id  # RoBERTa-like backbones give padding no position
    padded = torch.nn.utils.rnn.pad_sequence(ids.split(lengths), batch_first=True)
    mask = torch.arange(limit) < torch.tensor(lengths).unsqueeze(1)
    try:
        with evaluating(backbone):
            packed = packing.packed_hidden_states(backbone, padded, lengths, first_position(backbone))
            with _unpacked(backbone):
                alone = backbone(input_ids=padded, attention_mask=mask.long()).last_hidden_state
    except (TypeError, ValueError, NotImplementedError):
        return False
    return torch.allclose(packed[mask], alone[mask], rtol=1e-3, atol=1e-3)


@contextmanager
def _unpacked(backbone: nn.Module) -> Iterator[None]:
    """Have a backbone that packs texts read padded ones."""
    packs = backbone.config._attn_implementation == packing.NAME
    try:
        if packs:
            backbone.set_attn_implementation("sdpa")
        yield
    finally:
        if packs:
            backbone.set_attn_implementation(packing.NAME)


def set_dropout(module: nn.Module, probability: float) -> None:
    """Set every dropout probability of a model, including those that are plain numbers."""
    if not 0 <= probability < 1:
        raise InputError(f"encoder.dropout is {probability}; it must be in [0, 1).")
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = probability
        for name in ("attention_dropout", "attn_dropout", "activation_dropout"):
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, probability)


def _that_fit(
    spec: EncoderSpec,
    asked: Container[str],
    stated: Container[str],
    backbone: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
) -> EncoderSpec:
    """Lower lengths that nobody asked for to what the model reads; its files may state more than its tokenizer."""
    positions = max_positions(backbone)
    readable = readable_length(positions, tokenizer)
    lengths = {
        name: min(getattr(spec, name), (positions or NO_LIMIT) if name in stated else readable)
        for name in ("query_max_length", "passage_max_length")
        if name not in asked
    }
    return replace(spec, **lengths)


def _stated(model: str, folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Read what a model's files state, and check it together with what is asked for instead."""
    stated = layout.read_spec(folder)
    unknown = (set(asked) | set(stated)) - set(EncoderSpec.__dataclass_fields__)
    if unknown:
        choose(f"{model}: the encoder option", sorted(unknown)[0], EncoderSpec.__dataclass_fields__)
    if "pooling" not in asked | stated:
        raise InputError(f"{model!r} does not say how it pools; set encoder.pooling to one of {', '.join(POOLINGS)}.")
    try:
        EncoderSpec(**stated)
    except InputError as error:
        raise InputError(f"{folder}: the model's files say that {error}") from error
    spec = EncoderSpec(**(stated | asked))
    without = layout.leaves_prompt_out(folder)
    if without is not None and (spec.query_prompt or spec.passage_prompt):
        raise InputError(
            f"{without}: include_prompt is false: the model leaves prompts out of its pooling, which TextEncoder does "
            "not. Encode without prompts (encoder.query_prompt='' encoder.passage_prompt=''), or say true there."
        )
    return stated
