"""FSDP for encoders: each rank keeps a share of weights, gradients and optimiser state.

Ranks encode different numbers of micro-batches, so no forward or backward pass may wait for the other ranks. Weights
are therefore gathered once, before a step or an evaluation. A layer's gradient is sent to the other ranks once a step,
after all micro-batches have added to it, in the same order on every rank.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from retriever.distributed.ranks import rank, world_size


def shard(encoder: nn.Module, device: torch.device) -> None:
    """Share an encoder out over all ranks, in place: each layer of its stacks by itself, the rest together."""
    mesh = init_device_mesh(device.type, (world_size(),))
    stacks = [part for part in encoder.modules() if isinstance(part, nn.ModuleList)]
    for layer in [layer for stack in stacks for layer in stack]:
        fully_shard(layer, mesh=mesh, reshard_after_forward=False)
    fully_shard(encoder, mesh=mesh, reshard_after_forward=False)
    encoder.set_reshard_after_backward(False)


def gather_weights(encoder: nn.Module) -> None:
    """Put whole weights in place of the shares of a sharded encoder; all ranks must take part."""
    with torch.inference_mode(False):  # weights made in a validation are trained later
        for part in _sharded(encoder):
            part.unshard()


def release_weights(encoder: nn.Module) -> None:
    """Go back to the shares, which the optimiser works on."""
    for part in _sharded(encoder):
        part.reshard()


def whole_weights(encoder: nn.Module) -> dict[str, Tensor]:
    """Gather name → whole tensor on the CPU of the first rank alone; all ranks must take part."""
    whole = {}
    for name, tensor in encoder.state_dict().items():
        tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if rank() == 0:
            whole[name] = tensor.cpu()
    return whole


def load_whole_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load weights into a module that may be sharded; all ranks must take part, with the same weights."""
    if not _sharded(module):
        module.load_state_dict(weights)
        return
    release_weights(module)
    set_model_state_dict(module, dict(weights), options=StateDictOptions(full_state_dict=True))
    gather_weights(module)


def _sharded(encoder: nn.Module) -> list[FSDPModule]:
    return [part for part in encoder.modules() if isinstance(part, FSDPModule)]
