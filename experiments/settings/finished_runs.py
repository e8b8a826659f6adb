"""A finished run whose model is used again: what of its folder is read, and what that may not decide."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from callbacks.reporting.results import RESULTS, read_results
from datamodules.storage.yaml_files import read_yaml
from experiments.cli.rerun import CONFIG
from experiments.settings.encoders import SPECS
from experiments.settings.older_runs import as_now
from retriever.errors import InputError

Check = Callable[[DictConfig, Mapping[str, type]], None]


@dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Attributes:
        name: of its arm.
        seed: its own.
        config: its configuration, of plain containers.
        model: the exported model's folder, whose files say pooling, prompts and lengths.
        of_passages: the encoder that its passages were encoded by, ready to be built: the run's ``passage_encoder``,
            or the base model; None where the exported model encodes them.
        is_reranker: whether it is a cross-encoder.
    """

    name: str
    seed: int
    config: dict[str, Any]
    model: Path
    of_passages: DictConfig | None
    is_reranker: bool


def exported_results(folder: Path) -> dict[str, Any]:
    """Give the results of a finished run that exported a model.

    Raises:
        InputError: it is none.
    """
    results, none = read_results(folder), f"{folder}: no finished run with an exported model."
    if results is None and not (folder / CONFIG).is_file():
        raise InputError(f"{none} {_what_it_is(folder)} Name a run's own folder, in which {CONFIG} is.")
    if results is None:
        raise InputError(
            f"{none} It has no whole {RESULTS}, so this run is not finished. The command that began it goes on with "
            f"it: resume={folder}."
        )
    if not (folder / "model").is_dir():
        raise InputError(f"{none} It has no folder model: it ran with export=false. Run it again with export=true.")
    return results


def _what_it_is(folder: Path) -> str:
    """A sentence on a path that is no run's folder."""
    if not folder.is_dir():
        return "It is a file." if folder.is_file() else "There is no such folder."
    if (folder.parent / RESULTS).is_file():
        return f"It is a part of the run {folder.parent}."
    runs = [path.parent for path in sorted(folder.glob(f"*/{RESULTS}"))]
    return f"It holds {len(runs)} run(s), such as {runs[0]}." if runs else "It is no run's folder."


def finished_run(folder: Path, check: Check, allowed: Sequence[str], trust_remote_code: bool) -> FinishedRun:
    """Read a run's folder; nothing is loaded yet.

    Args:
        folder: the run's, or what ``experiments.mix`` wrote.
        check: of what its configuration calls.
        allowed: what its configuration may call beside this project, ``allowed_targets``.
        trust_remote_code: run the Python code that its model brings.

    Raises:
        InputError: it is not finished, exported no model, or calls what it may not.
    """
    results = exported_results(folder)
    config = as_now(read_yaml(folder / CONFIG, "Run that experiment again."))
    # the folder may come from others: it decides nothing that runs foreign code, as with --from
    frozen = (config.get("module") or {}).get("train_passage_encoder") is False
    base = config.get("passage_encoder") or config["encoder"]
    placed = OmegaConf.create(
        {
            "encoder": config["encoder"] | {"trust_remote_code": trust_remote_code},
            "passage_encoder": base | {"trust_remote_code": trust_remote_code},
            "repeats": str(folder),
            "allowed_targets": list(allowed),
        }
    )
    check(placed, SPECS)
    return FinishedRun(
        results["name"],
        results["seed"],
        config,
        folder / "model",
        placed.passage_encoder if frozen else None,
        "CrossEncoder" in str(config["encoder"].get("_target_")),
    )
