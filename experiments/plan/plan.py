"""What a run is about to do, gathered from its parts before anything long begins: for the terminal and its record."""

import inspect
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf

from callbacks import Evaluation
from callbacks.reporting.run_record import device_name
from datamodules import QueryListDataModule
from experiments.cli.subjects import print_subjects
from experiments.plan.fitted import fitted_line
from experiments.plan.load import busy
from experiments.plan.steps import Steps
from experiments.plan.time import Estimate, estimate
from retriever.batch import BatchNeeds
from retriever.module import RetrieverModule
from retriever.query_list_module import QueryListModule
from retriever.schedule import default_warmup

_LINEAR = "retriever.schedule.linear_with_warmup"
_LONG = 3600.0  # seconds; what makes a longer run shorter is said where there is no GPU
_FEW_STEPS = 100  # as many as adapt takes at most
_NAMED = 3  # files and sets that are named; of more there is their number


def run_plan(
    config: DictConfig,
    trainer: L.Trainer,
    module: QueryListModule,
    data: QueryListDataModule,
    evaluation: Evaluation,
    checkpoint: Path | None,
) -> dict[str, Any]:
    """Gather what a run does. Takes a second or two for the estimate of its time, and leaves all as it is.

    Args:
        config: of the run.
        trainer: that has not begun.
        module: with the base model's weights.
        data: open.
        evaluation: open.
        checkpoint: to resume from.

    Returns:
        JSON values, by subject.
    """
    done = 0
    if checkpoint is not None:
        done = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)["global_step"]
    batches = data.sampler(train=True, world_size=trainer.world_size, group_overlapping_lists=False)
    steps = Steps.of(trainer, len(batches), done)
    trained = _trained(config, module)
    corpora = [part.corpus for part in (*data.train_lists, *data.dev_lists)]
    corpora += [opened.data.corpus for opened in evaluation.history.sets]
    return {
        "resumes": str(checkpoint) if checkpoint else None,
        "repeats": config.repeats,
        "model": _model(module.encoder),
        "passage_model": None if data.passage_encoder is None else _model(data.passage_encoder),
        "trained": trained,
        "objective": {"class": type(module).__name__, "settings": _objective(config)},
        "lists": data.report["files"],
        "compared_with": _compared_with(module.needs, data.corpus_scoring.columns),
        "left_out": data.report.get("leak_guard", []),
        "corpora": {corpus.name: len(corpus) for corpus in corpora},
        "evaluation": [opened.describe() for opened in evaluation.history.sets],
        "device": {
            "name": device_name(trainer.strategy.root_device),
            "threads": torch.get_num_threads(),
            "precision": trainer.precision,
            "ranks": trainer.world_size,
            "machines": trainer.num_nodes,
            "token_budget": module.token_budget,
            "uncheckpointed_tokens": module.uncheckpointed_tokens,
        },
        "steps": _steps(config, module, steps, data.lists_of_step * steps.accumulated),
        "validation": {
            "in_training": steps.validations if steps.every is not None else None,
            "criterion": config.criterion if config.save_checkpoints else None,
            "criterion_mode": config.criterion_mode,
            "patience": config.early_stopping.patience,
            "monitors": list(config.early_stopping.monitors),
        },
        "time": _time(config, partial(estimate, trainer, module, data, evaluation, steps, trained["share"])),
    }


def _model(encoder: torch.nn.Module) -> dict[str, Any]:
    backbone = encoder.backbone
    plain = backbone.get_base_model() if hasattr(backbone, "get_base_model") else backbone  # within adapters
    return {
        "name": encoder.name,
        "origin": encoder.origin,
        "architecture": type(plain).__name__,
        "layers": getattr(plain.config, "num_hidden_layers", None),
        "width": getattr(plain.config, "hidden_size", None),
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "attention": getattr(plain.config, "_attn_implementation", None),
        "dimension": getattr(encoder, "dimension", None),
        **asdict(encoder.spec),
    }


def _trained(config: DictConfig, module: QueryListModule) -> dict[str, Any]:
    of_encoder = list(module.encoder.parameters())
    learning = sum(p.numel() for p in of_encoder if p.requires_grad)
    lora = config.encoder.get("lora")
    return {
        "side": module.trained_side,
        "passages": module.train_passage_encoder if isinstance(module, RetrieverModule) else None,
        "parameters": learning,
        "share": learning / max(1, sum(p.numel() for p in of_encoder)),
        "lora": OmegaConf.to_container(lora, resolve=True) if lora else None,
        "beside_the_encoder": [
            name for name, p in module.named_parameters() if p.requires_grad and not name.startswith("encoder.")
        ],
    }


def _objective(config: DictConfig) -> dict[str, Any]:
    """Settings of the objective alone, but for those that are null or false."""
    common = {name for kind in (QueryListModule, RetrieverModule) for name in inspect.signature(kind).parameters}
    common -= {"matryoshka_dimensions", "matryoshka_weights", "orthogonal_weight"}
    settings = OmegaConf.to_container(config.module, resolve=True)
    return {k: v for k, v in settings.items() if k not in common and not k.startswith("_") and v not in (None, False)}


def _compared_with(needs: BatchNeeds, columns: int) -> str | None:
    """What an objective compares queries with beside their candidates."""
    if not needs.whole_corpus:
        return None
    if needs.frozen_passages:
        return f"its whole corpus (where that has more passages, with {columns:,} of them)"
    return "all candidates of its batch"


def _steps(config: DictConfig, module: QueryListModule, steps: Steps, lists: int) -> dict[str, Any]:
    total = 2**62 if steps.total is None else steps.total
    scheduler = {k: v for k, v in config.scheduler.items() if k not in ("_convert_", "_partial_")}
    if scheduler["_target_"] == _LINEAR and scheduler.get("warmup_steps") is None:
        scheduler["warmup_steps"] = default_warmup(max(1, steps.batches // steps.accumulated), total)
    return {
        "total": steps.total,
        "done": steps.done,
        "of_epoch": steps.of_epoch,
        "epochs": config.trainer.max_epochs,
        "lists": lists,
        "candidates": config.data.list_length,
        "learning_rate": module.peak_learning_rate(lists),
        "weight_decay": module.weight_decay,
        "optimizer": config.optimizer._target_.rpartition(".")[2],
        "scheduler": {"class": scheduler.pop("_target_").rpartition(".")[2], **scheduler},
        "gradient_clip_val": config.trainer.gradient_clip_val,
        "max_time": str(config.trainer.max_time) if config.trainer.get("max_time") else None,
    }


def _time(config: DictConfig, estimated: Callable[[], Estimate]) -> dict[str, Any]:
    """The estimate, in seconds, or why there is none."""
    if config.encoder.get("compile") is not None:
        return {"unknown": "encoder.compile compiles at the first steps, which is not measured beforehand"}
    try:
        found = estimated()
    except RuntimeError as error:  # too little memory, or an objective that does not say what it encodes
        return {"unknown": " ".join(str(error).split())[:200] or type(error).__name__}
    return asdict(found) | {"from": found.bounds[0], "to": found.bounds[1]}


def print_plan(plan: Mapping[str, Any]) -> None:
    """Print a plan, a dozen lines, on standard output."""
    print_subjects(plan_lines(plan))


def plan_lines(plan: Mapping[str, Any]) -> dict[str, str]:
    """Subject → what is said of it."""
    return {
        "model": _model_line(plan["model"]),
        "texts": _texts_line(plan["model"]),
        **({"passages": _passages_line(plan["passage_model"])} if plan.get("passage_model") else {}),
        "trained": _trained_line(plan["trained"]),
        "objective": f"{plan['objective']['class']}: {_settings(plan['objective']['settings'])}",
        **({"fitted": fitted_line(plan["temperatures"])} if plan.get("temperatures") else {}),
        **{part: _lists_line(plan, part) for part in ("train", "dev")},
        "corpora": _joined([f"{name} ({_many(count, 'passage')})" for name, count in plan["corpora"].items()]),
        "evaluation": _joined([_set(facts) for facts in plan["evaluation"]]) or "none",
        "device": _device_line(plan["device"], plan["time"].get("tokens"), plan.get("precision")),
        "steps": _steps_line(plan["steps"]),
        "validation": _validation_line(plan["validation"]),
        "time": _time_line(plan["time"], plan["steps"], plan["validation"]),
        **({"shorter": "; ".join(shorter)} if (shorter := _shorter(plan)) else {}),
    }


def _model_line(model: Mapping[str, Any]) -> str:
    origin = model["origin"] if model["name"] in model["origin"] else f"{model['name']}, from {model['origin']}"
    size = f"{model['layers']} layers of width {model['width']}, {_count(model['parameters'])} parameters"
    return f"{origin}: {model['architecture']}, {size}"


def _texts_line(model: Mapping[str, Any]) -> str:
    parts = [f"{model['query_max_length']} tokens of a query, {model['passage_max_length']} of a passage"]
    if "pair_max_length" in model:
        parts.append(f"{model['pair_max_length']} of a pair")
    if "pooling" in model:
        length = "" if model["normalize"] else ", not normalised"
        parts.insert(0, f"pooling {model['pooling']}, {model['dimension']} dimensions{length}")
        parts.append(f"prompts {model['query_prompt']!r} and {model['passage_prompt']!r}")
        parts += [] if model["passage_titles"] else ["passages without titles"]
    return "; ".join(parts)


def _passages_line(model: Mapping[str, Any]) -> str:
    return f"by {_model_line(model)}; {_texts_line(model)}"


def _trained_line(trained: Mapping[str, Any]) -> str:
    weights = f"{_count(trained['parameters'])} parameters, {100 * trained['share']:.3g}%"
    lora = f"; LoRA {_settings(trained['lora'])}" if trained["lora"] else ""
    beside = f"; and {', '.join(trained['beside_the_encoder'])}" if trained["beside_the_encoder"] else ""
    return f"{trained['side']}; {weights}{lora}{beside}"


def _lists_line(plan: Mapping[str, Any], part: str) -> str:
    files = [file for file in plan["lists"] if file["part"] == part]
    types: Counter[str] = Counter()
    for file in files:
        types.update(file["types"])
    kinds = ", ".join(f"{name} {count:,}" for name, count in types.items()) if len(types) > 1 else "".join(types)
    short, long = min(file["candidates"][0] for file in files), max(file["candidates"][2] for file in files)
    candidates = _many(long, "candidate") if short == long else f"{short} to {long} candidates"
    text = f"{_many(sum(file['lists'] for file in files), 'list')} ({kinds}) of {_joined([f['file'] for f in files])}"
    text += f"; {min(long, plan['steps']['candidates'])} of {candidates} used"
    if plan["compared_with"]:
        text += f", and each query compared with {plan['compared_with']}"
    passes = sorted({str(file["weight"]) for file in files} - {"1.0", "1"})
    if part == "train" and passes:
        text += f"; {', '.join(passes)} passes an epoch"
    names = {file["file"] for file in files}
    leaks = [leak for leak in plan["left_out"] if leak["lists"] in names]
    left_out = sum(n for leak in leaks for why, n in leak.items() if why not in ("lists", "against", "of"))
    return f"{text}; leak guard left out {left_out:,}" if left_out else text


def _set(facts: Mapping[str, Any]) -> str:
    sample = f", a sample of {facts['sample']:,} in training" if facts["sample"] else ""
    corpus = "" if facts["corpus"] == facts["name"] else f" of {facts['corpus']}"
    return f"{facts['name']} ({_many(facts['queries'], 'query', 'queries')} of {facts['from']}{corpus}{sample})"


def _device_line(device: Mapping[str, Any], of_step: float | None, chosen: str | None) -> str:
    machines = f" on {device['machines']} machines" if device["machines"] > 1 else ""
    threads = f" ({_many(device['threads'], 'thread')})" if device["name"] == "cpu" else ""
    kept = device["uncheckpointed_tokens"]
    share = f"up to {kept:,}" if of_step is None or kept * device["ranks"] < of_step else "all"
    budget = f"micro-batches of {device['token_budget']:,} tokens, {share} of a step kept"
    precision = chosen or device["precision"]
    return f"{device['name']}{threads}, {precision}, {_many(device['ranks'], 'rank')}{machines}; {budget}"


def _steps_line(steps: Mapping[str, Any]) -> str:
    total = "no limit of steps" if steps["total"] is None else _many(steps["total"], "step")
    if steps["done"]:
        total += f", {steps['done']:,} of them done"
    epoch = f"{steps['of_epoch']:,} an epoch"
    if steps["max_time"]:
        epoch += f", at most for {steps['max_time']}"
    rate, scheduler = f"lr {steps['learning_rate']:.3g}", steps["scheduler"]
    if _LINEAR.endswith(f".{scheduler['class']}"):
        floor = steps["learning_rate"] * scheduler["final_learning_rate"]
        end = f"to {floor:.3g}" if scheduler["decay"] == "to_floor" else f"to 0, held at {floor:.3g}"
        rate += f", warm-up {scheduler['warmup_steps']:,}, down {end}"
    else:
        rate += f" by {scheduler['class']}"
    if steps["optimizer"] != "AdamW":
        rate += f"; {steps['optimizer']}"
    clip = f", clip {steps['gradient_clip_val']:g}" if steps["gradient_clip_val"] else ""
    return f"{total} of {_many(steps['lists'], 'list')}, {epoch}; {rate}; weight decay {steps['weight_decay']:g}{clip}"


def _validation_line(validation: Mapping[str, Any]) -> str:
    number = validation["in_training"]
    parts = ["by the clock" if number is None else f"{'at most ' if validation['patience'] else ''}{number:,}"]
    if validation["criterion"] is not None:
        best = "lowest" if validation["criterion_mode"] == "min" else "highest"
        parts.append(f"keeps the {best} {validation['criterion']}")
    if validation["patience"]:
        parts.append(f"stops after {validation['patience']} without a better {' or '.join(validation['monitors'])}")
    return "; ".join(parts)


def _time_line(found: Mapping[str, Any], steps: Mapping[str, Any], validation: Mapping[str, Any]) -> str:
    if "unknown" in found:
        return f"not estimated: {found['unknown']}"
    left = steps["of_epoch"] if steps["total"] is None else max(0, steps["total"] - steps["done"])
    parts = [
        f"encoding {_many(found['passages'], 'passage')} {_duration(found['encoding'])}" if found["passages"] else "",
        f"{_many(left, 'step')} {_duration(found['steps'])}",
        f"{_many(found['number'], 'evaluation')} {_duration(found['evaluations'])}" if found["number"] else "",
        f"saving {_duration(found['saving'])}" if found["saving"] >= 1 else "",
    ]
    limit = "an epoch: " if steps["total"] is None else "at most " if validation["patience"] else ""
    slowed = busy(found["share"])
    whole = f"{limit}{_range(found['from'], found['to'])}: {', '.join(part for part in parts if part)}"
    return f"{whole}; {slowed}" if slowed else whole


def _shorter(plan: Mapping[str, Any]) -> list[str]:
    """Settings that make a long run on a CPU shorter."""
    if plan["device"]["name"] != "cpu" or plan["time"].get("to", 0.0) < _LONG:
        return []
    steps, ways = plan["steps"], []
    if plan["trained"]["passages"]:
        ways.append("module.train_passage_encoder=false trains the query encoder alone, and encodes passages once")
    if steps["total"] is None or steps["total"] - steps["done"] > _FEW_STEPS:
        ways.append(f"trainer.max_steps={_FEW_STEPS} takes fewer steps")
    if plan["trained"]["passages"] is not None:  # a text encoder
        ways.append("python -m experiments.adapt corpus=… minutes=… keeps to the time that there is")
    return ways


def _range(low: float, high: float) -> str:
    if high < 10:
        return "a few seconds"
    if high < 60:
        return f"about {math.floor(low):d} to {math.ceil(high):d} s"
    size, unit = (60, "minutes") if high < 2 * 3600 else (3600, "hours")
    digits = 0 if high / size >= 10 else 1
    return f"about {low / size:.{digits}f} to {high / size:.{digits}f} {unit}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 0.5 else "below 1 s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _many(number: int, one: str, several: str = "") -> str:
    return f"{number:,} {one if number == 1 else several or f'{one}s'}"


def _count(number: int) -> str:
    for size, name in ((10**9, "billion"), (10**6, "million")):
        if number >= size:
            return f"{number / size:.1f} {name}"
    return f"{number:,}"


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(k if v is True else f"{k} {v}" for k, v in settings.items()) or "no settings of its own"


def _joined(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
