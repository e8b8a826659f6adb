"""No setting of a cross-encoder is without effect: see ``tests/helpers/observed_settings.py``."""

from __future__ import annotations

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

pytestmark = pytest.mark.slow


RERANK = ("module=reranker", "encoder=cross", "evaluation=rerank")


def rerank_leaves(world: World) -> dict[str, Seen]:
    """Leaves that a cross-encoder and its evaluation have, and the default composition has not."""
    stray = {"evaluation.datasets": [{"path": world.corpus, "split": "stray"}]}
    kept = {
        "evaluation.datasets": [{"path": "kept"}],
        "data_dir": str(world.folder / "store"),
        "data.leak_guard": "off",
    }
    strays = [{"path": world.corpus, "name": "lists", "lists": world.lists["strays"]}]
    own = {"evaluation.datasets": [{"path": world.corpus, "split": "own"}]}
    known = {"encoder.preset": {"model": world.model}, "encoder.passage_max_length": None}
    return {
        "encoder.model": Seen("cross", world.other_model),
        "encoder.preset": Seen("cross", {"model": world.model, "passage_max_length": 20}, known),
        "encoder.revision": Seen("cross", "main", refused="has no revisions"),
        "encoder.query_max_length": Seen("cross", 8),
        "encoder.passage_max_length": Seen("cross", 20),
        "encoder.pair_max_length": Seen("cross", 30),
        "encoder.dropout": Seen("cross", 0.5),
        "encoder.attention": Seen("cross", "eager"),
        "module.negatives": Seen("cross", 2),
        "module.negative_ranks": Seen("cross", [3, 50], {"module.negatives": 2}),
        "module.dev_negatives": Seen("run", 2),
        "module.distillation_weight": Seen("cross", 0.5),
        "module.temperature": Seen("cross", 0.2, {"module.distillation_weight": 0.5}),
        "module.teacher_temperature": Seen("cross", 0.9, {"module.distillation_weight": 0.5}),
        "module.token_budget": Seen("cross", 100),
        "module.uncheckpointed_tokens": Seen("cross", 0, {"module.token_budget": 300}),
        "module.learning_rate": Seen("fit", 1e-3),
        "module.weight_decay": Seen("fit", 0.5),
        "scheduler.warmup_steps": Seen("fit", 2),
        "scheduler.decay": Seen("fit", "to_zero"),
        "scheduler.final_learning_rate": Seen("fit", 0.9),
        "evaluation.datasets": Seen("fit", own["evaluation.datasets"], {"data.leak_guard": "off"}),
        "evaluation.depth": Seen("fit", 5),
        "evaluation.k1": Seen("fit", 3.0),
        "evaluation.b": Seen("fit", 1.0),
        "evaluation.dense_weight": Seen("fit", 0.1),
        "evaluation.every_validation": Seen("run", True),
        "evaluation.metrics": Seen("fit", ["nDCG@10", "P@5"]),
        "evaluation.hits": Seen("fit", 20),
        "evaluation.run_hits": Seen("fit", 5),
        "evaluation.ignore_identical_ids": Seen("fit", False, own),
        "evaluation.unknown_qrels": Seen("fit", "keep", stray),
        "evaluation.empty_passages": Seen(
            "fit", "error", {"evaluation.datasets": [{"path": world.gaps}]} | OFF, refused="neither"
        ),
        "evaluation.on_bad_list": Seen("fit", "drop", {"evaluation.datasets": strays, "data.leak_guard": "off"}),
        "evaluation.cache_dir": Seen("caches_of_fit", str(world.folder / "elsewhere5")),
        "evaluation.data_dir": Seen("fit", str(world.folder / "other_store"), kept),
        "evaluation.token_budget": Seen("fit", 500, {"cache_dir": world.emptied}),
        **encoder_leaves(world, "evaluation.dense", "dense"),
    }


def test_every_setting_of_a_cross_encoder_is_followed_or_refused(world, said):
    entries = rerank_leaves(world)
    found = leaves(OmegaConf.to_container(composed(*RERANK), resolve=False))
    plain = leaves(
        OmegaConf.to_container(composed(), resolve=False)
    )  # these have their entries in test_dead_settings.py
    known = {key for key in plain if not key.startswith(("module.", "encoder.", "evaluation."))}
    without = [key for key in found if key not in entries.keys() | known and not is_listed(key)]
    assert not without, f"these settings have no entry here: {without}"
    small = {"trainer.limit_train_batches": 1, "module.negatives": 3, "encoder.pair_max_length": 64}
    small |= {"evaluation.dense.model": world.model, "evaluation.dense.pooling": "mean"}
    small |= {"evaluation.dense.passage_max_length": 48, "evaluation.depth": 10}
    base = {key: value for key, value in world.base().items() if key != "encoder.pooling"} | small
    found_dead = dead(world, entries, base, said, RERANK)
    assert not found_dead, "\n".join(found_dead)
    report("run, cross-encoder", {key: value for key, value in found.items() if key not in known}, entries)
