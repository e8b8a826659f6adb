"""A second round: the hits of a model that was tuned on lists, for lists of the same queries; all else as it was."""

import copy
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, open_dict

from datamodules.storage.yaml_files import read_yaml
from experiments.cli.arguments import value_text
from experiments.cli.rerun import CONFIG
from experiments.cli.targets import check_written
from experiments.preparation.settings import TUNED, PrepareSettings
from experiments.settings.finished_runs import finished_run
from retriever.errors import InputError

_FUSION = "retriever.teachers.RunFusion"


def check_second_round(settings: PrepareSettings, trust_remote_code: bool) -> None:
    """Refuse a run whose model finds nothing, and a folder of other lists, before anything is loaded.

    Raises:
        InputError: the run is not finished, exported no model, or is a cross-encoder; or the output has other lists.
    """
    if settings.tuned is None:
        return
    run = finished_run(Path(settings.tuned).expanduser(), check_written, settings.allowed_targets, trust_remote_code)
    if run.is_reranker:
        raise InputError(
            f"tuned is {settings.tuned}, a run of a cross-encoder, which searches nothing. Name one of an encoder."
        )
    output = Path(settings.output)
    made_with = read_yaml(output / CONFIG, "Remove it.").get("tuned") if (output / CONFIG).is_file() else None
    if made_with != settings.tuned and any(output.glob("*.parquet")):
        raise InputError(
            f"output is {output}, where there are lists that were made {f'with {made_with}' if made_with else 'before'}"
            "; they stay. Name a folder for the new ones: output=FOLDER."
        )


def with_tuned(config: DictConfig) -> DictConfig:
    """Add the retriever of ``tuned`` to a preparation's configuration, where one is named.

    It weighs as much as the others together, so that about half of the candidates are its own. What the others decided
    stays theirs: the scores of a fusion as teacher, and which queries are consistent.

    Raises:
        InputError: a retriever has that name already.
    """
    if config.tuned is None:
        return config
    config = copy.deepcopy(config)
    mine = config.mine
    others = [name for name, options in mine.retrievers.items() if options]
    if TUNED in others:
        raise InputError(f"mine.retrievers has {TUNED!r} already, the name of what is added here. Rename that one.")
    with open_dict(config):
        mine.retrievers[TUNED] = {"run": config.tuned}
        weights = {name: (mine.weights or {}).get(name, 1.0) for name in others}
        mine.weights = {**weights, TUNED: sum(weights.values()), **(mine.weights or {})}
        if config.filter.consistency_retrievers is None:
            config.filter.consistency_retrievers = others
        for teacher in (config.teacher, *config.teacher.get("members", {}).values()):
            if teacher.get("_target_") == _FUSION and not teacher.get("weights"):
                teacher.weights = {name: 1 / len(others) for name in others}
    return config


def next_command(run: Path, lists: Sequence[Path]) -> str:
    """Say how to train once more as a run did, on lists in the place of its own that have their names."""
    data = read_yaml(run / CONFIG, "Run that experiment again.")["data"]
    new = {path.name: str(path) for path in lists}
    typed = [f"data.{part}={value_text(_renewed(data[part], new))}" for part in ("train", "dev") if data.get(part)]
    return f"python -m experiments.run --from {shlex.join([str(run), *typed])}"


def _renewed(files: Sequence[dict[str, Any]], new: dict[str, str]) -> list[dict[str, Any]]:
    return [file | {"path": new.get(Path(file["path"]).name, file["path"])} for file in files]
