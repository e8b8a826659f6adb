"""TransformersTeacher: loading, micro-batches and a last projection in float32, for teachers under transformers."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from retriever.encoder.budget import fastest_token_budget
from retriever.encoder.precision import gpu_has_bfloat16
from retriever.encoder.text_encoder import max_positions
from retriever.encoder.tokens import micro_batches
from retriever.errors import InputError, choose, require_positive
from retriever.pretrained.loading import load, load_telling
from retriever.teachers.model_teacher import ModelTeacher
from retriever.teachers.pair_tokens import PairTokenizer, TokenizedPairs

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_ADVICE = (
    "Name a folder that holds config.json, weights and tokenizer.json, or a model on the hub that this machine can "
    "reach, and the teacher that fits its kind."
)


class TransformersTeacher(ModelTeacher):
    """A teacher that runs under transformers.

    A subclass loads its kind of model (:meth:`_load_model`) and turns a padded micro-batch into logits
    (:meth:`_logits`). Weights are in ``dtype``. The projection that gives the score is in float32, because scores in
    bfloat16 have eight bits and tie.

    Args:
        model: see :class:`ModelTeacher`, as for ``revision``, ``trust_remote_code`` and the lengths.
        token_budget: rows × longest row of a micro-batch, padding included; None takes the machine's
            (:func:`retriever.encoder.budget.fastest_token_budget`).
        dtype: of the weights, ``float32`` or ``bfloat16``; ``auto`` takes bfloat16 on a GPU that has it.
        device: ``cpu``, ``cuda``, ``cuda:1``, …; None takes a GPU where there is one.
        **common: arguments of :class:`ModelTeacher`.
    """

    block = 65_536  # also sorted by length together
    template: str | Sequence[str] | None = None
    decides: tuple[str, ...] = ()  # attributes of a subclass that decide its scores, too

    def __init__(
        self,
        model: str,
        *,
        token_budget: int | None = None,
        dtype: str = "float32",
        device: str | None = None,
        **common: Any,
    ) -> None:
        super().__init__(model, **common)
        require_positive(**{"teacher.token_budget": token_budget})
        self._token_budget = token_budget
        self.device = _device(device)
        self.dtype = chosen_dtype(dtype, on_gpu=self.device.type == "cuda")

    @abstractmethod
    def _load_model(self) -> PreTrainedModel:
        """Load the model on the CPU, and check that it is of this kind."""

    @abstractmethod
    def _logits(self, ids: Tensor, mask: Tensor, pairs: TokenizedPairs, rows: np.ndarray) -> Tensor:
        """Score one micro-batch.

        Args:
            ids: int64 [n, L], padded on the right.
            mask: int64 [n, L], 1 for real tokens.
            pairs: all pairs.
            rows: those of the micro-batch.

        Returns:
            float32 [n].
        """

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the model's tokenizer, once."""
        return load_pretrained(AutoTokenizer, self.name, self.revision, self.trust_remote_code)

    @cached_property
    def pair_tokenizer(self) -> PairTokenizer:
        """Make the tokenizer of pairs, once."""
        return self._pair_tokenizer()

    @cached_property
    def model(self) -> PreTrainedModel:
        """Load the model on its device for inference, once."""
        return self._load_model().eval().requires_grad_(False).to(self.device)

    @property
    def token_budget(self) -> int:
        """Return the tokens of a micro-batch."""
        return self._token_budget or fastest_token_budget(self.model, self.device)

    def _template(self) -> str | Sequence[str] | None:
        return self.template

    def _pair_tokenizer(self) -> PairTokenizer:
        return PairTokenizer(self.tokenizer, self.max_length, self.query_max_length, self._template())

    def _micro_batches(self, pairs: TokenizedPairs) -> list[np.ndarray]:
        return micro_batches(pairs.tokens.lengths, self.token_budget, on_gpu=self.device.type != "cpu")

    def load(self) -> None:
        """See :class:`ModelTeacher`."""
        _ = self.pair_tokenizer, self.model

    def _score_block(
        self, queries: Sequence[str], passages: Sequence[str], on_batch: Callable[[int], None] | None
    ) -> tuple[np.ndarray, TokenizedPairs]:
        pairs = self.pair_tokenizer(queries, passages)
        return self._score_tokens(pairs, on_batch), pairs

    @torch.inference_mode()
    def _score_tokens(self, pairs: TokenizedPairs, on_batch: Callable[[int], None] | None) -> np.ndarray:
        scores = np.zeros(len(pairs.tokens), dtype=np.float32)
        # the padding id of the model's configuration first: decoders that classify find a row's last token by it
        pad_id = getattr(self.model.config.get_text_config(), "pad_token_id", None)
        pad_id = (self.tokenizer.pad_token_id or 0) if pad_id is None else pad_id
        for rows in self._micro_batches(pairs):
            ids, mask = pairs.tokens.padded(rows, pad_id, self.device)
            scores[rows] = self._logits(ids, mask, pairs, rows).float().cpu().numpy()
            if on_batch:
                on_batch(len(rows))
        return scores

    def description(self) -> dict[str, Any]:
        """See :class:`ModelTeacher`."""
        return super().description() | {name: getattr(self, name) for name in ("template", "dtype", *self.decides)}

    def _pretrained(self, auto_class: Any, what: str, **options: Any) -> PreTrainedModel:
        """Load the model by one of transformers' classes; refuse it where a weight is not in its files."""
        source = {"revision": self.revision, "trust_remote_code": self.trust_remote_code}
        model, missing = load_telling(
            auto_class, self.name, _ADVICE, group="teacher", dtype=DTYPES[self.dtype], **source, **options
        )
        if missing:
            raise InputError(
                f"{self.name} holds no weights for {', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}, so it "
                f"is no {what}. Check teacher.model, or choose the teacher that fits it."
            )
        if auto_class is AutoModelForSeq2SeqLM and model.config.decoder_start_token_id is None:
            raise InputError(f"{self.name}: config.json names no decoder_start_token_id, with which decoding begins.")
        limit = max_positions(model)
        if limit and self.max_length > limit:
            raise InputError(f"teacher.max_length is {self.max_length}, but {self.name} has {limit} positions.")
        return model

    def _token_id(self, option: str, token: str) -> int:
        """Find the id of a token, written as in the vocabulary."""
        number = self.tokenizer.convert_tokens_to_ids(token)
        if number is None or (number == self.tokenizer.unk_token_id and token != self.tokenizer.unk_token):
            raise InputError(f"{self.name} has no token {token!r}; set teacher.{option} to one of its vocabulary.")
        return number


class Float32Rows(nn.Module):
    """Takes the place of the projection on the vocabulary, with a few of its rows in float32."""

    def __init__(self, projection: nn.Linear, rows: Sequence[int]) -> None:
        super().__init__()
        chosen = list(rows)
        bias = getattr(projection, "bias", None)
        self.register_buffer("weight", projection.weight.detach()[chosen].float())
        self.register_buffer("bias", None if bias is None else bias.detach()[chosen].float())

    def forward(self, hidden: Tensor) -> Tensor:
        """Project hidden states [..., D] to logits, float32 [..., rows]."""
        return nn.functional.linear(hidden.float(), self.weight, self.bias)


def project_on_rows(model: PreTrainedModel, rows: Sequence[int]) -> None:
    """Let a language model project on ``rows`` of its vocabulary alone; its code for logits stays."""
    model.set_output_embeddings(Float32Rows(model.get_output_embeddings(), rows))


def project_in_float32(linear: nn.Linear) -> None:
    """Let one linear layer compute in float32, whatever type its input has."""
    linear.float()
    linear.register_forward_pre_hook(lambda _, inputs: tuple(x.float() for x in inputs))


def load_pretrained(auto_class: Any, model: str, revision: str | None, trust_remote_code: bool) -> Any:
    """Call ``auto_class.from_pretrained``; what goes wrong becomes an InputError."""
    return load(auto_class, model, _ADVICE, group="teacher", revision=revision, trust_remote_code=trust_remote_code)


def last_real(values: Tensor, mask: Tensor) -> Tensor:
    """Select ``values`` [n, L, ...] at each row's last real token, [n, ...]; rows are padded on the right."""
    return values[torch.arange(len(values), device=values.device), mask.sum(1) - 1]


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"teacher.device is {name!r}; it must be null, cpu, cuda, or cuda with a number.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"teacher.device is {name!r}, but this machine shows no GPU. Say teacher.device=null or cpu.")
    return device


def chosen_dtype(dtype: str, on_gpu: bool) -> str:
    """Choose the weights' dtype: ``auto`` is bfloat16 on a GPU that computes in it, else float32.

    Raises:
        InputError: neither ``auto`` nor a name of ``DTYPES``.
    """
    if choose("teacher.dtype", dtype, ("auto", *DTYPES)) != "auto":
        return dtype
    return "bfloat16" if on_gpu and gpu_has_bfloat16() else "float32"
