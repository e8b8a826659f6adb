"""Train one objective and evaluate it."""

import logging
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import get_class, instantiate
from lightning.pytorch.plugins.environments import SLURMEnvironment
from omegaconf import DictConfig

from callbacks import (
    AtomicCheckpoints,
    AtomicCSVLogger,
    RunRecord,
)
from callbacks.reliability.atomic_checkpoints import find_checkpoint, remove_spare_checkpoints
from callbacks.reliability.checkpoint_files import LAST
from callbacks.reporting.run_record import environment
from datamodules import QueryListDataModule
from datamodules.guide import guide_arguments
from datamodules.storage.files import remove_leftovers, write_json
from experiments.cli.ranks import broadcast_from_rank_zero
from experiments.cli.rerun import save_config, warn_of_changes
from experiments.plan.plan import print_plan, run_plan
from experiments.settings.checks import check
from experiments.settings.first_checks import check_inputs, monitored_metrics
from experiments.settings.inputs import input_hashes
from experiments.settings.trainer_checks import check_batches, lightning_explained
from experiments.training.callbacks import recorded_settings, run_callbacks, run_reports
from experiments.training.debug_data import DebugData
from experiments.training.precision import with_chosen_precision
from experiments.training.temperatures import with_fitted_temperatures
from retriever.encoder.projection import project
from retriever.encoder.text_encoder import TextEncoder
from retriever.errors import choose
from retriever.query_list_module import QueryListModule

log = logging.getLogger(__name__)


def run_experiment(config: DictConfig, folder: Path, arm: str | None = None) -> dict:
    """Check a configuration, then train and evaluate by it.

    Args:
        config: as composed from ``experiments/conf/run.yaml``.
        folder: the run folder.
        arm: the name under which it is recorded; None takes the configuration's.

    Returns:
        The content of ``results.json``.
    """
    check(config)
    check_inputs(config)
    if config.debug is not None:
        log.warning("This is a debug run, on a few lists and queries: its figures mean nothing.")
        config = DebugData(config, folder / "data").cut()
    return train(config, folder, arm or config.name, _checkpoint(config))


def train(config: DictConfig, folder: Path, arm: str, checkpoint: Path | None) -> dict:
    """Run one experiment by a configuration that :func:`~experiments.settings.checks.check` has passed.

    Args:
        config: as composed.
        folder: the run folder.
        arm: the name under which it is recorded.
        checkpoint: the file to resume from; None begins with the base model.

    Returns:
        The content of ``results.json``.
    """
    L.seed_everything(config.seed, workers=True, verbose=False)
    module, data = make_module_and_data(config)
    config, precision = with_chosen_precision(config, module.encoder, str(folder))
    config, fitted = with_fitted_temperatures(config, module, data, folder)
    if fitted is not None:
        module = make_module(config, module.encoder)
    evaluation = instantiate(config.evaluation, folder=folder)
    record = RunRecord(evaluation.history, arm, config.seed, recorded_settings(config))
    reports = run_reports(config, record, arm)
    trainer = instantiate(
        config.trainer,
        default_root_dir=str(folder),
        callbacks=run_callbacks(config, folder, evaluation, record, reports),
        logger=AtomicCSVLogger(folder, name="", version=""),
        enable_progress_bar=os.isatty(2),
        enable_checkpointing=config.save_checkpoints,
        plugins=[*instantiate(config.trainer.get("plugins") or [], _convert_="all"), AtomicCheckpoints(), *_slurm()],
    )
    facts = _record_start(config, folder, trainer, module.encoder, data) if trainer.is_global_zero else {}
    data.open()
    check_batches(trainer, *(len(data.sampler(train=part, world_size=trainer.world_size)) for part in (True, False)))
    evaluation.open(module, data)
    with ExitStack() as stack:
        if trainer.is_global_zero:
            module.keep_what_fits(trainer.strategy.root_device, trainer.world_size // trainer.num_nodes)
            plan = run_plan(config, trainer, module, data, evaluation, checkpoint)
            plan |= {"temperatures": fitted, "precision": precision}
            print_plan(plan)
            write_json(folder / "environment.json", facts | {"plan": plan})
            _tidy(folder, checkpoint)
            if config.logger.wandb is not None:
                from experiments.cli.wandb_run import wandb_logger  # the import takes a second

                trainer.loggers = [*trainer.loggers, stack.enter_context(wandb_logger(config, folder, arm))]
            if config.logger.get("trackio") is not None:
                from experiments.cli.trackio_run import trackio_logger

                trainer.loggers = [*trainer.loggers, stack.enter_context(trackio_logger(config, folder, arm))]
        with lightning_explained(config.trainer):
            _fit(trainer, module, data, config, checkpoint)
            if not record.results:  # cut off behind the last step: Lightning then leaves out what is done at the end
                for callback in (evaluation, record, *reports):
                    callback.on_train_end(trainer, module)
        for logger in trainer.loggers:
            logger.finalize("success")
    if trainer.is_global_zero:
        remove_spare_checkpoints(folder)  # first: a kill in between is made good by the same command
        record.write()
    return record.results


def make_module_and_data(config: DictConfig) -> tuple[QueryListModule, QueryListDataModule]:
    """Build objective and data module on one encoder; the data module is told what the objective needs of a batch.

    Where passages, or the embeddings that an objective draws to, are of another encoder of another width, the queries
    are projected to that width.
    """
    encoder = instantiate(config.encoder)
    passages = instantiate(config.passage_encoder) if config.get("passage_encoder") else None
    beside: dict[str, Any] = {"passage_encoder": passages}
    imitated = passages
    if (
        imitated is None
        and config.data.get("guide")
        and getattr(get_class(config.module._target_), "imitates_guide", False)
    ):
        imitated = beside["guide"] = TextEncoder.from_pretrained(**guide_arguments(config.data.guide))
    if imitated is not None and imitated.dimension != encoder.dimension:
        project(encoder, imitated.dimension)
    module = make_module(config, encoder)
    data = instantiate(config.data, encoder=encoder, **{k: v for k, v in beside.items() if v is not None})
    data.needs = module.needs
    return module, data


def make_module(config: DictConfig, encoder: torch.nn.Module) -> QueryListModule:
    """Build the objective on an encoder."""
    optimizer, scheduler = (instantiate(config[part], _partial_=True) for part in ("optimizer", "scheduler"))
    return instantiate(config.module, encoder=encoder, optimizer=optimizer, scheduler=scheduler)


def _fit(
    trainer: L.Trainer,
    module: L.LightningModule,
    data: L.LightningDataModule,
    config: DictConfig,
    checkpoint: Path | None,
) -> None:
    """Evaluate the base model, train or go on training."""
    if checkpoint is None:
        trainer.validate(module, datamodule=data, verbose=False)  # the base model, on the same curves
        for name, metric in monitored_metrics(config):
            choose(name, metric, sorted(trainer.callback_metrics))
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint and str(checkpoint), weights_only=True)


def _checkpoint(config: DictConfig) -> Path | None:
    """Find the file to resume from: the first rank checks it, and all take it."""
    if config.resume is None:
        return None
    nodes = config.trainer.get("num_nodes") or 1
    what = f"checkpoint of {config.resume}"
    return Path(broadcast_from_rank_zero(what, lambda: str(find_checkpoint(config.resume)), nodes))


def _slurm() -> list[SLURMEnvironment]:
    """Switch Lightning's own requeueing off: its extra checkpoint would be taken for the base model's weights."""
    return [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []


def _tidy(folder: Path, checkpoint: Path | None) -> None:
    """Rename an earlier part's metrics.csv, which the logger would delete; remove what a kill left incomplete."""
    old = folder / "metrics.csv"
    if old.is_file():
        part = next(n for n in range(1, 10_000) if not (folder / f"metrics-part{n}.csv").exists())
        old.rename(folder / f"metrics-part{part}.csv")
    remove_leftovers(folder)
    if checkpoint is not None and checkpoint.name != LAST:  # an incomplete one must not take the place of this one
        checkpoint.with_name(LAST).unlink(missing_ok=True)


def _record_start(
    config: DictConfig, folder: Path, trainer: L.Trainer, encoder: torch.nn.Module, data: QueryListDataModule
) -> dict[str, Any]:
    """Write the configuration, and what it is run on, which is returned; say what has changed since an earlier run."""
    facts = environment(trainer.strategy.root_device) | {
        "ranks": trainer.world_size,
        "inputs": input_hashes(config),
        "weights": encoder.fingerprint(),  # of the base model: no checkpoint has been read
    }
    if data.passage_encoder is not None:
        facts["passage_weights"] = data.passage_encoder.fingerprint()
    if config.repeats or config.resume:
        warn_of_changes(Path(config.repeats or config.resume), facts)
    save_config(config, folder)
    write_json(folder / "environment.json", facts)
    return facts
