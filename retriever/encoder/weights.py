"""Hashes of weights."""

import hashlib

import torch
from torch import Tensor, nn


def update_with_weights(digest: "hashlib._Hash", module: nn.Module) -> None:
    """Feed a module's names, types, shapes and weights to a hash, and by what peft scales its adapters."""
    # no state_dict(), which has the same tensors, and no NumPy views of them: with these, FSDP cannot free its weights
    tensors: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    for place, part in module.named_modules(remove_duplicate=False):
        if isinstance(scaling := getattr(part, "scaling", None), dict):  # adapter → factor; attention has a number
            digest.update(f"{place} {scaling}".encode())
        kept = part._buffers.keys() - part._non_persistent_buffers_set
        tensors |= {
            f"{place}.{name}".lstrip("."): part._buffers[name] for name in kept if part._buffers[name] is not None
        }
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().to("cpu", copy=True).contiguous().view(torch.uint8).numpy().tobytes())
