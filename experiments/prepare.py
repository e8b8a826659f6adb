"""From a corpus to query lists with teacher scores: python -m experiments.prepare +data=scifact [key=value ...].

Once more, with the hits of a model that was trained on them: --from LISTS tuned=RUN output=FOLDER [key=value ...].
Also: python -m experiments.prepare inspect|import|export|temperatures FILE …, and cut DATA_SET …
"""

import sys
from functools import partial
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from experiments.cli.arguments import check_added, say_what_is_kept
from experiments.cli.errors import run_kindly, single
from experiments.cli.quiet import quiet_imports
from experiments.cli.rerun import read_config, start_from
from experiments.conf import CONF
from experiments.lists import COMMANDS
from experiments.preparation.first_checks import check_first
from experiments.settings.renamed import rename_config
from experiments.settings.without_effect import OF_PREPARE, say_what_has_no_effect


def prepare(config: DictConfig) -> list[Path]:
    """Run the pipeline of a configuration as far as it asks; return the paths of the lists, if it got so far.

    Raises:
        InputError: with the setting, its value and what to do.
    """
    check_first(config)
    with quiet_imports():
        from experiments.preparation.lists import make_lists

    return make_lists(config)


@hydra.main(version_base="1.3", config_path="conf/prepare", config_name="prepare")
@single
def application(config: DictConfig) -> None:
    """One job."""
    config = rename_config(config, ())
    check_added(config, HydraConfig.get(), "prepare/prepare.yaml")
    say_what_is_kept(config, HydraConfig.get().overrides.task)
    say_what_has_no_effect(config, HydraConfig.get().overrides.task, OF_PREPARE)
    prepare(config)


def main() -> None:
    """The command."""
    if len(sys.argv) > 1 and sys.argv[1] in COMMANDS:
        from experiments.lists.command import main as of_files

        of_files(sys.argv[1:])
    else:
        read = partial(read_config, shipped_as=CONF / "prepare" / "prepare.yaml")
        run_kindly(partial(start_from, application, read))


if __name__ == "__main__":
    main()
