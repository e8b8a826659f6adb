"""OneFolder: the processes of one run, however they were started, write to one folder, the first rank's."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from omegaconf import DictConfig, read_write
from torch.distributed import Store, rendezvous

_VARIABLE = "EXPERIMENT_FOLDER"
_STORES: list[Store] = []  # kept open: the first rank's must be there for the slowest


class OneFolder(Callback):
    """Hydra callback: take the first rank's output folder, whose name holds the second in which *that* rank started."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """A single run."""
        folder, number = _first_ranks(config, config.hydra.run)
        with read_write(config.hydra):
            config.hydra.run.dir = folder
            if number > 0:
                config.hydra.output_subdir = None  # .hydra is the first rank's
                config.hydra.job.name += f"_{number}"  # and so is run.log

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """A sweep, whose jobs' configurations are composed again from their overrides."""
        folder, number = _first_ranks(config, config.hydra.sweep)
        with read_write(config.hydra):
            config.hydra.sweep.dir = folder
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{folder}'")
            if number > 0:
                config.hydra.overrides.hydra += ["hydra.output_subdir=null", f"hydra.job.name=run_{number}"]


def _first_ranks(config: DictConfig, place: DictConfig) -> tuple[str, int]:
    """The first rank's folder for this one's, and this process's number among those that asked."""
    HydraConfig.instance().set_config(config)  # the folder's name may refer to it
    own = str(Path(place.dir).absolute())
    try:
        folder, number = _agree(own, config.trainer.get("num_nodes", 1))
    except Exception as error:  # of which Hydra would make a warning, and every rank take a folder of its own
        sys.exit(f"error: the ranks found no common run folder ({error}). Look at MASTER_ADDR and MASTER_PORT.")
    os.environ[_VARIABLE] = folder
    return folder, number


def _agree(own: str, num_nodes: int) -> tuple[str, int]:
    for environment in (TorchElasticEnvironment, SLURMEnvironment):
        if environment.detect():
            tasks = environment()
            return _exchange(own, tasks, tasks.global_rank(), tasks.world_size())
    child = int(os.environ.get("LOCAL_RANK", 0))
    if child > 0:  # Lightning started this process, with its parent's environment
        return os.environ.get(_VARIABLE, own), child
    tasks = LightningEnvironment()  # one process on each node, which will start the others
    return _exchange(own, tasks, tasks.node_rank(), num_nodes)


def _exchange(own: str, tasks: ClusterEnvironment, rank: int, world_size: int) -> tuple[str, int]:
    """Write or read the folder in a store that the first rank opens where the process group will meet."""
    if world_size > 1:
        url = f"tcp://{tasks.main_address}:{tasks.main_port}"
        store, *_ = next(rendezvous(url, rank=rank, world_size=world_size))
        _STORES.append(store)
        key = f"folder-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
        if rank == 0:
            store.set(key, own)
        own = store.get(key).decode()
    return own, rank
