"""Two processes with a part of a batch each give the gradient of one process with all of it, for every objective."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import torch
import torch.distributed as dist
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from callbacks.reporting.diagnostics import measure
from datamodules import QueryListDataModule
from datamodules.batch_sampler import BatchSampler
from datamodules.batches import ListBatches
from datamodules.caches import embed
from experiments.training.train import run_experiment
from helpers.kills import killed_at
from helpers.objectives import CONTRASTIVE, OF_CORPUS
from helpers.objectives import OBJECTIVES as EVERY
from helpers.processes import free_port, on_two_ranks
from helpers.runs import CONF
from retriever.encoder.text_encoder import TextEncoder

pytestmark = pytest.mark.slow

OBJECTIVES = {name: given for name, given in EVERY.items() if given[0] not in OF_CORPUS}


def gradients(paths, rank, world_size):
    """Of this rank's part of each batch: (objective, number) → flat gradient, and → figures of the whole batch."""
    model, corpus, lists, cache = paths
    encoder = TextEncoder.from_pretrained(str(model), pooling="mean", passage_max_length=64, query_max_length=64)
    spec = [{"path": str(lists), "corpus": str(corpus)}]
    data = QueryListDataModule(encoder, spec, spec, leak_guard="off", cache_dir=cache)
    data.setup()
    with torch.no_grad():  # its own query side would be the student: half of the numbers are another encoder
        half = torch.arange(encoder.dimension).numpy() % 2
        guides = ([half * embed(t, encoder, 400) for t in (s.query_tokens, s.passage_tokens)] for s in data._train)
        data._train = [replace(s, guide=tuple(guide)) for s, guide in zip(data._train, guides, strict=True)]
    found, figures = {}, {}
    for name, (objective, options) in OBJECTIVES.items():
        sampler = BatchSampler(data._train, 14, seed=5, rank=rank, world_size=world_size)  # 14, 13, 13 lists
        for number, draw in enumerate(sampler):
            module = objective(encoder, token_budget=400, **options)
            module.zero_grad()
            batch = ListBatches(data._train, 20, "top", module.needs)[draw]
            module.watch = lambda *seen, module=module, key=(name, number): figures.update(
                {key: measure(module, *seen, 0.3)}
            )
            module.training_step(batch, 0).backward()
            flat = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
            found[name, number] = torch.cat(flat)
    return found, figures


def worker(rank, paths, port, out):
    """One of two gloo processes: mean of the gradients over ranks, as DDP forms it."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    found, figures = gradients(paths, rank, 2)
    for gradient in found.values():
        dist.all_reduce(gradient)
        gradient /= 2
    torch.save((found, figures), f"{out}.{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(tiny_model, small_scifact, small_lists, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    paths = (tiny_model, small_scifact, small_lists, folder / "cache")
    one = gradients(paths, 0, 1)
    on_two_ranks(worker, paths, free_port(), folder / "two.pt")
    return one, [torch.load(f"{folder}/two.pt.{rank}", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_ranks_give_the_gradient_of_one(both, name):
    (one, _), [(two, _), _] = both
    for number in range(3):
        whole, parts = one[name, number], two[name, number]
        assert whole.norm() > 0
        assert (parts - whole).norm() < 1e-5 * whole.norm()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_ranks_measure_what_one_does(both, name):
    (_, one), ranks = both
    for number in range(3):
        whole = one[name, number]
        assert {"query_gradient_norm/loss", "passage_gradient_norm/loss", "passage_uniformity"} <= whole.keys()
        assert ("masked_negatives" in whole) == issubclass(OBJECTIVES[name][0], CONTRASTIVE)
        for _, figures in ranks:
            assert figures[name, number] == pytest.approx(whole, rel=1e-5, abs=1e-6)


MODULES = sorted(path.stem for path in (CONF / "module").glob("[!_]*.yaml"))


class Watch(L.Callback):
    """Micro-batches, what is logged and, under DDP, the elements that each all-reduce of gradients carries, by step."""

    def __init__(self):
        self.forwards, self.reduced, self.logged = Counter(), defaultdict(list), []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        shares = ("train/distinct_share", "train/padding_share")  # of what each rank encodes
        found = {name: float(v) for name, v in trainer.callback_metrics.items() if name not in shares}
        self.logged.append({name: value for name, value in found.items() if name.startswith("train/")})

    def on_train_start(self, trainer, pl_module):
        pl_module.encoder.register_forward_hook(lambda *_: self.forwards.update([trainer.global_step]))
        if isinstance(trainer.strategy, DDPStrategy):
            trainer.strategy.model.register_comm_hook(trainer, self.all_reduce)

    def all_reduce(self, trainer, bucket):
        self.reduced[trainer.global_step].append(bucket.buffer().numel())
        return allreduce_hook(None, bucket)


def fit(name, overrides, **trainer):
    """Three steps through Lightning with SGD, since Adam makes whole steps of rounding: the weights, and the watch."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("run", [f"module={name}", *overrides])
    torch.manual_seed(0)
    encoder = instantiate(config.encoder)
    module = instantiate(config.module, encoder=encoder)
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.5, momentum=0.9)
    watch = Watch()
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "use_distributed_sampler")
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        gradient_clip_val=0.5,
        limit_val_batches=0,
        callbacks=[watch],
        **dict.fromkeys(off, False),
        **trainer,
    )
    data = instantiate(config.data, encoder=encoder)
    data.needs = module.needs
    trainer.fit(module, datamodule=data)
    return trainer.strategy.lightning_module_state_dict(), watch


def fit_as_rank(rank, world_size, port, cases, out):
    """One of the processes of ``world_size``: trains every case, and runs an experiment under FSDP and under DDP."""
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    found = {}
    for name, overrides in cases.items():
        weights, watch = fit(name, overrides, devices=world_size, strategy="ddp")
        found[name] = weights, dict(watch.forwards), dict(watch.reduced), watch.logged
    for name in ("combined", "reranker"):
        strategy = ModelParallelStrategy(save_distributed_checkpoint=False)
        weights, watch = fit(name, cases[name], devices=world_size, strategy=strategy)
        found[name, "fsdp"] = weights, dict(watch.forwards)
    torch.save(found, f"{out}.{rank}")
    for trainer in ("fsdp", "ddp"):
        run_with_workers(Path(out).parent / trainer, cases["combined"], trainer)
    dist.destroy_process_group()


def run_with_workers(folder, overrides, trainer):
    """A whole run, and one that is cut off inside its second epoch and resumed; batches come from loader workers."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        data = next(o for o in overrides if o.startswith("data.train")).split("corpus: ")[1].rstrip("}]")
        options = [f"evaluation.datasets=[{{path: {data}}}]", "encoder.dropout=0.1", "logger=csv", "name=fsdp"]
        options += ["trainer=fsdp"] if trainer == "fsdp" else ["trainer.strategy=ddp"]
        options += ["trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.devices=2", "data.num_workers=1"]
        options += [
            "trainer.max_steps=6",
            "trainer.val_check_interval=2",
            "early_stopping.patience=null",
        ]  # ends between two validations
        config = compose("run", ["module=combined", *overrides, *options])
        resumed = compose("run", ["module=combined", *overrides, *options, f"resume={folder}/cut"])
    run_experiment(config, folder / "whole")
    with killed_at(4):  # the last checkpoint is at 2
        run_experiment(config, folder / "cut")
    run_experiment(resumed, folder / "cut")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("trained")


@pytest.fixture(scope="module")
def trained(tiny_model, small_scifact, small_lists, folder):
    classifier = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1)
    classifier.save_pretrained(folder / "cross")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder / "cross")
    cases = {}
    for name in MODULES:
        encoder = [f"encoder.model={tiny_model}", "encoder.passage_max_length=64"]
        if name == "reranker":
            encoder = ["encoder=cross", f"encoder.model={folder}/cross", "encoder.passage_max_length=64"]
            encoder += ["encoder.pair_max_length=100", "encoder.dropout=0"]
        cases[name] = [
            *encoder,
            f"data.train=[{{path: {small_lists}, corpus: {small_scifact}}}]",
            "data.dev=null",
            "data.dev_fraction=0.25",
            "data.batch_size=13",
            "data.leak_guard=off",
            "token_budget=700",
            f"cache_dir={folder}/cache",
            *(["module.matryoshka_dimensions=[16, 8]"] if name == "matryoshka" else []),
            *([f"data.guide={{model: {tiny_model}, pooling: cls}}"] if name == "embedding_regression" else []),
            # else each rank looks at the passages of its own lists alone
            *(["module.train_passage_encoder=false"] if name.endswith("_corpus") else []),
        ]
    one = {name: fit(name, overrides) for name, overrides in cases.items()}
    on_two_ranks(fit_as_rank, 2, free_port(), cases, folder / "two")
    return one, [torch.load(folder / f"two.{rank}", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("name", MODULES)
def test_training_on_two_ranks_gives_the_weights_of_one_and_reduces_gradients_once_a_step(trained, name):
    one, ranks = trained
    whole = torch.cat([w.flatten() for w in one[name][0].values()])
    for weights, forwards, reduced, _ in (rank[name] for rank in ranks):
        parts = torch.cat([weights[key].flatten() for key in one[name][0]])
        assert (parts - whole).norm() < 1e-5 * whole.norm()
        assert forwards.keys() == reduced.keys() == {0, 1, 2}
        assert min(forwards.values()) >= (1 if name.endswith("_corpus") else 3)
        parameters = sum(w.numel() for key, w in weights.items())
        assert all(sum(sizes) == parameters for sizes in reduced.values())


@pytest.mark.parametrize("name", MODULES)
def test_train_metrics_of_two_ranks_are_those_of_one(trained, name):
    one, ranks = trained
    logged = one[name][1].logged
    assert len(logged) == 3 and all("train/loss" in figures for figures in logged)
    for *_, found in (rank[name] for rank in ranks):
        for figures, expected in zip(found, logged, strict=True):
            assert figures == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["combined", "reranker"])
def test_fsdp_with_uneven_micro_batches_gives_the_weights_of_one(trained, name):
    one, ranks = trained
    weights, forwards = ranks[0][name, "fsdp"]
    whole = torch.cat([w.flatten() for w in one[name][0].values()])
    parts = torch.cat([weights[key].flatten() for key in one[name][0]])
    assert (parts - whole).norm() < 1e-5 * whole.norm()
    assert forwards != ranks[1][name, "fsdp"][1]  # ranks that waited for one another in a micro-batch would hang


@pytest.mark.parametrize("strategy", ["fsdp", "ddp"])
def test_a_run_on_two_ranks_with_workers_resumes_and_leaves_a_whole_model(trained, folder, strategy):
    folder = folder / strategy
    last = {run: torch.load(folder / run / "checkpoints" / "last.ckpt", weights_only=True) for run in ("whole", "cut")}
    for part in ("state_dict", "optimizer_states", "global_step"):
        torch.testing.assert_close(last["cut"][part], last["whole"][part], rtol=0, atol=0)
    results = {run: json.loads((folder / run / "results.json").read_text()) for run in ("whole", "cut")}
    assert results["cut"]["datasets"] == results["whole"]["datasets"] and results["whole"]["steps"]["last"] == 6
    best = torch.load(next((folder / "whole" / "checkpoints").glob("step-*.ckpt")), weights_only=True)
    exported = TextEncoder.from_pretrained(str(folder / "whole" / "model"), passage_max_length=64)
    for name, weight in exported.state_dict().items():
        assert torch.equal(weight, best["state_dict"][f"encoder.{name}"])
