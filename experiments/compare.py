"""Compare runs: python -m experiments.compare RUN... [--base NAME] [--output FOLDER] [--qrels FILE].

A RUN is a run folder, a folder that holds some (a sweep), or a pattern; or a file of any other tool: a ranking (TREC's
columns, JSON, tables), scored by the judgements of --qrels, or figures of queries. Runs that differ in their seed alone
are averaged: files of one name but for seed1, seed2, or those given as ARM=FILE.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from callbacks.reliability.termination import terminate_gracefully
from datamodules.storage.files import is_disk_full, write_text
from experiments.cli.errors import KindParser, explain
from experiments.cli.ranks import is_first_rank
from experiments.comparison.arms import are_of_several_corpora
from experiments.comparison.formats import markdown, print_tables
from experiments.comparison.measured import BASE
from experiments.comparison.tables import POINTS, Comparison, compare
from retriever.errors import InputError
from retriever.printable import printable

log = logging.getLogger(__name__)


class CompareSweep(Callback):
    """Hydra callback: the comparison of a sweep at its end."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print the comparison of all runs of the sweep, and keep it in the sweep's folder."""
        if not is_first_rank():
            return
        folder = Path(config.hydra.sweep.dir)
        try:
            comparison = compare([folder])
        except InputError as error:  # the runs are there all the same
            log.error("No comparison: %s", printable(str(error)))
            return
        try:
            show_and_write(comparison, folder)
        except Exception as error:  # a full disk, say; Hydra would make a warning of it, and exit with status 0
            kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
            sys.exit(printable(f"error: No comparison: {kind}{error}"))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = KindParser(prog="python -m experiments.compare", description=__doc__.splitlines()[0])
    of_runs = "run folders, folders that hold some (a sweep's), rankings and figures of other tools, or patterns; "
    of_runs += "ARM=FILE names a file's arm, and files of one arm are its seeds"
    parser.add_argument("runs", nargs="+", help=of_runs)
    of_which = "the step that the dev criterion chose, or the last"
    of_qrels = "judgements by which rankings of other tools are scored, BEIR's or TREC's"
    parser.add_argument("--qrels", metavar="FILE", help=of_qrels)
    parser.add_argument("--which", choices=POINTS, default="best", help=of_which)
    of_base = "the arm to compare with (default: each run's model before training; of files, the first)"
    parser.add_argument("--base", metavar="NAME", default=BASE, help=of_base)
    of_home = "each run only on the corpus that it was trained on, and the average over corpora"
    parser.add_argument("--at-home", action="store_true", help=of_home)
    parser.add_argument("--output", metavar="FOLDER", help="write tables, plots, queries and comparison.html there")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables there too")
    parser.add_argument("--wandb", metavar="PROJECT", help="log all of it to that W&B project; needs --output")
    options = parser.parse_args(arguments)
    if options.wandb and not options.output:
        parser.error("--wandb logs the files that --output writes: name a folder with --output")
    terminate_gracefully()
    try:
        _compare(options)
    except (InputError, OSError) as error:
        if not isinstance(error, InputError) and not is_disk_full(error):
            raise
        sys.exit(printable(f"error: {explain(error)}"))


def _compare(options: argparse.Namespace) -> None:
    comparison = compare(options.runs, options.which, options.base, options.qrels, at_home=options.at_home)
    if options.output:
        files = show_and_write(comparison, Path(options.output))
    else:
        print_tables(comparison)
    if not options.at_home and are_of_several_corpora([r for runs in comparison.groups.values() for r in runs]):
        print("These runs were trained on different corpora. --at-home looks at each only on its own, and averages.")
    if options.markdown:
        write_text(options.markdown, markdown(comparison))
    if options.wandb:
        from experiments.comparison.to_wandb import log_comparison  # the import takes a second

        log_comparison(comparison, files, Path(options.output), options.wandb)


def show_and_write(comparison: Comparison, folder: Path) -> list[Path]:
    """Print the tables; write tables, plots and a page to a folder, and return the paths, the page first."""
    from experiments.comparison.report import write_report  # the import of matplotlib takes a second

    print_tables(comparison)
    files = write_report(comparison, folder)
    print(printable(f"All of it, with plots and queries: {files[0]}"))
    return files


if __name__ == "__main__":
    main()
