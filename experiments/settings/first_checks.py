"""What a run's configuration is asked before torch is imported: keys, values, files, contradictions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from callbacks.reporting.results import RESULTS
from datamodules.corpus.data_sets import find_file, require_dataset
from datamodules.specs import EvaluationSpec, ListFile, TrainFile, read_evaluation_specs, read_list_files
from datamodules.storage.files import read_json
from experiments.cli.redact import redact
from experiments.cli.rerun import CONFIG
from experiments.cli.sweep import first_difference
from experiments.cli.targets import check_written
from experiments.conf import CONF
from experiments.settings.encoders import SPECS, outline, with_effective_encoders
from experiments.settings.older_runs import as_now
from experiments.settings.run_settings import read_run_settings
from experiments.settings.two_encoders import check_two_encoders
from retriever.encoder.sentence_transformers_layout import read_spec
from retriever.errors import InputError

# of a run that goes on, what its checkpoint and its frozen passages were made with
_MADE_WITH = (
    "encoder",
    "passage_encoder",
    "data.guide",
    "module._target_",
    "module.train_passage_encoder",
    "module.matryoshka_dimensions",
)
_PARTS = ("encoder", "module", "data", "evaluation", "optimizer", "scheduler", "trainer", "logger")
_SPEEDS = ("attention", "compile", "trust_remote_code")  # give the same embeddings
_AS_TRAINED = ("query_prompt", "passage_prompt", "passage_titles", "pooling", "normalize")


def check_first(config: DictConfig) -> None:
    """Refuse what is wrong in a run's configuration, as far as that shows within a second.

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
    plain = OmegaConf.to_container(config, resolve=True)
    specs = read_evaluation_specs(plain["evaluation"].get("datasets"))
    check_written(config, SPECS)
    settings = read_run_settings(plain)
    outline(plain["encoder"])
    _check_criterion(monitored_metrics(config), specs, settings.allow_test_selection)
    check_two_encoders(plain)
    _check_model(plain["encoder"], plain["module"], plain.get("passage_encoder"))
    _check_resumed(plain)


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


def check_inputs(config: DictConfig) -> None:
    """Refuse files of lists and data sets that are not there, before anything is loaded.

    Raises:
        InputError: the file, or a data set that is no folder and no name.
    """
    plain = OmegaConf.to_container(config, resolve=True)
    train = read_list_files(TrainFile, plain["data"].get("train") or (), "data.train")
    for file in (*train, *read_list_files(ListFile, plain["data"].get("dev") or (), "data.dev")):
        _require_lists(Path(file.path))
        require_dataset(file.corpus, plain["data_dir"])
    for spec in read_evaluation_specs(plain["evaluation"]["datasets"]):
        require_dataset(spec.path, plain["data_dir"])
        if spec.lists is not None:
            find_file(spec.lists)


def _require_lists(path: Path) -> None:
    """Name the students of which there are lists, where `prepare` made none of this one."""
    beside = sorted(found.parent.name for found in path.parent.parent.glob(f"*/{path.name}"))
    students = [name for name in beside if (CONF / "encoder" / f"{name}.yaml").is_file()]
    if students and not path.is_file():
        raise InputError(f"{path}: no such file. There are lists of {', '.join(students)}: say encoder={students[0]}.")
    find_file(path)


def _check_model(encoder: dict[str, Any], module: dict[str, Any], passages: dict[str, Any] | None) -> None:
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
    if trained is False and module.get("train_passage_encoder") is False and passages is None:
        raise InputError(
            f"encoder.model is {folder}, whose query side alone was trained: the passage embeddings that it goes with "
            "are another model's, and module.train_passage_encoder=false would freeze its own. Start from the base "
            "model, train both sides, or name the passages' model: encoder@passage_encoder=…."
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
