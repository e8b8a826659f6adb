"""Evaluate models without training: python -m experiments.evaluate RUN minilm bm25 bm25+minilm sets=scifact,cranfield.

A model is a run's folder, a model's folder, a name on the hub, an encoder preset, bm25, or a sum of these.
"""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from callbacks.reporting.results import read_results
from datamodules.corpus.data_sets import find_datasets, find_file, require_dataset
from datamodules.specs import EvaluationSpec, read_evaluation_specs
from datamodules.storage.files import write_json
from experiments.cli.arguments import check_added, say_what_is_kept
from experiments.cli.errors import run_kindly, single
from experiments.cli.quiet import quiet_imports
from experiments.cli.ranks import is_first_rank
from experiments.cli.rerun import as_typed, start_with
from experiments.cli.sweep import keep_error
from experiments.cli.targets import check_arguments, check_written
from experiments.conf import CONF
from experiments.evaluation.models import Check, Depths, Model, read_models, with_smaller_vectors
from experiments.evaluation.settings import EvaluateSettings
from experiments.evaluation.typed import as_overrides
from experiments.settings.encoders import SPECS
from experiments.settings.precision import AUTO
from retriever.errors import InputError, choose
from retriever.typed import read_top

log = logging.getLogger(__name__)
ENCODER = "retriever.encoder.TextEncoder.from_pretrained"


def evaluate(config: DictConfig, folder: Path) -> list[Path]:
    """Evaluate the models of a configuration, one after the other; return a run folder for each.

    Args:
        config: as composed from ``experiments/conf/evaluate.yaml``.
        folder: where these folders go.

    Raises:
        InputError: a wrong setting, set or model.
    """
    with quiet_imports():
        import torch
        from lightning.fabric import Fabric
        from transformers.utils.logging import disable_progress_bar

        from callbacks.evaluation.metrics import Metrics
        from callbacks.evaluation.ranker import Ranking
        from callbacks.evaluation.sets import Reading
        from experiments.evaluation.work import Wanted, evaluate_model
        from retriever.encoder.precision import FLOAT32

    disable_progress_bar()
    for name in ("lightning", "callbacks.evaluation.history"):  # of steps, of which there are none
        logging.getLogger(name).setLevel(logging.WARNING)
    settings, specs, models = _read(config, check_arguments)
    find_datasets((spec.path for spec in specs), settings.data_dir)
    trainer = OmegaConf.to_container(config.trainer, resolve=True)
    precision = trainer.pop("precision", None) or FLOAT32
    fabric = Fabric(**trainer, precision=FLOAT32 if precision == AUTO else precision)
    fabric.launch()
    asked = settings.evaluation
    how = Ranking(
        hits=asked.hits,
        ignore_identical_ids=asked.ignore_identical_ids,
        cache_dir=Path(settings.cache_dir),
        token_budget=settings.token_budget,
        device=fabric.device,
        precision=precision,
        autocast=fabric.autocast,
    )
    reading = Reading(
        settings.unknown_qrels, settings.empty_passages, settings.on_bad_list, settings.cache_dir, settings.data_dir
    )
    metrics = Metrics(instantiate(list(asked.metrics)), asked.hits)
    wanted = Wanted(specs, reading, metrics, asked.metrics, how, asked.run_hits)
    chosen = [key for key, model in models.items() if settings.only in (None, key, model.smaller_of)]
    for key in chosen:
        with torch.inference_mode():
            evaluate_model(models[key], wanted, folder / key, fabric, alone=key == chosen[0])
    return [folder / key for key in chosen]


def show(config: DictConfig, folder: Path) -> None:
    """Print the table of all models, and that of their differences; write both to the folder.

    Raises:
        InputError: a model has not been evaluated.
    """
    from callbacks.evaluation.metrics import MAIN
    from experiments.compare import show_and_write
    from experiments.comparison.tables import compare
    from experiments.evaluation.summary import as_json, print_summary, print_vectors, summarise

    settings, specs, models = _read(config, check_written)
    found: dict[str, Mapping[str, Any]] = {}
    costs: dict[str, Mapping[str, Any]] = {}
    for key in models:
        results = read_results(folder / key)
        if results is not None:
            costs[key] = results.get("search", {})
            found[key] = {n: {m: v["best"] for m, v in of.items()} for n, of in results["datasets"].items()}
    if not found:
        raise InputError(f"{folder}: none of the models was evaluated.")
    metrics = next(iter(next(iter(found.values())).values()))
    tables = {m: summarise({key: models[key] for key in found}, list(found.values()), specs, m) for m in metrics}
    write_json(folder / "summary.json", {metric: as_json(rows) for metric, rows in tables.items()})
    base = settings.base if settings.base in found else next(iter(found))
    print_summary(tables)
    if settings.vectors:
        print_vectors(tables[MAIN], list(costs.values()))
    if len(found) > 1:
        # of models that were not trained, the first one is the base
        show_and_write(compare([folder / key for key in dict.fromkeys([base, *found])]), folder)


def _read(config: DictConfig, check: Check) -> tuple[EvaluateSettings, list[EvaluationSpec], dict[str, Model]]:
    """Read a configuration; ``check`` is of what it calls."""
    for model in config.models.values():
        if OmegaConf.is_dict(model) and OmegaConf.is_dict(model.get("encoder")) and "_target_" not in model.encoder:
            OmegaConf.update(model, "encoder._target_", ENCODER, force_add=True)
    check(config, SPECS)
    plain = OmegaConf.to_container(config, resolve=True)
    settings = read_top(EvaluateSettings, plain)
    specs = read_evaluation_specs([spec for of in plain["sets"].values() for spec in of["datasets"]], "sets")
    if not specs:
        raise InputError("There is no data set to evaluate on: say sets=scifact, or sets=FOLDER.")
    groups = [path.stem for path in (CONF / "sets").glob("*.yaml")]
    for spec in specs:
        require_dataset(spec.path, settings.data_dir, groups)
        if spec.lists is not None:
            find_file(spec.lists)
    depths = Depths(settings.evaluation.fusion_depth, settings.evaluation.rerank_depth)
    models = read_models(plain["models"], depths, check, settings.allowed_targets)
    for name in settings.order:
        choose("order: a model", name, list(models))
    models = {name: models[name] for name in dict.fromkeys([*settings.order, *models])}
    models = with_smaller_vectors(models, settings.vectors)
    for name in ("base", "only"):
        if getattr(settings, name) is not None:
            choose(name, getattr(settings, name), list(models))
    return settings, specs, models


class ShowAll(Callback):
    """Hydra callback: the table of all jobs' models, at the end of a sweep."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print and write it."""
        if is_first_rank():
            try:
                show(_without_hydra(config), Path(config.hydra.sweep.dir))
            except InputError as error:
                log.error("No table: %s", error)


def _without_hydra(config: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
@single
def application(config: DictConfig) -> None:
    """One job."""
    as_typed()
    check_added(config, HydraConfig.get(), "evaluate.yaml")
    say_what_is_kept(config, HydraConfig.get().overrides.task)
    folder = Path(HydraConfig.get().runtime.output_dir).absolute()
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        if config.only is None:
            raise InputError("-m gives each model a job of its own: name models, or say only=a,b.")
        try:
            evaluate(config, folder.parent)
        except Exception as error:  # whatever it is, the other models can do without this one
            keep_error(error, folder)
        return
    _read(config, check_written)
    evaluate(config, folder)
    if is_first_rank():
        show(config, folder)


def main() -> None:
    """The command."""
    run_kindly(partial(start_with, application, as_overrides))


if __name__ == "__main__":
    main()
