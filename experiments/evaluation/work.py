"""Evaluates one model on data sets, and keeps what came out as a run folder that ``compare`` reads."""

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from omegaconf import DictConfig, OmegaConf

from callbacks.evaluation.evaluator import Evaluator
from callbacks.evaluation.history import History
from callbacks.evaluation.metrics import Metrics
from callbacks.evaluation.ranker import Ranking
from callbacks.evaluation.sets import OpenedSet, Reading, open_sets
from callbacks.reporting.query_record import in_words
from callbacks.reporting.results import RESULTS
from callbacks.reporting.run_record import environment, peak_memory
from datamodules.precision import Precision, fastest_precision
from datamodules.specs import EvaluationSpec
from datamodules.storage.files import atomic_path, read_json, write_json
from datamodules.storage.input_hashes import input_sha256
from experiments.cli.redact import redact
from experiments.cli.rerun import CONFIG
from experiments.evaluation.models import Loaded, Model
from experiments.settings.inputs import files_of_set
from experiments.settings.precision import AUTO
from retriever.distributed.ranks import broadcast
from retriever.encoder.precision import FLOAT32, autocast
from retriever.errors import InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """What is evaluated, and how.

    Attributes:
        specs: the data sets.
        reading: how they are read.
        metrics: what is computed.
        metric_names: how the configuration calls these.
        how: device, precision and cache.
        run_hits: hits per query in the TREC run files.
    """

    specs: Sequence[EvaluationSpec]
    reading: Reading
    metrics: Metrics
    metric_names: Sequence[Any]
    how: Ranking
    run_hits: int


def evaluate_model(model: Model, wanted: Wanted, folder: Path, fabric: Fabric, alone: bool = True) -> None:
    """Evaluate a model on every set; what an earlier start of the same command has finished is read.

    Args:
        model: what to evaluate.
        wanted: on what, and how.
        folder: ``results.json``, ``config.yaml``, ``per_query``, ``trec_runs`` and ``queries`` go there.
        fabric: the processes that take part.
        alone: whether this process evaluated no other model before, whose memory would count.
    """
    started = time.perf_counter()
    if wanted.how.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(wanted.how.device)
    ranker, encoder = model.load()
    if wanted.how.precision == AUTO:
        wanted = replace(wanted, how=_in_fastest_precision(model.name, (ranker, encoder), wanted.how, fabric))
    step = ranker.first_step
    history = History(folder, wanted.metrics, wanted.run_hits)
    figures, seconds = {}, 0.0
    costs: dict[str, dict[str, float]] = {}
    for spec in wanted.specs:
        facts = _facts(model, (ranker, encoder), spec, wanted)
        done = folder / "evaluated" / f"{spec.shown_name}.json"
        kept = broadcast(_kept(done, facts) if fabric.is_global_zero else None)
        if kept is None:
            [opened] = history.sets = open_sets([spec], wanted.reading)
            began = time.perf_counter()
            values = _evaluate((ranker, encoder), step, opened, history, wanted.how)
            kept = {"facts": facts, "figures": values, "seconds": round(time.perf_counter() - began, 1)}
            kept |= {"search": ranker.costs[spec.shown_name]} if spec.shown_name in ranker.costs else {}
            if fabric.is_global_zero:
                write_json(folder / "queries" / f"{spec.shown_name}.json", in_words(opened.data))
                write_json(done, kept)
            log.info("%s: %s nDCG@10 %.4f", model.name, spec.shown_name, values["ndcg@10"])
        else:
            log.info("%s: %s was evaluated before, and is not again", model.name, spec.shown_name)
        figures[spec.shown_name] = kept["figures"]
        costs |= {spec.shown_name: kept["search"]} if "search" in kept else {}
        seconds += kept["seconds"]
    if fabric.is_global_zero:
        _write_config(model, wanted, folder)
        write_json(folder / "environment.json", environment(wanted.how.device))
        results = _results(model, step, figures, wanted, max(seconds, time.perf_counter() - started))
        results["search"] = costs
        if not alone and wanted.how.device.type != "cuda":  # the process's most is that of an earlier model
            del results["peak_memory_bytes"]
        write_json(folder / RESULTS, results)


def _in_fastest_precision(name: str, loaded: Loaded, how: Ranking, fabric: Fabric) -> Ranking:
    """Choose the precision of a model, on the first rank; of several encoders, all must be faster in bfloat16."""
    precision = Precision(FLOAT32, "there is no encoder")
    if fabric.is_global_zero:
        found = [fastest_precision(encoder, how.device, how.cache_dir) for encoder in _encoders(loaded) if encoder]
        precision = next((each for each in found if each.name == FLOAT32), found[0] if found else precision)
        if found:
            log.info("%s: %s", name, precision.said("trainer.precision"))
    chosen = broadcast(precision.name)
    return replace(how, precision=chosen, autocast=partial(autocast, chosen, how.device))


def _evaluate(loaded: Loaded, step: int, opened: OpenedSet, history: History, how: Ranking) -> Mapping[str, float]:
    """Figures of one set."""
    ranker, encoder = loaded
    history.base, history.steps = {}, {}
    evaluator = Evaluator(ranker, history, how)
    evaluator.prepare(encoder)
    return evaluator.evaluate(encoder, step)[opened.data.name]


def _facts(model: Model, loaded: Loaded, spec: EvaluationSpec, wanted: Wanted) -> dict[str, Any]:
    """All that decides a set's figures, as JSON values."""
    files = files_of_set(spec, wanted.reading.data_dir)
    reading = {k: v for k, v in asdict(wanted.reading).items() if k not in ("cache_dir", "data_dir")}
    return {
        "model": _fingerprint(model, loaded),
        "set": {k: v for k, v in asdict(spec).items() if k not in ("path", "name", "part_of")},
        "files": [input_sha256(path) for path in sorted(files.values())],
        "reading": reading,
        "metrics": [str(metric) for metric in wanted.metric_names],
        "how": [wanted.how.hits, wanted.how.ignore_identical_ids, wanted.how.precision, wanted.run_hits],
    }


def _fingerprint(model: Model, loaded: Loaded) -> str:
    """What ranks: weights, lengths and prompts of each encoder, and the settings beside them."""
    settings = {k: v for k, v in model.config.items() if k in ("bm25", "fusion", "depth", "vectors")}
    prints = [None if encoder is None else (encoder.fingerprint(), encoder.spec) for encoder in _encoders(loaded)]
    rankers = [(type(ranker).__name__, getattr(ranker, "depth", None)) for ranker, _ in _members(loaded)]
    told = repr((rankers, settings, prints))
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _members(loaded: Loaded) -> Sequence[Loaded]:
    """What ranks, and what that adds up."""
    return [loaded, *getattr(loaded[0], "members", {}).values()]


def _encoders(loaded: Loaded) -> list[Any]:
    """Encoder of queries and encoder of passages alone, of each; None where there is none."""
    return [each for ranker, own in _members(loaded) for each in (own, getattr(ranker, "passage_encoder", None))]


def _kept(path: Path, facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """What was kept of a set, if it was evaluated with the same facts."""
    try:
        kept = read_json(path)
    except InputError:
        return None
    return kept if kept.get("facts") == facts else None


def _results(
    model: Model, step: int, figures: Mapping[str, Mapping[str, float]], wanted: Wanted, seconds: float
) -> dict[str, Any]:
    points = ("best", "last")
    return {
        "name": model.name,
        "seed": model.seed,
        "steps": dict.fromkeys(points, step),
        "datasets": {
            name: {metric: dict.fromkeys(points, values[metric]) for metric in wanted.metrics.names}
            for name, values in figures.items()
        },
        "wall_time_s": round(seconds, 1),
        "peak_memory_bytes": peak_memory(wanted.how.device),
    }


def _write_config(model: Model, wanted: Wanted, folder: Path) -> None:
    """Write the configuration of a run's folder; that of a run, with these evaluation sets in place of its own."""
    datasets = [{k: v for k, v in asdict(spec).items() if v is not None} for spec in wanted.specs]
    config: DictConfig = OmegaConf.create(
        model.config | {"name": model.name, "seed": model.seed, "evaluation": {"datasets": datasets}}
    )
    with atomic_path(folder / CONFIG) as temporary:
        OmegaConf.save(redact(OmegaConf.to_container(config)), temporary)
