"""Dense: a linear map of pooled embeddings with an activation function, in sentence-transformers' files."""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from retriever.encoder.model_files import read_json, write_json
from retriever.errors import InputError, shown

IDENTITY = "torch.nn.modules.linear.Identity"
_TANH = "torch.nn.modules.activation.Tanh"  # where a file names none
_ACTIVATIONS = "torch.nn.modules.activation."
_PLACE = "sentence_embedding"  # what a module reads and writes, among what the modules before it made
_EXPECTED = {"in_features": int, "out_features": int, "bias": bool, "use_residual": bool}


class Dense(nn.Module):
    """Computes ``activation(W x + b)`` of embeddings, plus ``x`` where it is residual.

    Its weights have the names that sentence-transformers gives them.

    Args:
        in_features: the width of what comes in.
        out_features: the width of what goes out.
        bias: whether there is a ``b``.
        activation: a class of torch's activation functions by its full name, made without arguments.
        use_residual: add ``x``, which another matrix maps where the widths differ.

    Raises:
        InputError: no such activation function.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        activation: str = IDENTITY,
        use_residual: bool = False,
    ) -> None:
        super().__init__()
        self.activation, self.use_residual = activation, use_residual
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        self.activation_function = _activation(activation)
        if use_residual and in_features != out_features:
            self.residual = nn.Linear(in_features, out_features, bias=False)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Map embeddings [n, in_features] to [n, out_features]."""
        mapped = self.activation_function(self.linear(embeddings))
        if not self.use_residual:
            return mapped
        return mapped + (self.residual(embeddings) if hasattr(self, "residual") else embeddings)

    @property
    def config(self) -> dict[str, Any]:
        """Return what sentence-transformers' ``config.json`` says."""
        linear = self.linear
        stated = {"in_features": linear.in_features, "out_features": linear.out_features}
        stated |= {"bias": linear.bias is not None, "activation_function": self.activation}
        return stated | ({"use_residual": True} if self.use_residual else {})  # earlier versions do not know it

    @property
    def is_cut(self) -> bool:
        """Tell whether the module does nothing but keep the first dimensions."""
        weight, bias = self.linear.weight.detach(), self.linear.bias
        return (
            self.activation == IDENTITY
            and not self.use_residual
            and weight.shape[0] <= weight.shape[1]
            and (bias is None or not bool(bias.any()))
            and torch.equal(weight, torch.eye(*weight.shape))
        )

    @classmethod
    def cut(cls, width: int, kept: int) -> "Dense":
        """Make a module that keeps the first ``kept`` of ``width`` dimensions."""
        dense = cls(width, kept)
        dense.load_state_dict({"linear.weight": torch.eye(kept, width)})
        return dense

    @classmethod
    def read(cls, folder: Path) -> "Dense":
        """Read a module that sentence-transformers wrote; its weights become float32.

        Raises:
            InputError: it maps something other than the text's embedding; or a file is missing, damaged or of another
                module.
        """
        path = folder / "config.json"
        stated = {"bias": True, "use_residual": False} | read_json(path)
        for name, kind in _EXPECTED.items():
            if type(stated.get(name)) is not kind or (kind is int and stated[name] < 1):
                raise InputError(f"{path}: {name} is {shown(stated.get(name))}. Fetch or export the model again.")
        places = [stated.get(f"module_{side}_name") or _PLACE for side in ("input", "output")]
        if places != [_PLACE, _PLACE]:
            raise InputError(
                f"{path}: this Dense module maps {shown(places[0])} to {shown(places[1])}, and TextEncoder has one for "
                f"{_PLACE} alone: embeddings would differ. Choose a model without it."
            )
        try:
            dense = cls(
                **{name: stated[name] for name in _EXPECTED}, activation=stated.get("activation_function", _TANH)
            )
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        try:
            dense.load_state_dict(_weights(folder))
        except (RuntimeError, AttributeError) as error:  # other names or shapes; no tensors
            raise InputError(
                f"{folder}: the weights do not fit config.json ({str(error).splitlines()[-1].strip()}). Fetch or "
                "export the model again."
            ) from error
        return dense

    def write(self, folder: Path) -> None:
        """Write the module as sentence-transformers reads it."""
        write_json(folder / "config.json", self.config)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(weights, folder / "model.safetensors")


def _activation(name: Any) -> nn.Module:
    kind = getattr(nn, str(name).rsplit(".", 1)[-1], None) if str(name).startswith(_ACTIVATIONS) else None
    kind = nn.Identity if name == IDENTITY else kind
    try:
        if kind is not None:
            return kind()
    except TypeError:  # it needs arguments, which no file holds
        pass
    raise InputError(
        f"the activation function {shown(name)} of a Dense module is not supported: those of torch that take no "
        "arguments are. Choose a model with one of them."
    )


def _weights(folder: Path) -> Mapping[str, Tensor]:
    whole, older = folder / "model.safetensors", folder / "pytorch_model.bin"
    try:
        if whole.is_file():
            return load_file(whole)
        return torch.load(older, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise InputError(
            f"{folder}: the weights of this Dense module cannot be read ({str(error).splitlines()[0]}). Fetch or "
            "export the model again."
        ) from error
