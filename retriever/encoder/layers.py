"""A backbone in two parts: lower layers, which are frozen, and upper layers, which can start from stored states."""

import copy
import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from retriever.encoder.weights import update_with_weights
from retriever.errors import InputError


class _Reached(Exception):
    """Carries the hidden states that come to the upper layers."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


class _Stored(nn.Module):
    """Stands in place of a lower layer, and gives stored hidden states whatever it is called with."""

    def __init__(self, replaced: nn.Module, in_tuple: bool) -> None:
        super().__init__()
        self.states: Tensor | None = None
        self.in_tuple = in_tuple
        for name in ("attention_type", "layer_type", "is_sliding"):  # what backbones ask a layer for
            if hasattr(replaced, name):
                setattr(self, name, getattr(replaced, name))

    def forward(self, *arguments: Any, **named: Any) -> Any:
        return (self.states,) if self.in_tuple else self.states


class LayerSplit:
    """Runs the lower and the upper layers of a backbone apart.

    The upper part shares its modules with the backbone, so that what learns there learns here.

    Attributes:
        trainable_layers: layers of the upper part.
        layers: of the whole backbone.

    Args:
        backbone: a ``transformers`` model whose layers are in one list.
        trainable_layers: how many of the last layers learn, at least 1.

    Raises:
        InputError: there are not so many, or the two parts together give other embeddings than the whole.
    """

    def __init__(self, backbone: nn.Module, trainable_layers: int) -> None:
        plain = backbone.get_base_model() if hasattr(backbone, "get_base_model") else backbone  # within adapters
        self.backbone = plain
        count = getattr(plain.config, "num_hidden_layers", None)
        lists = {n: m for n, m in plain.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count}
        if not lists:
            raise InputError(
                f"encoder.trainable_layers is {trainable_layers}, but a {type(plain).__name__} has no list of its "
                "layers. Take encoder.trainable_layers=null."
            )
        self._place, layers = next(iter(lists.items()))
        self.layers = len(layers)
        if not 1 <= trainable_layers < self.layers:
            raise InputError(
                f"encoder.trainable_layers is {trainable_layers}, but {type(plain).__name__} has {self.layers} layers: "
                f"take 1 to {self.layers - 1}, or null for all."
            )
        self.trainable_layers = trainable_layers
        self._first = layers[self.layers - trainable_layers]
        self.frozen = self._freeze()
        self._stored, self._upper = self._build_upper(layers)
        self._check()

    def lower(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Compute the hidden states that come to the upper layers, [n, L, D], without gradient."""

        def stop(module: nn.Module, arguments: tuple, named: dict[str, Any]) -> None:
            raise _Reached(arguments[0] if arguments else named["hidden_states"])

        handle = self._first.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            with torch.no_grad():
                self.backbone(input_ids=input_ids, attention_mask=attention_mask)
        except _Reached as reached:
            return reached.states
        finally:
            handle.remove()
        raise AssertionError("the upper layers were not reached")

    def upper(self, states: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Compute token embeddings from stored hidden states, [n, L, D].

        Args:
            states: as :meth:`lower` gives them, of a floating type; what is padded does not count.
            input_ids: int64 [n, L]; backbones look at their shape.
            attention_mask: int64 [n, L], 1 for real tokens.
        """
        self._stored.states = states
        try:
            return self._upper(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        finally:
            self._stored.states = None

    def fingerprint(self) -> str:
        """Hash what the lower states depend on, beside the tokens, by SHA-256: weights, architecture, the layer."""
        digest = hashlib.sha256(f"{self.backbone.config.to_json_string()} {self.trainable_layers}".encode())
        update_with_weights(digest, nn.ParameterList(self.frozen))
        return digest.hexdigest()

    def _freeze(self) -> list[nn.Parameter]:
        """Freeze what is computed before the upper layers, and return it; a short text shows which modules that is."""
        reached: dict[nn.Parameter, None] = {}

        def note(module: nn.Module, *_: Any) -> None:
            reached.update(dict.fromkeys(module.parameters(recurse=False)))

        handles = [part.register_forward_pre_hook(note) for part in self.backbone.modules()]
        try:
            self.lower(*self._example())
        finally:
            for handle in handles:
                handle.remove()
        frozen = [parameter for parameter in reached if all(parameter is not own for own in self._first.parameters())]
        for parameter in frozen:
            parameter.requires_grad_(False)
        return frozen

    def _build_upper(self, layers: nn.ModuleList) -> tuple[_Stored, nn.Module]:
        """Copy the backbone, its modules shared, with stored states in place of what the lower layers give."""
        seen: list[bool] = []
        handle = self._first.register_forward_hook(lambda module, given, output: seen.append(isinstance(output, tuple)))
        try:
            with torch.no_grad():
                ids, mask = self._example()
                self.backbone(input_ids=ids, attention_mask=mask)
        finally:
            handle.remove()
        lower = self.layers - self.trainable_layers
        stored = _Stored(layers[lower - 1], seen[0])
        # in every lower layer's place, so that backbones which count layers come to the same numbers
        parts = nn.ModuleList([*[stored] * lower, *layers[lower:]])
        return stored, _with(self.backbone, self._place, parts)

    def _example(self) -> tuple[Tensor, Tensor]:
        """Token ids of two short texts, the second one padded, and their mask."""
        device = next(self.backbone.parameters()).device
        ids = torch.arange(2, 14, device=device).reshape(2, 6) % self.backbone.config.vocab_size
        mask = torch.ones_like(ids)
        mask[1, 4:] = 0
        return ids, mask

    def _check(self) -> None:
        """Compare both parts, one after the other, with the whole."""
        (ids, mask), training = self._example(), self.backbone.training
        self.backbone.eval()
        try:
            with torch.no_grad():
                whole = self.backbone(input_ids=ids, attention_mask=mask).last_hidden_state
                parts = self.upper(self.lower(ids, mask), ids, mask)
        finally:
            self.backbone.train(training)
        if not torch.allclose(parts[mask.bool()], whole[mask.bool()], rtol=1e-3, atol=1e-4):
            raise InputError(
                f"encoder.trainable_layers is {self.trainable_layers}, but a {type(self.backbone).__name__} gives "
                "other embeddings where its upper layers start from stored states. Take encoder.trainable_layers=null."
            )


def _with(module: nn.Module, place: str, part: nn.Module) -> nn.Module:
    """Copy a module, its parts shared, with another part in one place."""
    name, _, rest = place.partition(".")
    copied = copy.copy(module)
    copied._modules = dict(module._modules)
    copied._modules[name] = _with(module._modules[name], rest, part) if rest else part
    copied._compiled_call_impl = None  # it would call what was compiled, the whole
    return copied
