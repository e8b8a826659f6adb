"""Two processes with a part of a batch each give the gradient of one process with all of it, for every objective."""

from __future__ import annotations

import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from datamodules import QueryListDataModule
from datamodules.batches import BatchSampler, ListBatches
from retriever.encoder import TextEncoder
from retriever.objectives import CombinedObjective, InfoNCE, ListwiseDistillation

OBJECTIVES = {
    "infonce": (InfoNCE, {}),
    "infonce, each passage once": (InfoNCE, {"multiset": False}),
    "infonce, labelled": (InfoNCE, {"positive": "labelled", "false_negative_threshold": None}),
    "distillation": (ListwiseDistillation, {}),
    "combined": (CombinedObjective, {"infonce_weight": 1.0, "learnable_temperature": True}),
}


def gradients(paths, rank, world_size):
    """Objective → (loss share, flat gradient) of this rank's part of one batch of 15 lists."""
    model, corpus, lists, cache = paths
    encoder = TextEncoder.from_pretrained(str(model), pooling="mean", passage_max_length=64, query_max_length=64)
    spec = [{"path": str(lists), "corpus": str(corpus)}]
    data = QueryListDataModule(encoder, spec, spec, leak_guard="off", cache_dir=cache)
    data.setup()
    found = {}
    for name, (objective, options) in OBJECTIVES.items():
        sampler = BatchSampler(data._train, 14, seed=5, rank=rank, world_size=world_size)  # 14, 13, 13 lists
        for number, draw in enumerate(sampler):
            module = objective(encoder, token_budget=400, **options)
            module.zero_grad()
            batch = ListBatches(data._train, 20, "top", module.uses_labels)[draw]
            (module.objective(module.encode_batch(batch))["loss"] * module.rank_weight(batch)).backward()
            flat = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
            found[name, number] = torch.cat(flat)
    return found


def worker(rank, paths, port, out):
    """One of two gloo processes: mean of the gradients over ranks, as DDP forms it."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    found = gradients(paths, rank, 2)
    for gradient in found.values():
        dist.all_reduce(gradient)
        gradient /= 2
    if rank == 0:
        torch.save(found, out)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(tiny_model, small_scifact, small_lists, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    paths = (tiny_model, small_scifact, small_lists, folder / "cache")
    one = gradients(paths, 0, 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, (paths, port, folder / "two.pt"), nprocs=2)
    return one, torch.load(folder / "two.pt", weights_only=True)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_ranks_give_the_gradient_of_one(both, name):
    one, two = both
    for number in range(3):
        whole, parts = one[name, number], two[name, number]
        assert whole.norm() > 0
        assert (parts - whole).norm() < 1e-5 * whole.norm()
