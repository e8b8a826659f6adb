"""What a run's configuration is asked before anything is loaded: targets, keys, values, ranges, contradictions."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any, get_type_hints

import torch
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from callbacks.evaluation.metrics import DEFAULT_METRICS, MAIN, Metrics
from callbacks.reporting.diagnostics import Diagnostics
from callbacks.reporting.run_record import RESULTS
from datamodules.storage.files import file_name, read_json
from experiments.cli.arguments import SPECS, check_arguments, check_settings
from experiments.cli.redact import redact
from experiments.cli.rerun import CONFIG
from experiments.cli.sweep import first_difference
from experiments.cli.targets import check_targets
from experiments.settings.older_runs import as_now
from experiments.settings.trainer_checks import check_trainer
from retriever.encoder.sentence_transformers_layout import read_spec
from retriever.encoder.text_encoder import EncoderSpec
from retriever.errors import InputError, choose, require_positive, require_text
from retriever.pretrained.source import with_preset

# of a run that goes on, what its checkpoint and its frozen passages were made with
_MADE_WITH = ("encoder", "module._target_", "module.train_passage_encoder", "module.matryoshka_dimensions")
_PARTS = ("encoder", "module", "data", "evaluation", "trainer", "logger")
_SPEEDS = ("attention", "compile", "trust_remote_code")  # give the same embeddings
_AS_TRAINED = ("query_prompt", "passage_prompt", "pooling", "normalize")


def check(config: DictConfig) -> None:
    """Refuse what is wrong in a run's configuration, while nothing has been loaded or encoded.

    Raises:
        InputError: with the setting, its value and what to do.
    """
    for part in _PARTS:
        if config.get(part) is None:
            raise InputError(f"There is no {part}: a run needs one, say {part}=….")
    check_targets(config)
    check_arguments(config)
    _check_top(config)
    for name, switch in {"early_stopping": "patience", "diagnostics": "every_n_steps"}.items():
        if config[name] is None:
            raise InputError(f"{name} is null; to switch it off, say {name}.{switch}=null.")
    check_settings("early_stopping", OmegaConf.to_container(config.early_stopping, resolve=True), _early_stopping)
    diagnostics = OmegaConf.to_container(config.diagnostics, resolve=True)
    if diagnostics["every_n_steps"] is None:  # none are made
        del diagnostics["every_n_steps"]
    check_settings("diagnostics", diagnostics, Diagnostics)
    file_name("name", config.name)
    choose("criterion_mode", config.criterion_mode, ("min", "max"))
    require_positive(token_budget=config.token_budget)
    if config.save_checkpoints or config.resume is not None:
        _check_strategy(config.trainer.get("strategy"))
    check_trainer(config.trainer, config.early_stopping.patience)
    _check_criterion(config)
    _metrics(config)
    _check_model(config)
    if config.resume is not None:
        _check_resumed(config)
    module = _built_on_nothing(config)
    if module is not None:
        _check_metrics(config, module)


def _early_stopping(monitors: list[str], patience: int | None) -> None:
    """The settings of ``early_stopping``."""


def _top(
    name: str,
    group: str | None,
    seed: int,
    output_dir: str,
    cache_dir: str,
    data_dir: str,
    token_budget: int,
    criterion: str,
    allow_test_selection: bool,
    resume: str | None,
    export: bool,
    save_checkpoints: bool,
) -> None:
    """The settings at the top of a run."""


def _wandb(
    project: str,
    entity: str | None,
    offline: bool | None,
    tags: list[str],
    per_query_rows: int,
    init_timeout: float,
    finish_timeout: float,
) -> None:
    """The settings of ``logger.wandb``."""


def _check_top(config: DictConfig) -> None:
    """The settings that no class takes, and the texts in lists of files and data sets."""
    settings = {key: config[key] for key in inspect.signature(_top).parameters}
    if not config.save_checkpoints:  # nothing looks at it
        del settings["criterion"]
    check_settings("", settings, _top)
    if not 0 <= config.seed < 2**32:
        raise InputError(f"seed is {config.seed}; it must be at least 0 and below 2^32.")
    if not isinstance(config.logger.wandb, DictConfig | None):
        raise InputError(f"logger.wandb is {config.logger.wandb!r}; for runs without W&B, say logger=csv.")
    if config.logger.wandb is not None:
        check_settings("logger.wandb", OmegaConf.to_container(config.logger.wandb, resolve=True), _wandb)
    texts = {"data.train": ("path", "corpus"), "data.dev": ("path", "corpus"), "evaluation.datasets": ("path", "lists")}
    for key, names in texts.items():
        for number, spec in enumerate(OmegaConf.select(config, key) or ()):
            for name in names:
                if isinstance(spec, DictConfig) and spec.get(name) is not None:
                    require_text(f"{key}[{number}].{name}", spec[name])


def monitored_metrics(config: DictConfig) -> list[tuple[str, str]]:
    """Setting → metric that decides when to stop and what to keep."""
    found = [("criterion", config.criterion)] if config.save_checkpoints else []
    if config.early_stopping.patience is not None:
        found += [("early_stopping.monitors", metric) for metric in config.early_stopping.monitors]
    return found


def _check_strategy(strategy: Any) -> None:
    """Refuse checkpoints that are folders, a file for each rank: they could be neither checked nor resumed."""
    if not isinstance(strategy, DictConfig):
        return
    name = str(strategy.get("_target_")).rpartition(".")[2]
    if name == "ModelParallelStrategy" and strategy.get("save_distributed_checkpoint", True):
        said = "trainer.strategy.save_distributed_checkpoint is true"
        raise InputError(f"{said}; only whole checkpoints can be resumed: set it to false, as trainer=fsdp does.")
    if name == "FSDPStrategy" and strategy.get("state_dict_type") == "sharded":
        said = "trainer.strategy.state_dict_type is 'sharded'"
        raise InputError(f"{said}; only whole checkpoints can be resumed: set it to full, or take trainer=fsdp.")


def _sets(config: DictConfig) -> dict[str, Any]:
    """Name → what the configuration says of an evaluation set."""
    specs = [spec for spec in config.evaluation.datasets if "path" in spec]  # the evaluation refuses others
    named = {spec.get("name") or Path(spec.path).name: spec for spec in specs}
    for name in named:
        file_name("evaluation.datasets: a name", name)
    return {f"{name}-sample": spec for name, spec in named.items()} | named


def _check_criterion(config: DictConfig) -> None:
    """Refuse test queries that choose a checkpoint, and sets that no validation evaluates."""
    sets = _sets(config)
    for name, metric in monitored_metrics(config):
        chosen_by_test = metric.startswith("val/") and sets.get(metric.split("/")[1], {}).get("queries") != "dev"
        if chosen_by_test and not config.allow_test_selection:
            raise InputError(
                f"{name} is {metric!r}: the queries that are reported would choose the checkpoint. "
                "Choose by dev lists (dev/loss, dev/kl), by a set with queries: dev, or say allow_test_selection=true."
            )
        name_in_metric = metric.split("/")[1] if metric.startswith("val/") else ""
        if sets.get(name_in_metric, {}).get("sample") is not None and not name_in_metric.endswith("-sample"):
            raise InputError(
                f"{name} is {metric!r}, but validations search the sample of {name_in_metric} alone. "
                f"Choose by {metric.replace(name_in_metric, name_in_metric + '-sample')!r}."
            )


def _metrics(config: DictConfig) -> Metrics:
    """The metrics of the evaluation: wrong names, and cutoffs beyond its hits, are refused here."""
    given, hits = config.evaluation.get("metrics"), config.evaluation.get("hits")
    return Metrics(DEFAULT_METRICS if given is None else instantiate(given, _convert_="all"), hits)


def _check_metrics(config: DictConfig, module: Any) -> None:
    """Refuse a metric that nothing will log, as far as that is known beforehand."""
    dev = module.dev_metrics()
    if dev is None:
        return
    for name, metric in monitored_metrics(config):
        if not metric.startswith("val/"):
            choose(name, metric, [f"dev/{part}" for part in dev])
        elif config.evaluation.get("every_validation", True):
            sets = {n: s for n, s in _sets(config).items() if not n.endswith("-sample") or s.get("sample") is not None}
            kinds = [*_metrics(config).names, f"{MAIN}_base", f"{MAIN}_delta"]
            choose(name, metric, [f"val/{n}/{kind}" for n in sets for kind in kinds])


def _built_on_nothing(config: DictConfig) -> Any:
    """Build encoder specification, objective and data module without a model, for their own checks to speak.

    Returns:
        The objective; None where it is not to be built without a model.
    """
    target = config.encoder._target_
    spec = SPECS.get(target)
    if spec is None:
        return None
    stated = spec(**_resolved(OmegaConf.to_container(config.encoder, resolve=True), spec))
    kind = get_object(target.rpartition(".")[0])
    encoder = kind.__new__(kind)
    torch.nn.Module.__init__(encoder)
    encoder.spec, encoder.dimension, encoder.name = stated, getattr(stated, "truncate_dim", None) or 2**31, "encoder"
    built = None
    for part in (config.data, config.module):
        with torch.device("meta"):  # an objective's own weights take no room
            built, wrong = _try_to_build(part, encoder)
        if wrong is not None:  # outside of the except block, or it would become its own context
            raise wrong
    return built if hasattr(built, "dev_metrics") else None


def _resolved(encoder: dict[str, Any], spec: type) -> dict[str, Any]:
    """The fields of a specification that an encoder is to have, as far as that is known before it is loaded."""
    fields = get_type_hints(spec)
    asked = {name: encoder.get(name) for name in fields}
    resolved, _ = with_preset(encoder["model"], encoder.get("preset"), asked, fields)
    folder = Path(encoder["model"]).expanduser()
    said = read_spec(folder) if spec is EncoderSpec and folder.is_dir() else {}
    return {name: value for name, value in said.items() if name in fields} | resolved


def _try_to_build(part: DictConfig, encoder: torch.nn.Module) -> tuple[Any, InputError | None]:
    """What was built, or None; and what the user can mend. Other errors say more once there is a model."""
    try:
        return instantiate(part, encoder=encoder), None
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__cause__ or cause.__context__
        return None, cause


def _check_model(config: DictConfig) -> None:
    """Refuse prompts and passages other than those that a run's exported model was trained with."""
    folder = Path(config.encoder.model)
    record = folder.parent / RESULTS
    if not (folder.is_dir() and record.is_file()):
        return
    stated = read_spec(folder)
    for name in _AS_TRAINED:
        asked = config.encoder.get(name)
        if name in stated and asked is not None and asked != stated[name]:
            raise InputError(
                f"encoder.{name} is {asked!r}, and {folder} was trained with {stated[name]!r}: base and tuned model "
                f"would not read the same. Say encoder.{name}=null to take the model's own."
            )
    try:
        trained = read_json(record).get("train_passage_encoder", True)
    except InputError:
        return
    if trained is False and config.module.get("train_passage_encoder") is False:
        raise InputError(
            f"encoder.model is {folder}, whose query side alone was trained: the passage embeddings that it goes with "
            "are its base model's, and module.train_passage_encoder=false would freeze its own. Start from the base "
            "model, or train both sides."
        )


def _what_decides(encoder: dict[str, Any]) -> dict[str, Any]:
    """The settings of an encoder that decide what it gives, with what preset, files and defaults add to them."""
    found = {key: value for key, value in encoder.items() if key not in _SPEEDS}
    spec = SPECS.get(encoder.get("_target_", ""))
    if spec is None:
        return found
    _, packaged = with_preset(encoder["model"], encoder.get("preset"), {}, get_type_hints(spec))
    defaults = {f.name: f.default for f in dataclasses.fields(spec)}
    return found | {"preset": packaged} | defaults | _resolved(encoder, spec)


def _check_resumed(config: DictConfig) -> None:
    """Refuse to go on with another encoder or objective than the run began with."""
    path = Path(config.resume) / CONFIG
    if not path.is_file():
        return
    before = OmegaConf.create(as_now(OmegaConf.to_container(OmegaConf.load(path))))
    config = OmegaConf.create(redact(OmegaConf.to_container(config, resolve=True)))
    for key in _MADE_WITH:
        old, new = (OmegaConf.select(c, key) for c in (before, config))
        old, new = (OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for v in (old, new))
        if isinstance(old, dict) and isinstance(new, dict):
            old, new = (_what_decides(part) for part in (old, new))
        found = first_difference(old, new, key)
        if found:
            raise InputError(
                f"resume: {config.resume} was begun with {found[0]}={found[1]}, and this asks for {found[2]}: its "
                "weights and the embeddings of its frozen passages would not fit. Resume with what it began with."
            )
