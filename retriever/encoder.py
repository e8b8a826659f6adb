"""TextEncoder: a Hugging Face backbone with pooling, prompts and lengths, the same for the base and the tuned model."""

from __future__ import annotations

import copy
import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from retriever import packing
from retriever import sentence_transformers_layout as layout
from retriever.errors import InputError, choose, shown
from retriever.packaged_weights import packaged_folder
from retriever.pooling import POOLINGS, pool
from retriever.pretrained import load, load_whole
from retriever.tokens import TokenizedTexts, as_loaded

KINDS = ("query", "passage")
_KINDS_OF_VALUES = {
    "pooling": (str,),
    "query_prompt": (str,),
    "passage_prompt": (str,),
    "query_max_length": (int,),
    "passage_max_length": (int,),
    "normalize": (bool,),
    "truncate_dim": (int, type(None)),
}
_POSITIONS_BEHIND_PADDING = ("roberta", "xlm-roberta", "xlm-roberta-xl", "mpnet", "camembert")
# a fast tokenizer keeps the last call's truncation, so two threads must not be in one at once
_TOKENIZER_LOCK = threading.Lock()


@dataclass(frozen=True)
class EncoderSpec:
    """All that turns a text into an embedding beside the weights.

    Attributes:
        pooling: ``cls``, ``mean`` or ``last``.
        query_prompt: put before every query, as it stands (with its trailing space).
        passage_prompt: put before every passage.
        query_max_length: tokens of a query, prompt and special tokens included; what is longer is cut.
        passage_max_length: the same for a passage.
        normalize: scale embeddings to length 1, so that inner products are cosines.
        truncate_dim: keep the first so many dimensions (before normalising), as Matryoshka models allow.
    """

    pooling: str = "mean"
    query_prompt: str = ""
    passage_prompt: str = ""
    query_max_length: int = 64
    passage_max_length: int = 512
    normalize: bool = True
    truncate_dim: int | None = None

    def __post_init__(self) -> None:
        """Check the values, which a model's own files may state."""
        for name, kinds in _KINDS_OF_VALUES.items():
            value = getattr(self, name)
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                raise InputError(
                    f"encoder.{name} is {shown(value)}; expected {' or '.join(k.__name__ for k in kinds)}."
                )
        choose("encoder.pooling", self.pooling, POOLINGS)
        for name in ("query_max_length", "passage_max_length"):
            if getattr(self, name) < 3:
                raise InputError(f"encoder.{name} is {getattr(self, name)}; it must be at least 3 tokens.")
        if self.truncate_dim is not None and self.truncate_dim < 1:
            raise InputError(f"encoder.truncate_dim is {self.truncate_dim}; it must be at least 1, or null.")

    def prompt(self, kind: str) -> str:
        """The prompt for ``query`` or ``passage``."""
        return self.query_prompt if choose("kind", kind, KINDS) == "query" else self.passage_prompt

    def max_length(self, kind: str) -> int:
        """The longest ``query`` or ``passage``, in tokens."""
        return self.query_max_length if choose("kind", kind, KINDS) == "query" else self.passage_max_length


class TextEncoder(nn.Module):
    """Queries and passages to embeddings.

    Args:
        backbone: a module that is called with ``input_ids`` and ``attention_mask`` and returns an object with
            ``last_hidden_state`` [n, L, D]; normally a ``transformers`` model.
        tokenizer: its tokenizer.
        spec: pooling, prompts, lengths, normalisation.
        name: what the model is called in tables and model cards.
    """

    def __init__(
        self,
        backbone: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        spec: EncoderSpec,
        name: str = "encoder",
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.spec = spec
        self.name = name
        width = backbone.config.hidden_size
        if spec.truncate_dim is not None and spec.truncate_dim > width:
            raise InputError(f"encoder.truncate_dim is {spec.truncate_dim}, but {name} has {width} dimensions.")
        self.dimension = spec.truncate_dim or width
        self.train()  # from_pretrained leaves a backbone in evaluation mode, and Lightning keeps the mode it finds
        limit = max_positions(backbone)
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
        packaged: Mapping[str, str] | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        attention: str = "sdpa",
        compile: Mapping[str, object] | None = None,
        dropout: float | None = 0.0,
        lora: Mapping[str, object] | None = None,
        **spec: object,
    ) -> TextEncoder:
        """Load a backbone and its tokenizer, from a folder, an installed package or the hub.

        Args:
            model: a local folder or a hub name. A folder in the sentence-transformers layout gives its own pooling,
                prompts and lengths; what is named in ``spec`` wins over it.
            packaged: ``distribution``, ``folder`` and ``sha256`` of a Python package that carries these weights; used
                where that package is installed, in place of the hub.
            revision: branch, tag or commit on the hub.
            trust_remote_code: run the Python code that the model folder brings. Off unless asked for.
            attention: attention implementation of ``transformers`` (``sdpa``, ``eager``, ``flash_attention_2``, …), or
                ``packed`` (:mod:`retriever.packing`): texts behind one another, no padding.
            compile: options of ``torch.compile`` to compile the backbone with, for example ``{"dynamic": True}``; None
                does not compile. Takes a minute at the first steps.
            dropout: probability set in every dropout layer; None keeps the model's own. The paper trains with 0.
            lora: arguments of ``peft.LoraConfig``; the backbone is then frozen, and the adapters learn.
            **spec: fields of :class:`EncoderSpec`.

        Raises:
            InputError: no such model, a folder without weights or tokenizer, an unknown field or value.
        """
        folder = packaged_folder(packaged["distribution"], packaged["folder"], packaged["sha256"]) if packaged else None
        source = str(folder or model)
        options = {"revision": None if folder else revision, "trust_remote_code": trust_remote_code}
        _check_folder(source)
        if compile is not None and attention == packing.NAME:
            raise InputError("encoder.compile and encoder.attention=packed exclude each other: choose one of them.")
        advice = (
            "Name a folder that holds config.json, model.safetensors and tokenizer.json, or a model on the hub that "
            "this machine can reach."
        )
        backbone = load_whole(
            AutoModel,
            source,
            advice,
            lambda name, _: name.startswith("pooler."),  # unused here
            dtype=torch.float32,
            attn_implementation=attention,
            **options,
        )
        tokenizer = load(AutoTokenizer, source, advice, **options)
        if getattr(backbone, "pooler", None) is not None:
            backbone.pooler = None  # unused here: no gradient (which DDP refuses), and random where not in the file
        if dropout is not None:
            set_dropout(backbone, dropout)
        encoder = cls(backbone, tokenizer, _merged_spec(model, source, spec), name=str(model))
        if encoder.packed and torch.cuda.is_available():
            packing.check_flash(backbone)
        if encoder.packed and not _packs(backbone):
            raise InputError(
                f"encoder.attention is 'packed', but {model!r} gives other embeddings with it: its backbone offers no "
                "attention over texts of several lengths in one row. Take encoder.attention=sdpa."
            )
        if lora:
            encoder.add_lora(lora)
        if compile is not None:
            encoder.backbone.compile(**compile)
        return encoder

    def add_lora(self, options: Mapping[str, object]) -> TextEncoder:
        """Freeze the backbone and put trainable low-rank adapters on it (peft)."""
        try:
            from peft import LoraConfig, get_peft_model
        except ImportError as error:
            raise InputError("encoder.lora needs peft: pip install '.[lora]'") from error
        self.backbone = get_peft_model(self.backbone, LoraConfig(**options))
        return self

    def tokenize(self, texts: Sequence[str], kind: str) -> TokenizedTexts:
        """Token ids of texts of one kind, prompt in front, cut at that kind's maximum length."""
        prompt = self.spec.prompt(kind)
        with _TOKENIZER_LOCK:
            return TokenizedTexts.from_texts(self.tokenizer, [prompt + t for t in texts], self.spec.max_length(kind))

    @property
    def pad_id(self) -> int:
        """The token id that fills a micro-batch; masked, so any will do."""
        return self.tokenizer.pad_token_id or 0

    @property
    def packed(self) -> bool:
        """Whether texts are packed behind one another instead of padded."""
        return self.backbone.config._attn_implementation == packing.NAME

    def forward(self, input_ids: Tensor, attention_mask: Tensor, text_lengths: list[int] | None = None) -> Tensor:
        """Embed token ids.

        Args:
            input_ids: int64 [n, L], padded on the right where the encoder packs.
            attention_mask: int64 [n, L], 1 for real tokens.
            text_lengths: real tokens of each text, where the caller knows them (saves a packing GPU from being asked).

        Returns:
            float32 [n, dimension]; of length 1 where ``spec.normalize``.
        """
        if self.packed:
            lengths = attention_mask.sum(1).tolist() if text_lengths is None else text_lengths
            hidden = packing.packed_hidden_states(self.backbone, input_ids, lengths, first_position(self.backbone))
        else:
            hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        embeddings = pool(hidden, attention_mask, self.spec.pooling)[:, : self.dimension]
        return nn.functional.normalize(embeddings, dim=-1) if self.spec.normalize else embeddings

    def merged_backbone(self) -> nn.Module:
        """The backbone as a plain ``transformers`` model: LoRA adapters, if any, added into a copy of the weights."""
        if hasattr(self.backbone, "merge_and_unload"):
            return copy.deepcopy(self.backbone).merge_and_unload()
        return self.backbone

    def save(self, folder: str | Path) -> Path:
        """Write the model in the sentence-transformers layout; :meth:`from_pretrained` reads it back."""
        folder = Path(folder)
        self.merged_backbone().save_pretrained(folder)
        as_loaded(self.tokenizer).save_pretrained(folder)
        layout.write_spec(folder, asdict(self.spec), width=self.backbone.config.hidden_size)
        return folder

    def fingerprint(self) -> str:
        """SHA-256 over weights, pooling and normalisation: equal if and only if equal tokens give equal embeddings."""
        relevant = replace(self.spec, query_prompt="", passage_prompt="", query_max_length=64, passage_max_length=64)
        digest = hashlib.sha256(json.dumps(asdict(relevant), sort_keys=True).encode())
        digest.update(json.dumps(self.backbone.config.to_dict(), sort_keys=True, default=str).encode())
        update_with_weights(digest, self.backbone)
        return digest.hexdigest()


def max_positions(backbone: nn.Module) -> int | None:
    """The longest text that a ``transformers`` backbone reads, in tokens; None where it has no such limit."""
    config = backbone.config
    limit = getattr(config, "max_position_embeddings", None)
    return limit - first_position(backbone) if limit else limit


def first_position(backbone: nn.Module) -> int:
    """The position of a text's first token: RoBERTa-like backbones start behind the padding id."""
    config = backbone.config
    return config.pad_token_id + 1 if config.model_type in _POSITIONS_BEHIND_PADDING else 0


def _packs(backbone: nn.Module) -> bool:
    """Whether texts in one row get the embeddings that they get alone and padded."""
    limit = min(256, max_positions(backbone) or 256)
    lengths = [limit, limit // 2, limit // 2, 3]
    ids = torch.arange(sum(lengths)) % min(1000, backbone.config.vocab_size - 1)
    ids += ids == backbone.config.pad_token_id  # RoBERTa-like backbones give padding no position
    padded = torch.nn.utils.rnn.pad_sequence(ids.split(lengths), batch_first=True)
    mask = torch.arange(limit) < torch.tensor(lengths).unsqueeze(1)
    training = backbone.training
    backbone.eval()
    try:
        with torch.inference_mode():
            packed = packing.packed_hidden_states(backbone, padded, lengths, first_position(backbone))
            backbone.set_attn_implementation("sdpa")
            alone = backbone(input_ids=padded, attention_mask=mask.long()).last_hidden_state
    except (TypeError, ValueError, NotImplementedError):
        return False
    finally:
        backbone.set_attn_implementation(packing.NAME)
        backbone.train(training)
    return torch.allclose(packed[mask], alone[mask], rtol=1e-3, atol=1e-3)


def update_with_weights(digest: hashlib._Hash, module: nn.Module) -> None:
    """Feed a module's names, types, shapes and weights to a hash."""
    # neither state_dict(), which has the same tensors, nor NumPy views of them: FSDP could not have its weights back
    tensors: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    for place, part in module.named_modules(remove_duplicate=False):
        kept = part._buffers.keys() - part._non_persistent_buffers_set
        tensors |= {
            f"{place}.{name}".lstrip("."): part._buffers[name] for name in kept if part._buffers[name] is not None
        }
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().to("cpu", copy=True).contiguous().view(torch.uint8).numpy().tobytes())


def set_dropout(module: nn.Module, probability: float) -> None:
    """Set every dropout probability of a model, those kept as plain numbers included."""
    if not 0 <= probability < 1:
        raise InputError(f"encoder.dropout is {probability}; it must be in [0, 1).")
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = probability
        for name in ("attention_dropout", "attn_dropout", "activation_dropout"):
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, probability)


def _merged_spec(model: str, source: str, asked: Mapping[str, object]) -> EncoderSpec:
    """What a model's own files state, and what is asked for instead of it."""
    stated = layout.read_spec(Path(source)) if Path(source).is_dir() else {}
    unknown = (set(asked) | set(stated)) - set(EncoderSpec.__dataclass_fields__)
    if unknown:
        choose(f"{model}: the encoder option", sorted(unknown)[0], EncoderSpec.__dataclass_fields__)
    merged = stated | {name: value for name, value in asked.items() if value is not None}
    if "pooling" not in merged:
        raise InputError(f"{model!r} does not say how it pools; set encoder.pooling to one of {POOLINGS}.")
    try:
        EncoderSpec(**stated)
    except InputError as error:
        raise InputError(f"{source}: the model's own files say that {error}") from error
    return EncoderSpec(**merged)


def _check_folder(source: str) -> None:
    path = Path(source)
    if not path.is_dir():
        if path.is_absolute() or source.startswith("."):
            raise InputError(f"{source}: no such model folder. Check encoder.model.")
        return
    if not (path / "config.json").is_file():
        raise InputError(f"{path}: no config.json, so this is no model folder. Check encoder.model.")
    tokenizer_files = (
        "tokenizer.json",
        "vocab.txt",
        "vocab.json",
        "tokenizer.model",
        "spiece.model",
        "sentencepiece.bpe.model",
    )
    if not any((path / name).is_file() for name in tokenizer_files):
        raise InputError(
            f"{path}: no tokenizer ({', '.join(tokenizer_files)}). Save it beside the model: "
            "AutoTokenizer.from_pretrained(BASE).save_pretrained(FOLDER)"
        )
