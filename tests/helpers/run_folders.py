"""Run folders that no run has written: figures of any kind, for what reads and compares runs."""

from __future__ import annotations

import json

import numpy as np
from omegaconf import OmegaConf


def values(seed, queries=40, shift=0.0):
    """nDCG@10 of some queries."""
    return np.clip(np.random.default_rng(seed).beta(0.6, 0.6, queries) + shift, 0, 1)


def write_run(folder, name, seed, best, *, base=None, config=None, overlap=None, texts=None, **results):
    """A run folder in the format of experiments.run. ``best`` and ``base``: data set → values."""
    base = base or {d: values(0, len(v)) for d, v in best.items()}
    for step, of_step in {0: base, 8: best}.items():
        for dataset, per_query in of_step.items():
            path = folder / "per_query" / dataset / f"step-{step:06d}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"ndcg@10": {f"q{i}": float(v) for i, v in enumerate(per_query)}}))
    points = {d: {"base": float(base[d].mean()), "best": float(best[d].mean())} for d in best}
    results = {
        "name": name,
        "seed": seed,
        "steps": {"base": 0, "best": 8},
        "datasets": {d: {"ndcg@10": p, "recall@100": {"base": 0.8, "best": 0.9}} for d, p in points.items()},
        "wall_time_s": 60 * seed,
        "peak_memory_bytes": 2**30,
    } | results
    (folder / "results.json").write_text(json.dumps(results))
    OmegaConf.save({"seed": seed, **(config or {})}, folder / "config.yaml")
    rows = "".join(f"{step},{value}\n" for step, value in ((0, 0.5), (4, 0.6), (8, 0.7)))
    (folder / "metrics.csv").write_text(f"step,val/{next(iter(best))}/ndcg@10\n{rows}")
    for kind, content in (("overlap", overlap), ("queries", texts)):
        for dataset, found in (content or {}).items():
            (folder / kind).mkdir(exist_ok=True)
            (folder / kind / f"{dataset}.json").write_text(json.dumps(found))


def make_run(folder, name, seed, best, base=(0.2, 0.4), config=""):
    for step, values in {0: base, 5: best, 9: (0.0, 0.0)}.items():
        path = folder / "per_query" / "d" / f"step-{step:06d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"ndcg@10": dict(zip(("q1", "q2"), values, strict=True))}))
    points = {"base": 0.5, "best": 0.6, "last": 0.1}
    results = {
        "name": name,
        "seed": seed,
        "steps": {"base": 0, "best": 5, "last": 9},
        "datasets": {"d": {"ndcg@10": points, "recall@100": points}},
        "wall_time_s": 120,
    }
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "config.yaml").write_text(f"seed: {seed}\n{config}")
