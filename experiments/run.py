"""Train one objective and evaluate it: python -m experiments.run +exp=scifact/distillation [key=value ...]."""

import logging
import re
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from callbacks.reliability.checkpoint_files import has_checkpoint
from callbacks.reporting.results import read_results
from experiments.cli.alone import FolderInUse, alone_in
from experiments.cli.arguments import check_added, say_what_is_kept
from experiments.cli.errors import run_kindly, single
from experiments.cli.quiet import quiet_imports, quiet_training
from experiments.cli.ranks import is_first_rank, number_of_process
from experiments.cli.rerun import as_typed, read_run, start_from
from experiments.cli.sweep import arm_name, run_of_sweep
from experiments.settings.encoders import with_effective_encoders
from experiments.settings.first_checks import check_first, check_inputs
from experiments.settings.renamed import rename_arguments, rename_config
from experiments.settings.without_effect import OF_RUN, say_what_has_no_effect
from retriever.printable import printable

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path="conf", config_name="run")
@single
def application(config: DictConfig) -> float | None:
    """One job: train, and print its table; what a sweeper that searches gets is the dev criterion, lower is better."""
    as_typed()
    config = rename_config(config, HydraConfig.get().overrides.task)
    check_added(config, HydraConfig.get(), "run.yaml")
    say_what_is_kept(config, HydraConfig.get().overrides.task)
    say_what_has_no_effect(config, HydraConfig.get().overrides.task, OF_RUN)
    if not is_first_rank():
        logging.getLogger().setLevel(logging.WARNING)  # the first rank speaks for all
    own = Path(HydraConfig.get().runtime.output_dir).absolute()
    # a resumed run goes on in its own folder, where its earlier figures are
    folder = Path(config.resume or own).absolute()
    arm = arm_name(config.name, HydraConfig.get())
    log.info("%s, seed %d → %s", arm, config.seed, folder)
    nodes = config.trainer.get("num_nodes") or 1
    try:
        with alone_in(folder, nodes):
            return _run_in(folder, config, own, arm)
    except FolderInUse as error:
        if HydraConfig.get().mode != RunMode.MULTIRUN or number_of_process(nodes)[1] > 1:
            raise
        log.warning("%s This sweep leaves the run to it.", error)
        return None


def _run_in(folder: Path, config: DictConfig, own: Path, arm: str) -> float | None:
    if config.resume is not None and folder == own and not has_checkpoint(folder):
        if read_results(folder) is not None:
            log.info("%s is finished, and not run again", folder)
            return None
        log.info("There is no checkpoint yet: the run begins.")  # one command, to start it and to start it again
        config.resume = None
    if HydraConfig.get().mode == RunMode.MULTIRUN:  # a sweep ends with one table of all
        results = run_of_sweep(config, folder, partial(_train, arm=arm), with_effective_encoders)
    else:
        check_first(config)
        check_inputs(config)
        results = _train(config, folder)
        if is_first_rank() and results["datasets"]:
            _print_table(folder)
            if config.debug is None:
                print_next_steps(folder)
    value = None if results is None else results.get("criterion_value")
    return -value if value is not None and config.criterion_mode == "max" else value


def _train(config: DictConfig, folder: Path, arm: str | None = None) -> dict[str, Any]:
    with quiet_imports():
        from experiments.training.train import run_experiment

    quiet_training()
    return run_experiment(config, folder, arm)


def _print_table(folder: Path) -> None:
    from experiments.comparison.formats import print_tables
    from experiments.comparison.tables import compare

    print_tables(compare([folder]))


def print_next_steps(folder: Path) -> None:
    """Print where a run's model is, and what may follow."""
    place = printable(shlex.quote(str(folder)))
    if (folder / "model").is_dir():
        print(f"The model: {printable(str(folder / 'model'))}")
        print(f"On other data: python -m experiments.evaluate {place} sets=cranfield")
    print(f"Beside another run: python -m experiments.compare {place} RUN")


def with_debug_last(arguments: Sequence[str]) -> list[str]:
    """Return a command line in which ``debug=…`` changes whatever an experiment sets, wherever it was typed."""
    groups = [argument for argument in arguments if re.match(r"\+?debug=", argument)]
    return [*(a for a in arguments if a not in groups), *(f"+{group.lstrip('+')}" for group in groups)]


def main() -> None:
    """The command."""
    rename_arguments()
    sys.argv[1:] = with_debug_last(sys.argv[1:])
    run_kindly(partial(start_from, application, read_run))


if __name__ == "__main__":
    main()
