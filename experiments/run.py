"""Train one objective and evaluate it: python -m experiments.run +exp=scifact/distillation [key=value ...]."""

from __future__ import annotations

import logging
import os
import warnings
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, RichProgressBar
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from transformers.utils.logging import disable_progress_bar

from callbacks import (
    AtomicCheckpoints,
    AtomicCSVLogger,
    BeirEvaluation,
    Diagnostics,
    ExportBest,
    GracefulTermination,
    PruneRun,
    QueryRecord,
    RunRecord,
    StepSeeds,
    StopWhenNoneImproves,
    WandbReport,
)
from callbacks.reliability.atomic_checkpoints import LAST, find_checkpoint, has_checkpoint
from callbacks.reporting.results import read_results
from callbacks.reporting.run_record import environment
from datamodules.storage.files import remove_leftovers, write_json
from experiments.cli.arguments import check_added, say_what_is_kept
from experiments.cli.errors import run_kindly
from experiments.cli.ranks import broadcast_from_rank_zero
from experiments.cli.rerun import as_typed, save_config, start_from_run, warn_of_changes
from experiments.cli.sweep import arm_name, run_of_sweep
from experiments.comparison.formats import print_tables
from experiments.comparison.tables import compare
from experiments.plan.plan import print_plan, run_plan
from experiments.settings.checks import check, monitored_metrics
from experiments.settings.encoders import with_effective_encoders
from experiments.settings.inputs import input_hashes
from experiments.settings.trainer_checks import check_batches, lightning_explained
from experiments.settings.without_effect import OF_RUN, say_what_has_no_effect
from retriever.errors import InputError, choose

log = logging.getLogger(__name__)


def train(config: DictConfig, folder: Path, arm: str | None = None) -> dict:
    """Run one experiment.

    Args:
        config: as composed from ``experiments/conf/run.yaml``.
        folder: the run folder.
        arm: the name under which it is recorded; None takes the configuration's.

    Returns:
        The content of ``results.json``.
    """
    check(config)
    arm = arm or config.name
    L.seed_everything(config.seed, workers=True, verbose=False)
    encoder = instantiate(config.encoder)
    module = instantiate(config.module, encoder=encoder)
    data = instantiate(config.data, encoder=encoder)
    evaluation = instantiate(config.evaluation, folder=folder)
    trainer = instantiate(
        config.trainer,
        default_root_dir=str(folder),
        callbacks=_callbacks(config, folder, evaluation, arm),
        logger=AtomicCSVLogger(folder, name="", version=""),
        enable_progress_bar=os.isatty(2),
        enable_checkpointing=config.save_checkpoints,
        plugins=[*instantiate(config.trainer.get("plugins") or [], _convert_="all"), AtomicCheckpoints(), *_slurm()],
    )
    checkpoint = _checkpoint(config)
    facts = _record_start(config, folder, trainer, encoder) if trainer.is_global_zero else {}
    data.open()
    check_batches(trainer, *(len(data.sampler(train=part, world_size=trainer.world_size)) for part in (True, False)))
    evaluation.open(module, data)
    with ExitStack() as stack:
        if trainer.is_global_zero:
            plan = run_plan(config, trainer, module, data, evaluation, checkpoint)
            print_plan(plan)
            write_json(folder / "environment.json", facts | {"plan": plan})
            _tidy(folder, checkpoint)
            if config.logger.wandb is not None:
                from experiments.cli.wandb_run import wandb_logger  # the import takes a second

                trainer.loggers = [*trainer.loggers, stack.enter_context(wandb_logger(config, folder, arm))]
        with lightning_explained(config.trainer):
            record = _fit(trainer, module, data, config, checkpoint)
    if trainer.is_global_zero:
        record.write()
    return record.results


def _fit(
    trainer: L.Trainer,
    module: L.LightningModule,
    data: L.LightningDataModule,
    config: DictConfig,
    checkpoint: Path | None,
) -> RunRecord:
    """Evaluate the base model, train or go on training."""
    if checkpoint is None:
        trainer.validate(module, datamodule=data, verbose=False)  # the base model, on the same curves
        for name, metric in monitored_metrics(config):
            choose(name, metric, sorted(trainer.callback_metrics))
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint and str(checkpoint), weights_only=True)
    record = next(c for c in trainer.callbacks if isinstance(c, RunRecord))
    if not record.results:  # cut off behind the last step: Lightning then leaves out what is done at the end
        for callback in trainer.callbacks:
            if isinstance(callback, BeirEvaluation | RunRecord | WandbReport | ExportBest):
                callback.on_train_end(trainer, module)
    for logger in trainer.loggers:
        logger.finalize("success")
    return record


def _checkpoint(config: DictConfig) -> Path | None:
    """The file to resume from, which the first rank checks, and all take."""
    if config.resume is None:
        return None
    nodes = config.trainer.get("num_nodes") or 1
    what = f"checkpoint of {config.resume}"
    return Path(broadcast_from_rank_zero(what, lambda: str(find_checkpoint(config.resume)), nodes))


def _slurm() -> list[SLURMEnvironment]:
    """Without Lightning's own requeueing: its extra checkpoint would be taken for the base model's weights."""
    return [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []


def _callbacks(config: DictConfig, folder: Path, evaluation: BeirEvaluation, arm: str) -> list[L.Callback]:
    # the order matters: figures are there before a checkpoint is chosen, the best one before it is exported
    callbacks: list[L.Callback] = [evaluation, QueryRecord(folder), StepSeeds(config.seed), LearningRateMonitor("step")]
    if config.diagnostics.every_n_steps is not None:
        callbacks.append(Diagnostics(**config.diagnostics))
    if config.early_stopping.patience is not None:
        callbacks.append(StopWhenNoneImproves(config.early_stopping.monitors, config.early_stopping.patience))
    if config.save_checkpoints:
        checkpoints = folder / "checkpoints"
        best = {"monitor": config.criterion, "mode": config.criterion_mode, "auto_insert_metric_name": False}
        best["enable_version_counter"] = False  # a resumed run writes the same file again
        callbacks.append(ModelCheckpoint(checkpoints, filename="step-{step:06d}", **best))
        # save_last would write it only where the best one is written: a kill could lose many validations
        callbacks.append(ModelCheckpoint(checkpoints, filename=Path(LAST).stem, enable_version_counter=False))
    extra = {
        "objective": _objective(config),
        "criterion": config.criterion,
        "encoder": config.encoder.model,
        "train_passage_encoder": config.module.get("train_passage_encoder", True),
        "criterion_mode": config.criterion_mode,
    }
    record = RunRecord(folder, arm, config.seed, extra)
    callbacks.append(record)
    if config.get("pruner") is not None:
        callbacks.append(PruneRun(record, instantiate(config.pruner)))
    if config.logger.wandb is not None:
        from experiments.cli.wandb_run import module_file, source_files

        code = source_files() | module_file(config.module._target_)
        callbacks.append(WandbReport(folder, code, config.logger.wandb.per_query_rows))
    if config.export:
        callbacks.append(ExportBest(folder, _card_facts(config) | {"name": arm}))
    if os.isatty(2):
        callbacks.append(RichProgressBar())
    callbacks.append(GracefulTermination())
    return callbacks


def _objective(config: DictConfig) -> str:
    return config.module._target_.rpartition(".")[2]


def _card_facts(config: DictConfig) -> dict[str, Any]:
    """What the model card says of the configuration."""
    data, trainer = config.data, config.trainer
    training = {
        "optimiser": "AdamW",
        "lists of a step": data.batch_size,
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


def _tidy(folder: Path, checkpoint: Path | None) -> None:
    """Rename an earlier part's metrics.csv, lest the logger delete it; remove what a kill left half done, or torn."""
    old = folder / "metrics.csv"
    if old.is_file():
        part = next(n for n in range(1, 10_000) if not (folder / f"metrics-part{n}.csv").exists())
        old.rename(folder / f"metrics-part{part}.csv")
    remove_leftovers(folder)
    if checkpoint is not None and checkpoint.name != LAST:  # a torn one must not take the place of this one
        checkpoint.with_name(LAST).unlink(missing_ok=True)


def _record_start(config: DictConfig, folder: Path, trainer: L.Trainer, encoder: torch.nn.Module) -> dict[str, Any]:
    """Write the configuration, and what it is run on, which is returned; say what has changed since an earlier run."""
    facts = environment(trainer.strategy.root_device) | {
        "ranks": trainer.world_size,
        "inputs": input_hashes(config),
        "weights": encoder.fingerprint(),  # of the base model: no checkpoint has been read
    }
    if config.repeats or config.resume:
        warn_of_changes(Path(config.repeats or config.resume), facts)
    save_config(config, folder)
    write_json(folder / "environment.json", facts)
    return facts


@hydra.main(version_base="1.3", config_path="conf", config_name="run")
def application(config: DictConfig) -> float | None:
    """One job: train, and print its table; what a sweeper that searches gets is the dev criterion, lower is better."""
    as_typed()
    check_added(config, HydraConfig.get(), "run.yaml")
    say_what_is_kept(config, HydraConfig.get().overrides.task)
    say_what_has_no_effect(config, HydraConfig.get().overrides.task, OF_RUN)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")  # the data module's state is
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")  # inside Lightning
    warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")  # the run folder
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    if rank_zero_only.rank > 0:
        logging.getLogger().setLevel(logging.WARNING)  # the first rank speaks for all
    disable_progress_bar()
    if not HydraConfig.get().run.dir:
        raise InputError("hydra.run.dir is empty; name the folder of the run, or leave it out.")
    own = Path(HydraConfig.get().runtime.output_dir).absolute()
    # a resumed run goes on in its own folder, where its earlier figures are
    folder = Path(config.resume or own).absolute()
    arm = arm_name(config.name, HydraConfig.get())
    log.info("%s, seed %d → %s", arm, config.seed, folder)
    if config.resume is not None and folder == own and not has_checkpoint(folder):
        if read_results(folder) is not None:
            log.info("%s is finished, and not run again", folder)
            return None
        log.info("There is no checkpoint yet: the run begins.")  # one command, to start it and to start it again
        config.resume = None
    if HydraConfig.get().mode == RunMode.MULTIRUN:  # a sweep ends with one table of all
        results = run_of_sweep(config, folder, partial(train, arm=arm), with_effective_encoders)
    else:
        results = train(config, folder)
        if rank_zero_only.rank == 0:
            print_tables(compare([folder]))
    value = None if results is None else results.get("criterion_value")
    return -value if value is not None and config.criterion_mode == "max" else value


def main() -> None:
    """The command."""
    run_kindly(partial(start_from_run, application))


if __name__ == "__main__":
    main()
