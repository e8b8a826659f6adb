"""What a run's configuration is asked of Lightning, torch and what it calls, before anything is loaded."""

from collections.abc import Sequence
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from callbacks.evaluation.metrics import DEFAULT_METRICS, MAIN, Metrics
from datamodules.specs import EvaluationSpec, read_evaluation_specs
from experiments.cli.targets import check_arguments
from experiments.settings.encoders import SPECS, outline
from experiments.settings.first_checks import check_first, monitored_metrics
from experiments.settings.precision import without_auto
from experiments.settings.run_settings import read_run_settings
from experiments.settings.trainer_checks import check_optimizer, check_trainer
from retriever.encoder.outline import EncoderOutline
from retriever.errors import InputError, causes, choose


def check(config: DictConfig) -> None:
    """Refuse what is wrong in a run's configuration, while nothing has been loaded or encoded.

    Raises:
        InputError: with the setting, its value and what to do.
    """
    check_first(config)
    config = without_auto(config)
    check_arguments(config, SPECS)
    plain = OmegaConf.to_container(config, resolve=True)
    settings = read_run_settings(plain)
    check_optimizer(config)
    check_trainer(config.trainer, settings.early_stopping.patience, settings.save_checkpoints or bool(settings.resume))
    monitored, specs = monitored_metrics(config), read_evaluation_specs(plain["evaluation"]["datasets"])
    dev = _dev_metrics(config, outline(plain["encoder"]))
    metrics = _metrics(plain["evaluation"])
    if dev is not None:
        _check_metrics(monitored, dev, metrics, specs if plain["evaluation"].get("every_validation", True) else None)


def _metrics(evaluation: dict[str, Any]) -> Metrics:
    """The metrics of an evaluation: wrong names, and cutoffs beyond its hits, are refused here."""
    return Metrics(instantiate(evaluation.get("metrics", list(DEFAULT_METRICS))), evaluation.get("hits"))


def _check_metrics(
    monitored: Sequence[tuple[str, str]], dev: Sequence[str], metrics: Metrics, specs: Sequence[EvaluationSpec] | None
) -> None:
    """Refuse a metric that nothing will log; ``specs`` is None where validations evaluate no set."""
    kinds = [*metrics.names, f"{MAIN}_base", f"{MAIN}_delta"]
    for name, metric in monitored:
        if not metric.startswith("val/"):
            choose(name, metric, [f"dev/{part}" for part in dev])
        elif specs is not None:
            sets = [spec.shown_name for spec in specs]
            sets += [f"{spec.shown_name}-sample" for spec in specs if spec.sample is not None]
            choose(name, metric, [f"val/{evaluated}/{kind}" for evaluated in sets for kind in kinds])


def _dev_metrics(config: DictConfig, encoder: EncoderOutline | None) -> Sequence[str] | None:
    """Build data module and objective on an encoder's outline, for their own checks to speak.

    Returns:
        What the objective logs of dev lists; None where that is not known beforehand.
    """
    built: list[Any] = []
    for part in (config.data, config.module) if encoder is not None else ():
        with torch.device("meta"):  # an objective's own weights take no room
            found, wrong = _try_to_build(part, encoder)
        if wrong is not None:  # outside of the except block, or it would become its own context
            raise wrong
        built.append(found)
    if not built or not hasattr(built[1], "dev_metrics"):
        return None
    data, module = built
    names, over_corpus = module.dev_metrics(), getattr(data, "dev_over_corpus", False)
    if over_corpus:
        data.needs = module.needs
        data.needs_of(train=False)  # passages that are trained are refused
    return names if names is None or not over_corpus else list(dict.fromkeys([*names, "corpus_kl"]))


def _try_to_build(part: DictConfig, encoder: EncoderOutline | None) -> tuple[Any, InputError | None]:
    """What was built, or None; and what the user can mend. Other errors say more once there is a model."""
    try:
        return instantiate(part, encoder=encoder), None
    except Exception as error:
        wrong = next((cause for cause in causes(error) if isinstance(cause, InputError)), None)
        if str(wrong).partition(" ")[0] in part:  # an object calls a setting by its own name
            wrong = InputError(f"{part._get_full_key('')}.{wrong}")
        return None, wrong
