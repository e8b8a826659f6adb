"""The Weights & Biases run of an experiment: where it goes, under which id, and that it never stops the training."""

import hashlib
import importlib.util
import logging
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import wandb
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig, OmegaConf

from callbacks.reporting.logged_before import STEP
from datamodules.storage.files import write_text
from experiments.cli.redact import redact, redact_arguments

log = logging.getLogger(__name__)
PACKAGES = ("retriever", "datamodules", "callbacks", "experiments")
_LONGEST = 64  # characters of an arm's name there


@contextmanager
def wandb_logger(config: DictConfig, folder: Path, arm: str) -> Iterator[WandbLogger]:
    """Log to a new W&B run in the block, on the first rank; the run ends as failed where the block raises.

    It is online, or offline where no key is there or the server is out of reach. All files are below ``folder/wandb``.
    The id is kept in ``folder/wandb_id.txt``: a resumed run goes on under it.
    """
    run = _started(config, folder, arm)
    run.define_metric(STEP, hidden=True)
    # not "*" as Lightning does: it would win over val/* and dev/*, which the callback WandbReport defines
    for name in ("train/*", "diagnostics/*", "lr-*"):
        run.define_metric(name, step_metric=STEP, step_sync=True)
    try:
        yield WandbLogger(experiment=run)
    except BaseException:
        wandb.finish(exit_code=1)  # else the next job of a sweep would go on in this run
        raise
    wandb.finish()


def source_files() -> dict[str, Path]:
    """Name → file of all that decides what a run does: the project's code and configuration, and the user's own.

    The user's own are Python files in ``--config-dir``, and the module that the objective comes from; what is in the
    YAML files there is in ``config.yaml``, without secrets.
    """
    root = Path(__file__).parents[2]
    files = {
        str(path.relative_to(root)): path
        for package in PACKAGES
        for kind in ("*.py", "*.yaml")
        for path in (root / package).rglob(kind)
    }
    for folder in _config_dirs():
        files |= {f"config_dir/{path.relative_to(folder)}": path for path in folder.rglob("*.py") if path.is_file()}
    return dict(sorted(files.items()))


def module_file(target: str) -> dict[str, Path]:
    """Name → file of the Python module that a ``_target_`` stands in, where it is not the project's own."""
    module = target.rpartition(".")[0]
    if module.split(".")[0] in PACKAGES:
        return {}
    spec = importlib.util.find_spec(module)
    origin = spec.origin if spec else None
    return {f"own/{module.replace('.', '/')}.py": Path(origin)} if origin and origin.endswith(".py") else {}


def _started(config: DictConfig, folder: Path, arm: str) -> wandb.Run:
    options = config.logger.wandb
    if len(arm) > _LONGEST:
        arm = f"{arm[: _LONGEST - 9]} {hashlib.sha256(arm.encode()).hexdigest()[:8]}"
    arguments = {
        "name": f"{arm}-seed{config.seed}",
        "id": _run_id(folder, resumed=config.resume is not None),
        "resume": "allow",
        "project": options.project,
        "entity": options.entity,
        "group": config.group or folder.parent.name,
        "job_type": arm,
        "tags": list(options.tags),
        "config": redact(OmegaConf.to_container(config, resolve=True)),
    }
    timeouts = {"init_timeout": options.init_timeout, "finish_timeout": options.finish_timeout}
    return start_run(folder, arguments, options.offline, **timeouts)


def start_run(folder: Path, arguments: dict[str, Any], offline: bool | None = None, **settings: Any) -> wandb.Run:
    """Start a W&B run: online where a key is there, else, or where the server is out of reach, offline.

    Args:
        folder: W&B's files go below ``wandb`` in it.
        arguments: of ``wandb.init``.
        offline: True never asks the server, False always; None: where a key is there.
        **settings: further ``wandb.Settings``.
    """
    # copies of what artifacts hold, until they are sent
    os.environ["WANDB_DATA_DIR"] = str((folder / "wandb" / "staging").absolute())
    arguments = {**arguments, "dir": str(folder)}
    if not (offline if offline is not None else not _logged_in()):
        try:
            return _start("online", arguments, settings)
        except wandb.Error as error:
            log.warning("W&B is out of reach (%s); this run is kept offline, for `wandb sync`.", _first_line(error))
            if "id" in arguments:
                arguments["id"] = _run_id(folder, resumed=False)  # W&B's own process holds the other one in use
    return _start("offline", arguments, settings)


def _start(mode: str, arguments: dict[str, Any], settings: dict[str, Any]) -> wandb.Run:
    silent = mode == "offline"
    if silent:
        os.environ.setdefault("WANDB_SILENT", "true")
    with _redacted_command_line():
        return wandb.init(settings=wandb.Settings(mode=mode, silent=silent, **settings), **arguments)


def _logged_in() -> bool:
    try:
        return wandb.login(prompt=False, verify=False)  # verifying would need the network, and raise without
    except wandb.Error as error:
        log.warning("W&B: %s", _first_line(error))
        return False


@contextmanager
def _redacted_command_line() -> Iterator[None]:
    """W&B notes the command line of a run."""
    given = sys.argv
    sys.argv = [given[0], *redact_arguments(given[1:])]
    try:
        yield
    finally:
        sys.argv = given


def _run_id(folder: Path, resumed: bool) -> str:
    path = folder / "wandb_id.txt"
    if resumed and path.is_file():
        return path.read_text(encoding="utf-8").strip()
    run_id = secrets.token_hex(4)
    write_text(path, run_id + "\n")
    return run_id


def _config_dirs() -> list[Path]:
    """Folders that the user named by ``--config-dir``."""
    if not HydraConfig.initialized():
        return []
    sources = HydraConfig.get().runtime.config_sources
    return [Path(source.path) for source in sources if source.schema == "file" and source.provider == "command-line"]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
