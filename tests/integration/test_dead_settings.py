"""No setting of a run or of an objective is without effect: see ``tests/helpers/observed_settings.py``."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest
from omegaconf import OmegaConf

from helpers.observed_settings import (
    OFF,
    Seen,
    World,
    composed,
    dead,
    encoder_leaves,
    is_listed,
    leaves,
    report,
)
from helpers.runs import CONF
from retriever.module import RetrieverModule
from retriever.query_list_module import QueryListModule

pytestmark = pytest.mark.slow

MODULES = sorted(path.stem for path in (CONF / "module").glob("[!_]*.yaml"))
SHARED = set(inspect.signature(QueryListModule.__init__).parameters) | set(
    inspect.signature(RetrieverModule.__init__).parameters
)


ENCODER = {"_target_": "retriever.encoder.TextEncoder.from_pretrained"}


def run_leaves(world: World) -> dict[str, Seen]:
    """Leaves of the default composition."""
    two = {"data.train": [*world.of("train"), *world.of("second", world.second)]}
    shared = {"evaluation.datasets": [{"path": world.corpus, "split": "shared"}], "data.leak_jaccard": 1.1}
    kept = {"evaluation.datasets": [{"path": "kept"}], "data_dir": str(world.folder / "store")}
    near = {"evaluation.datasets": [{"path": world.corpus, "split": "near"}], "data.leak_jaccard": 1.1}
    gaps = {"evaluation.datasets": [{"path": world.gaps}]}
    strays = [{"path": world.corpus, "name": "lists", "lists": world.lists["strays"]}]
    both = {"data.list_length": 3}
    frozen = {"module.train_passage_encoder": False, "cache_dir": world.emptied}
    stopping = {"early_stopping.patience": 1, "trainer.max_epochs": 4, "module.learning_rate": 1e-9}
    return {
        "name": Seen("run", "another"),
        "seed": Seen("batches", 2),
        "output_dir": Seen("caches", str(world.folder / "elsewhere")),
        "cache_dir": Seen("caches", str(world.folder / "elsewhere2")),
        "data_dir": Seen("batches", str(world.folder / "nowhere"), kept, refused="There is no data set 'kept'"),
        "token_budget": Seen("gradients", 100),
        "temperatures.infonce": Seen("gradients", 0.3),
        "temperatures.student": Seen("gradients", 0.3),
        "temperatures.teacher": Seen("gradients", 0.1),
        "temperatures.corpus_teacher": Seen(
            "gradients", 0.1, {"module.teacher_temperature": "${temperatures.corpus_teacher}"}
        ),
        "temperatures.fitted": Seen("run", "labels"),
        "criterion": Seen("run", "dev/teacher_ndcg@10"),
        "criterion_mode": Seen("run", "max"),
        "empty_passages": Seen("batches", "error", gaps, refused="neither title nor text"),
        "unknown_qrels": Seen("batches", "keep", {"evaluation.datasets": [{"path": world.corpus, "split": "stray"}]}),
        "on_bad_list": Seen("batches", "drop", {"data.train": world.of("strays")}),
        "allow_test_selection": Seen("accepted", True, {"criterion": "val/small/ndcg@10"}),
        "early_stopping.monitors": Seen(
            "run", ["dev/loss"], stopping | {"early_stopping.monitors": ["dev/top1_agreement"]}
        ),
        "early_stopping.patience": Seen(
            "run", 1, stopping | {"early_stopping.monitors": ["dev/top1_agreement"], "early_stopping.patience": None}
        ),
        "diagnostics.every_n_steps": Seen("run", 1),
        "diagnostics.teacher_temperature": Seen("run", 0.9, {"diagnostics.every_n_steps": 1}),
        "passage_encoder": Seen(
            "fit", ENCODER | {"model": world.other_model, "pooling": "mean"}, {"module.train_passage_encoder": False}
        ),
        "resume": Seen("run", str(world.folder / "no_run"), refused="no_run"),
        "repeats": Seen("run", str(world.folder / "no_run")),
        "allowed_targets": Seen("accepted", ["torch"], {"module._target_": "torch.nn.Identity"}),
        "export": Seen("run", True),
        "save_checkpoints": Seen("run", False),
        "module.train_passage_encoder": Seen("fit", False),
        "module.learning_rate": Seen("fit", 1e-3),
        "module.weight_decay": Seen("fit", 0.5),
        "scheduler.warmup_steps": Seen("fit", 3),
        "scheduler.decay": Seen("fit", "to_zero", {"scheduler.final_learning_rate": 0.1, "trainer.max_epochs": 3}),
        "scheduler.final_learning_rate": Seen("fit", 0.9),
        "module.token_budget": Seen("gradients", 100),
        "module.uncheckpointed_tokens": Seen("gradients", 0, {"module.token_budget": 300}),
        "module.matryoshka_dimensions": Seen("gradients", [16, 8]),
        "module.matryoshka_weights": Seen("gradients", [0.5, 0.1], {"module.matryoshka_dimensions": [16, 8]}),
        "module.orthogonal_weight": Seen("gradients", 2.0),
        "data.train": Seen("batches", world.of("some")),
        "data.dev": Seen("batches", None),
        "data.dev_over_corpus": Seen(
            "accepted", True, {"criterion": "dev/corpus_kl", "module.train_passage_encoder": False}
        ),
        "data.dev_fraction": Seen("batches", 0.5, {"data.dev": None}),
        "data.batch_size": Seen("batches", 5),
        "data.list_length": Seen("batches", 3),
        "data.candidates": Seen("batches", "sample", both),
        "data.normalization": Seen("batches", "none"),
        "data.min_top_quantile": Seen("batches", 0.9),
        "data.order": Seen("batches", "rotate", two),
        "data.group_overlapping_lists": Seen("batches", True),
        "data.sources": Seen("batches", "hide"),
        "data.on_bad_list": Seen("batches", "drop", {"data.train": world.of("strays")}),
        "data.leak_guard": Seen("batches", "off", shared),
        "data.leak_jaccard": Seen("batches", 0.05),
        "data.human_types": Seen("batches", ["question"], shared),
        "data.evaluation": Seen("batches", [{"path": world.corpus, "split": "shared"}]),
        "data.empty_passages": Seen("batches", "error", gaps, refused="neither title nor text"),
        "data.leak_near_passages": Seen("batches", 0.5, near),
        "data.unknown_qrels": Seen(
            "batches", "keep", {"evaluation.datasets": [{"path": world.corpus, "split": "stray"}]}
        ),
        "data.cache_dir": Seen("caches", str(world.folder / "elsewhere3")),
        "data.data_dir": Seen("batches", str(world.folder / "nowhere"), kept, refused="There is no data set 'kept'"),
        "data.token_budget": Seen("fit", 500, frozen),
        "data.num_workers": Seen("batches", 2),
        "data.seed": Seen("batches", 2),
        "evaluation.datasets": Seen("fit", [{"path": world.corpus, "split": "shared"}], {"data.leak_guard": "off"}),
        "evaluation.metrics": Seen("fit", ["nDCG@10", "P@5"]),
        "evaluation.hits": Seen("fit", 110, {"evaluation.run_hits": 1000}),
        "evaluation.run_hits": Seen("fit", 5),
        "evaluation.ignore_identical_ids": Seen(
            "fit", False, {"evaluation.datasets": [{"path": world.corpus, "split": "own"}]}
        ),
        "evaluation.embedding_dtype": Seen("fit", "float16"),
        "evaluation.unknown_qrels": Seen(
            "fit", "keep", {"evaluation.datasets": [{"path": world.corpus, "split": "stray"}]}
        ),
        "evaluation.empty_passages": Seen(
            "fit", "error", {"evaluation.datasets": [{"path": world.gaps}]} | OFF, refused="neither title nor text"
        ),
        "evaluation.on_bad_list": Seen("fit", "drop", {"evaluation.datasets": strays, "data.leak_guard": "off"}),
        "evaluation.cache_dir": Seen("caches_of_fit", str(world.folder / "elsewhere4")),
        "evaluation.data_dir": Seen("fit", str(world.folder / "other_store"), kept | {"data.leak_guard": "off"}),
        "evaluation.token_budget": Seen("fit", 500, {"cache_dir": world.emptied}),
        "trainer.max_epochs": Seen("trainer", 5),
        "trainer.max_steps": Seen("trainer", 5),
        "trainer.devices": Seen("trainer", 2),
        "trainer.num_nodes": Seen("trainer", 2),
        "trainer.strategy": Seen("trainer", "ddp"),
        "trainer.precision": Seen("trainer", "bf16-mixed"),
        "trainer.gradient_clip_val": Seen("trainer", 0.5),
        "trainer.accumulate_grad_batches": Seen("trainer", 2),
        "trainer.check_val_every_n_epoch": Seen("trainer", 2),
        "trainer.val_check_interval": Seen("trainer", 0.5),
        "trainer.limit_train_batches": Seen("trainer", 3),
        "trainer.limit_val_batches": Seen("trainer", 3),
        "trainer.log_every_n_steps": Seen("trainer", 3),
        "trainer.num_sanity_val_steps": Seen("trainer", 1),
        "trainer.enable_model_summary": Seen("trainer", True),
        "trainer.deterministic": Seen("trainer", True),
        **encoder_leaves(world),
    }


# leaf of an objective → another value, and what it needs beside it
OBJECTIVES: dict[str, Seen] = {
    "distillation_weight": Seen("gradients", 0.5),
    "infonce_weight": Seen("gradients", 0.7),
    "temperature": Seen("gradients", 0.3),
    "teacher_temperature": Seen("gradients", 0.9),
    "infonce_temperature": Seen("gradients", 0.3),
    "learnable_temperature": Seen("gradients", True),
    "positive": Seen("gradients", None),  # the other one
    "false_negative_threshold": Seen("gradients", 0.3),
    "multiset": Seen("gradients", False),
    "divergence": Seen("gradients", None),
    "unknown_weight": Seen("gradients", 0.3),
    "unknown_margin": Seen("gradients", 0.5),
    "false_negative_share": Seen("gradients", 0.1),
    "positive_aware": Seen("gradients", "student"),
    "negative_share": Seen("gradients", 0.5),
    "negative_margin": Seen("gradients", 0.3),
    "negative_limit": Seen("gradients", 0.2),
    "symmetric": Seen("gradients", True),
    "hardness": Seen("gradients", 5.0),
    "weights": Seen("gradients", "lambdarank"),
    "weighted": Seen("gradients", True),
    "distance": Seen("gradients", "cosine"),
    "passage_weight": Seen("gradients", 0.3),
}
# of the data, for objectives that look at the whole corpus
CORPUS_SCORES: dict[str, Seen] = {
    "bm25": Seen("gradients", 0.1),
    "encoder": Seen("gradients", 0.1),
    "depth": Seen("gradients", 3),
    "columns": Seen("gradients", 20, {"module.train_passage_encoder": False}),
    "language": Seen("gradients", "german"),
}
OTHER = {"teacher": "labelled", "labelled": "teacher", "kl": "reverse_kl", "reverse_kl": "kl", "jensen_shannon": "kl"}


def other(seen: Seen, now: Any) -> Seen:
    """A choice's other value."""
    return dataclasses.replace(seen, value=OTHER[now]) if seen.value is None else seen


def test_every_setting_of_a_run_is_followed_or_refused(world, said):
    entries, config = run_leaves(world), OmegaConf.to_container(composed(), resolve=False)
    found = leaves(config)
    module = {k: s for k, s in ((f"module.{n}", s) for n, s in OBJECTIVES.items()) if k in found}
    every = entries | {k: other(s, found[k]) for k, s in module.items()}
    without = [key for key in found if key not in every and not is_listed(key)]
    assert not without, f"these settings have no entry here: {without}"
    assert not [key for key in every if key not in found], "entries of settings that there are no more"
    assert not (found_dead := dead(world, every, world.base(), said)), "\n".join(found_dead)
    report("run", found, every)


@pytest.mark.parametrize("module", [module for module in MODULES if module != "reranker"])
def test_every_setting_of_an_objective_is_followed_or_refused(world, said, module):
    found = leaves(OmegaConf.to_container(composed(f"module={module}").module, resolve=False))
    every = {name: value for name, value in found.items() if name not in SHARED and not is_listed(f"module.{name}")}
    without = [name for name in every if name not in OBJECTIVES]
    assert not without, f"these settings have no entry here: {without}"
    base = world.base() | ({"module.matryoshka_dimensions": [16, 8]} if module == "matryoshka" else {})
    entries = {f"module.{name}": other(OBJECTIVES[name], value) for name, value in every.items()}
    if module.endswith("_corpus"):
        by_teacher = {"module.positive": "teacher"} if "positive" in found else {}
        entries |= {
            f"data.corpus_scores.{name}": dataclasses.replace(seen, context=seen.context | by_teacher)
            for name, seen in CORPUS_SCORES.items()
        }
        entries = {key: dataclasses.replace(seen, by="fit") for key, seen in entries.items()}  # the data module's part
    if module in ("infonce_guided", "embedding_regression"):
        if module == "embedding_regression":
            base |= {"data.guide": {"model": world.model, "pooling": "cls"}}
        entries["data.guide"] = Seen("fit", {"model": world.other_model, "pooling": "mean"})
        entries = {key: dataclasses.replace(seen, by="fit") for key, seen in entries.items()}
    found_dead = dead(world, entries, base, said, [f"module={module}"])
    assert not found_dead, "\n".join(found_dead)
