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


class _Upper(nn.Module):
    """The upper layers of a backbone, whose modules it shares.

    Args:
        backbone: the whole.
        place: the name of its list of layers.
        lower: how many layers are left out.
        in_tuple: whether a layer gives its states in a tuple.
    """

    def __init__(self, backbone: nn.Module, place: str, lower: int, in_tuple: bool) -> None:
        super().__init__()
        layers = list(backbone.get_submodule(place).children())
        self.stored = _Stored(layers[lower - 1], in_tuple)
        # in every lower layer's place, so that backbones which count layers come to the same numbers
        self.backbone = _with(backbone, place, nn.ModuleList([*[self.stored] * lower, *layers[lower:]]))

    def forward(self, states: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Compute token embeddings from stored hidden states, [n, L, D].

        Args:
            states: as :meth:`LayerSplit.lower` gives them, of a floating type; what is padded does not count.
            input_ids: int64 [n, L]; backbones look at their shape.
            attention_mask: int64 [n, L], 1 for real tokens.
        """
        self.stored.states = states
        try:
            return self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        finally:
            self.stored.states = None


class LayerSplit:
    """Runs the lower and the upper layers of a backbone apart.

    Attributes:
        trainable_layers: layers of the upper part.
        layers: of the whole backbone.
        frozen_modules: names of the modules that are called before the upper layers.
        upper: computes token embeddings from states; it shares its modules with the backbone, so that what learns
            there learns here.

    Args:
        backbone: a ``transformers`` model whose layers are in one list.
        trainable_layers: how many of the last layers learn, at least 1.

    Raises:
        InputError: there are not so many, or the two parts together give other embeddings than the whole.
    """

    def __init__(self, backbone: nn.Module, trainable_layers: int) -> None:
        self.backbone, name = backbone, f"encoder.trainable_layers is {trainable_layers}, but {type(backbone).__name__}"
        count = getattr(backbone.config, "num_hidden_layers", None)
        lists = {n: m for n, m in backbone.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count}
        place, layers = next(iter(lists.items()), ("", nn.ModuleList()))
        self.layers, self.trainable_layers = len(layers), trainable_layers
        if layers and not 1 <= trainable_layers < len(layers):
            raise InputError(f"{name} has {len(layers)} layers: take 1 to {len(layers) - 1}, or null for all.")
        upper = self._built(place, layers) if layers else None
        if upper is None:
            raise InputError(
                f"{name} ({backbone.config.model_type}) cannot start from what its lower layers give: that needs "
                "layers in one list, each of which hands hidden states alone to the next, as in BERT, RoBERTa, MPNet, "
                "ModernBERT, Llama and Qwen3. Take encoder.trainable_layers=null."
            )
        self.upper = upper
        self.freeze()

    def lower(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Compute the hidden states that come to the upper layers, [n, L, D], without gradient."""

        def stop(module: nn.Module, arguments: tuple, named: dict[str, Any]) -> None:
            raise _Reached(arguments[0] if arguments else named["hidden_states"])

        handle = self._first.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # compiled code calls no hook
                self.backbone(input_ids=input_ids, attention_mask=attention_mask)
        except _Reached as reached:
            return reached.states
        finally:
            handle.remove()
        raise ValueError("the upper layers were not reached")

    def fingerprint(self) -> str:
        """Hash what the lower states depend on, beside the tokens, by SHA-256: weights, architecture, the layer."""
        digest = hashlib.sha256(f"{self.backbone.config.to_json_string()} {self.trainable_layers}".encode())
        update_with_weights(digest, nn.ParameterList(self._frozen))
        return digest.hexdigest()

    def freeze(self) -> None:
        """Freeze what is computed before the upper layers; a short text shows which modules that is."""
        called: dict[nn.Module, None] = {}
        handles = [m.register_forward_pre_hook(lambda m, _: called.setdefault(m)) for m in self.backbone.modules()]
        try:
            self.lower(*self._example())
        finally:
            for handle in handles:
                handle.remove()
        del called[self._first]
        self.frozen_modules = [name for name, module in self.backbone.named_modules() if module in called]
        self._frozen = list(dict.fromkeys(p for module in called for p in module.parameters(recurse=False)))
        for parameter in self._frozen:
            parameter.requires_grad_(False)

    def _built(self, place: str, layers: nn.ModuleList) -> _Upper | None:
        """Build the upper part; None where both parts, one after the other, do not give what the whole gives.

        Args:
            place: the name of the list of layers.
            layers: that list.
        """
        lower, (ids, mask), training = self.layers - self.trainable_layers, self._example(), self.backbone.training
        self._first = layers[lower]
        tuples: list[bool] = []
        handle = self._first.register_forward_hook(lambda *called: tuples.append(isinstance(called[2], tuple)))
        self.backbone.eval()
        try:
            with torch.no_grad():
                whole = self.backbone(input_ids=ids, attention_mask=mask).last_hidden_state
                upper = _Upper(self.backbone, place, lower, tuples[0])
                parts = upper(self.lower(ids, mask), ids, mask)
        except (TypeError, ValueError, KeyError, IndexError, AttributeError):
            return None
        finally:
            handle.remove()
            self.backbone.train(training)
        return upper if torch.allclose(parts[mask.bool()], whole[mask.bool()], rtol=1e-3, atol=1e-4) else None

    def _example(self) -> tuple[Tensor, Tensor]:
        """Token ids of two short texts, the second one padded, and their mask."""
        device = next(self.backbone.parameters()).device
        ids = torch.arange(2, 14, device=device).reshape(2, 6) % self.backbone.config.vocab_size
        mask = torch.ones_like(ids)
        mask[1, 4:] = 0
        return ids, mask


def _with(module: nn.Module, place: str, part: nn.Module) -> nn.Module:
    """Copy a module, its parts shared, with another part in one place."""
    name, _, rest = place.partition(".")
    copied = copy.copy(module)
    copied._modules = dict(module._modules)
    copied._modules[name] = _with(module._modules[name], rest, part) if rest else part
    return copied
