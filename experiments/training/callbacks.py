"""The callbacks of a run, in the order in which they are called, and what they record of the configuration."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from omegaconf import DictConfig, OmegaConf

from callbacks import Evaluation, RunRecord
from callbacks.pruning import PruneRun
from callbacks.reliability.best_checkpoint import BestCheckpoint
from callbacks.reliability.checkpoint_files import LAST
from callbacks.reliability.graceful_termination import GracefulTermination
from callbacks.reliability.last_validation import ValidateLastStep
from callbacks.reliability.step_seeds import StepSeeds
from callbacks.reporting.export import ExportBest
from callbacks.reporting.query_record import QueryRecord
from callbacks.reporting.trackio_report import TrackioReport
from callbacks.reporting.wandb_report import WandbReport
from retriever.errors import InputError


def run_callbacks(
    config: DictConfig, folder: Path, evaluation: Evaluation, record: RunRecord, reports: Sequence[L.Callback]
) -> list[L.Callback]:
    """Make what a run cannot do without, and the configuration's group ``callbacks``.

    The order matters: figures are there before they are looked at and a checkpoint is chosen, the best one before it
    is exported.
    """
    callbacks = [evaluation, QueryRecord(evaluation.history), StepSeeds(config.seed), ValidateLastStep()]
    callbacks += _chosen_callbacks(config)
    if config.save_checkpoints:
        checkpoints = folder / "checkpoints"
        best = {"monitor": config.criterion, "mode": config.criterion_mode, "auto_insert_metric_name": False}
        best["enable_version_counter"] = False  # a resumed run writes the same file again
        best["save_weights_only"] = True  # nothing goes on from it
        # a re-ranker's step 0 is BM25's order, and not what its weights make of it
        kind = ModelCheckpoint if evaluation.ranker.first_step else BestCheckpoint
        callbacks.append(kind(checkpoints, filename="step-{step:06d}", **best))
        # save_last would write it only where the best one is written: a kill could lose many validations
        callbacks.append(ModelCheckpoint(checkpoints, filename=Path(LAST).stem, enable_version_counter=False))
    callbacks.append(record)
    if config.get("pruner") is not None:
        callbacks.append(PruneRun(record, instantiate(config.pruner)))
    callbacks += reports
    if os.isatty(2):
        callbacks.append(RichProgressBar())
    callbacks.append(GracefulTermination())
    return callbacks


def run_reports(config: DictConfig, record: RunRecord, arm: str) -> list[L.Callback]:
    """Make what reports a run at its end, beside its record: W&B, trackio, the exported model."""
    reports: list[L.Callback] = []
    if config.logger.wandb is not None:
        from experiments.cli.wandb_run import module_file, source_files

        code = source_files() | module_file(config.module._target_)
        reports.append(WandbReport(record, code, config.logger.wandb.per_query_rows))
    if config.logger.get("trackio") is not None:
        reports.append(TrackioReport(record, config.logger.trackio.per_query_rows, "logger.trackio"))
    if config.export:
        reports.append(ExportBest(record.history, card_facts(config) | {"name": arm}))
    return reports


def recorded_settings(config: DictConfig) -> dict[str, Any]:
    """Return what results.json says of the configuration."""
    return {
        "objective": _objective(config),
        "criterion": config.criterion,
        "encoder": config.encoder.model,
        **({"passage_encoder": config.passage_encoder.model} if config.get("passage_encoder") else {}),
        "train_passage_encoder": config.module.get("train_passage_encoder", True),
        "criterion_mode": config.criterion_mode,
    }


def _chosen_callbacks(config: DictConfig) -> list[L.Callback]:
    made = {name: instantiate(part) for name, part in (config.callbacks or {}).items() if part is not None}
    for name, callback in made.items():
        if not isinstance(callback, L.Callback):
            raise InputError(f"callbacks.{name} is of {type(callback).__name__}, which is no lightning.Callback.")
    return list(made.values())


def _objective(config: DictConfig) -> str:
    return config.module._target_.rpartition(".")[2]


def _call(part: DictConfig) -> str:
    """Write what a configuration calls, with its settings, as code would."""
    settings = ", ".join(f"{name}={value}" for name, value in part.items() if not str(name).startswith("_"))
    return part._target_.rpartition(".")[2] + (f"({settings})" if settings else "")


def card_facts(config: DictConfig) -> dict[str, Any]:
    """Return what the model card says of the configuration."""
    data, trainer = config.data, config.trainer
    training = {
        "optimiser": _call(config.optimizer),
        "schedule of the learning rate": _call(config.scheduler),
        "candidates of a list": f"{data.list_length} ({data.candidates})",
        "teacher scores": data.normalization,
        "at most": f"{trainer.max_epochs} epochs" if trainer.max_steps < 0 else f"{trainer.max_steps} steps",
        "gradient norm clipped at": trainer.gradient_clip_val,
        "precision": trainer.precision,
        "dropout": "the checkpoint's own" if config.encoder.dropout is None else config.encoder.dropout,
        "LoRA": config.encoder.get("lora"),
    }
    return {
        "name": config.name,
        "seed": config.seed,
        "objective": _objective(config),
        "settings": OmegaConf.to_container(config.module, resolve=True),
        "training": training,
        "criterion": config.criterion if config.save_checkpoints else None,
    }
