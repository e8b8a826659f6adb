"""What a run's configuration is asked before anything is loaded: targets, keys, values, ranges, contradictions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from callbacks.evaluation.metrics import DEFAULT_METRICS, MAIN, Metrics
from callbacks.reporting.results import RESULTS
from datamodules.specs import EvaluationSpec, read_evaluation_specs
from datamodules.storage.files import read_json
from experiments.cli.redact import redact
from experiments.cli.rerun import CONFIG
from experiments.cli.sweep import first_difference
from experiments.cli.targets import check_arguments
from experiments.settings.encoders import SPECS, outline, with_effective_encoders
from experiments.settings.older_runs import as_now
from experiments.settings.run_settings import read_run_settings
from experiments.settings.trainer_checks import check_optimizer, check_trainer
from retriever.encoder.outline import EncoderOutline
from retriever.encoder.sentence_transformers_layout import read_spec
from retriever.errors import InputError, choose

# of a run that goes on, what its checkpoint and its frozen passages were made with
_MADE_WITH = ("encoder", "module._target_", "module.train_passage_encoder", "module.matryoshka_dimensions")
_PARTS = ("encoder", "module", "data", "evaluation", "optimizer", "scheduler", "trainer", "logger")
_SPEEDS = ("attention", "compile", "trust_remote_code")  # give the same embeddings
_AS_TRAINED = ("query_prompt", "passage_prompt", "passage_titles", "pooling", "normalize")


def check(config: DictConfig) -> None:
    """Refuse what is wrong in a run's configuration, while nothing has been loaded or encoded.

    Raises:
        InputError: with the setting, its value and what to do.
    """
    for part in _PARTS:
        if config.get(part) is None:
            raise InputError(f"There is no {part}: a run needs one, say {part}=….")
    for name, switch in {"early_stopping": "patience", "diagnostics": "every_n_steps"}.items():
        if config[name] is None:  # before what follows it is looked at
            raise InputError(f"{name} is null; to switch it off, say {name}.{switch}=null.")
    for key in sorted(OmegaConf.missing_keys(config)):
        raise InputError(f"{key} has no default, and is not set: say {key}=….")
    check_arguments(config, SPECS)
    plain = OmegaConf.to_container(config, resolve=True)
    settings = read_run_settings(plain)
    check_optimizer(config)
    check_trainer(config.trainer, settings.early_stopping.patience, settings.save_checkpoints or bool(settings.resume))
    monitored, specs = monitored_metrics(config), read_evaluation_specs(plain["evaluation"]["datasets"])
    _check_criterion(monitored, specs, settings.allow_test_selection)
    _check_model(plain["encoder"], plain["module"])
    _check_resumed(plain)
    dev = _dev_metrics(config, outline(plain["encoder"]))
    metrics = _metrics(plain["evaluation"])
    if dev is not None:
        _check_metrics(monitored, dev, metrics, specs if plain["evaluation"].get("every_validation", True) else None)


def monitored_metrics(config: DictConfig) -> list[tuple[str, str]]:
    """Setting → metric that decides when to stop and what to keep."""
    found = [("criterion", config.criterion)] if config.save_checkpoints else []
    if config.early_stopping.patience is not None:
        found += [("early_stopping.monitors", metric) for metric in config.early_stopping.monitors]
    return found


def _check_criterion(
    monitored: Sequence[tuple[str, str]], specs: Sequence[EvaluationSpec], allow_test_selection: bool
) -> None:
    """Refuse test queries that choose a checkpoint, and sets that no validation evaluates."""
    named = {spec.shown_name: spec for spec in specs}
    for name, metric in monitored:
        if not metric.startswith("val/"):
            continue
        evaluated = metric.split("/")[1]
        spec = named.get(evaluated) or named.get(evaluated.removesuffix("-sample"))
        if (spec is None or not spec.chooses) and not allow_test_selection:
            raise InputError(
                f"{name} is {metric!r}: the queries that are reported would choose the checkpoint. "
                "Choose by dev lists (dev/loss, dev/kl), by a set with queries: dev, or say allow_test_selection=true."
            )
        if evaluated in named and named[evaluated].sample is not None:
            raise InputError(
                f"{name} is {metric!r}, but validations search the sample of {evaluated} alone. "
                f"Choose by {metric.replace(evaluated, evaluated + '-sample')!r}."
            )


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
    module: Any = None
    for part in (config.data, config.module) if encoder is not None else ():
        with torch.device("meta"):  # an objective's own weights take no room
            module, wrong = _try_to_build(part, encoder)
        if wrong is not None:  # outside of the except block, or it would become its own context
            raise wrong
    return module.dev_metrics() if hasattr(module, "dev_metrics") else None


def _try_to_build(part: DictConfig, encoder: EncoderOutline | None) -> tuple[Any, InputError | None]:
    """What was built, or None; and what the user can mend. Other errors say more once there is a model."""
    try:
        return instantiate(part, encoder=encoder), None
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__cause__ or cause.__context__
        return None, cause


def _check_model(encoder: dict[str, Any], module: dict[str, Any]) -> None:
    """Refuse prompts and passages other than those that a run's exported model was trained with."""
    folder = Path(encoder["model"])
    record = folder.parent / RESULTS
    if not (folder.is_dir() and record.is_file()):
        return
    stated = read_spec(folder)
    for name in _AS_TRAINED:
        asked = encoder.get(name)
        if name in stated and asked is not None and asked != stated[name]:
            raise InputError(
                f"encoder.{name} is {asked!r}, and {folder} was trained with {stated[name]!r}: base and tuned model "
                f"would not read the same. Say encoder.{name}=null to take the model's own."
            )
    try:
        trained = read_json(record).get("train_passage_encoder", True)
    except InputError:
        return
    if trained is False and module.get("train_passage_encoder") is False:
        raise InputError(
            f"encoder.model is {folder}, whose query side alone was trained: the passage embeddings that it goes with "
            "are its base model's, and module.train_passage_encoder=false would freeze its own. Start from the base "
            "model, or train both sides."
        )


def _check_resumed(config: dict[str, Any]) -> None:
    """Refuse to go on with another encoder or objective than the run began with."""
    path = Path(config["resume"] or "") / CONFIG
    if config["resume"] is None or not path.is_file():
        return
    before, asked = (
        OmegaConf.create(with_effective_encoders(c))
        for c in (as_now(OmegaConf.to_container(OmegaConf.load(path))), redact(config))
    )
    for key in _MADE_WITH:
        old, new = (_without_speeds(OmegaConf.select(c, key)) for c in (before, asked))
        found = first_difference(old, new, key)
        if found:
            raise InputError(
                f"resume: {config['resume']} was begun with {found[0]}={found[1]}, and this asks for {found[2]}: its "
                "weights and the embeddings of its frozen passages would not fit. Resume with what it began with."
            )


def _without_speeds(part: Any) -> Any:
    if not OmegaConf.is_config(part):
        return part
    plain = OmegaConf.to_container(part)
    return {k: v for k, v in plain.items() if k not in _SPEEDS} if isinstance(plain, dict) else plain
