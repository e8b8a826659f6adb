"""SharedRunDir: the processes of one run, however they were started, write to one folder, the first rank's."""

import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write

from experiments.cli.ranks import broadcast_from_rank_zero, number_of_process

FRESH: set[str] = set()  # folders that were not there before this process


class SharedRunDir(Callback):
    """Hydra callback: take the first rank's output folder, whose name holds the second in which *that* rank started."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """A single run."""
        folder, number = _first_ranks(config, "run")
        if not Path(folder).exists():
            FRESH.add(folder)
        with read_write(config.hydra):
            config.hydra.run.dir = folder
            if number > 0:
                config.hydra.output_subdir = None  # .hydra is the first rank's
                config.hydra.job.name += f"_{number}"  # and so is run.log

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """A sweep, whose jobs' configurations are composed again from their overrides."""
        folder, number = _first_ranks(config, "sweep")
        with read_write(config.hydra):
            config.hydra.sweep.dir = folder
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{folder}'")
            if number > 0:
                config.hydra.overrides.hydra += ["hydra.output_subdir=null", f"hydra.job.name=run_{number}"]


def _first_ranks(config: DictConfig, kind: str) -> tuple[str, int]:
    """The first rank's folder for this one's, and this process's number among those that asked."""
    HydraConfig.instance().set_config(config)  # the folder's name may refer to it
    folder, num_nodes = config.hydra[kind].dir, OmegaConf.select(config, "trainer.num_nodes") or 1
    if not folder:  # as it is, the one that the command is typed in would be filled
        sys.exit(f"error: hydra.{kind}.dir is empty; name the folder of the {kind}, or leave it out.")
    own = str(Path(folder).absolute())
    try:
        return broadcast_from_rank_zero("folder", lambda: own, num_nodes), number_of_process(num_nodes)[0]
    except Exception as error:  # of which Hydra would make a warning, and every rank take a folder of its own
        sys.exit(f"error: the ranks found no common run folder ({error}). Look at MASTER_ADDR and MASTER_PORT.")
