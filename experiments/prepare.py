"""From a corpus to query lists with teacher scores: python -m experiments.prepare +data=scifact [key=value ...].

Also: python -m experiments.prepare inspect|import|export FILE …, and cut DATA_SET …
"""

import logging
import shutil
import sys
from pathlib import Path

import hydra
import torch
from filelock import FileLock
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from datamodules.pipeline.stages.stage import Output, summary
from datamodules.storage.files import atomic_path, remove_leftovers, write_json
from experiments.cli.arguments import check_added, say_what_is_kept
from experiments.cli.errors import run_kindly
from experiments.lists import command as list_files
from experiments.preparation.pipeline import Pipeline
from experiments.preparation.teacher_card import print_card, teacher_card
from experiments.settings.renamed import rename_config
from experiments.settings.without_effect import OF_PREPARE, say_what_has_no_effect
from retriever.errors import InputError
from retriever.printable import printable

log = logging.getLogger(__name__)
_RULES = ("kept", "inconsistent", "not first", "short list", "low score")


def prepare(config: DictConfig) -> list[Path]:
    """Run the pipeline of a configuration as far as it asks; return the paths of the lists, if it got so far."""
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")  # TF32
    pipeline = Pipeline(config)
    if not pipeline.run():
        return []
    outputs, console = pipeline.outputs, Console()
    console.print(_stages_table(outputs))
    if "generate" in outputs:
        console.print(_answers_table(outputs["generate"].manifest["counts"]["by_type"]))
    if "filter" in outputs:
        console.print(_filter_table(outputs["filter"].manifest["counts"]["by_type"]))
    if "split" not in outputs:
        return []
    output = Path(config.output)
    counts = dict(outputs["split"].manifest["counts"])
    if not any(counts[f"{group}.{part}"] for group in pipeline.groups for part in ("train", "dev")):
        raise InputError("No list is left: see the table of what each filter took, and loosen one (filter.…).")
    with FileLock(Path(config.work) / "output.lock"):  # shards that end together write the same files
        remove_leftovers(output, below=False)  # runs may be under way in folders of it
        written = [_copy(path, output) for path in sorted(outputs["split"].folder.glob("*.parquet"))]
        for name, of_student in pipeline.of_students.items():
            written += [_copy(path, output / name) for path in sorted(of_student["split"].folder.glob("*.parquet"))]
            counts |= {f"{name}/{stem}": n for stem, n in of_student["split"].manifest["counts"].items()}
        of_students = {f"{s}/{name}": o for s, stages in pipeline.of_students.items() for name, o in stages.items()}
        write_json(output / "manifest.json", {name: o.manifest for name, o in (outputs | of_students).items()})
        card = teacher_card(pipeline)
        if card:
            write_json(output / "teacher_card.json", card)
    for other in sorted(set(output.glob("*.parquet")) - set(written)):
        log.warning("%s is of an earlier run, with other groups of queries; it stays as it is", other)
    if card:
        print_card(card, console)
    for path in written:
        log.info("%s: %s lists", path, counts[str(path.relative_to(output).with_suffix(""))])
    return written


def _copy(path: Path, folder: Path) -> Path:
    with atomic_path(folder / path.name) as temporary:
        shutil.copyfile(path, temporary)
    return folder / path.name


def _stages_table(outputs: dict[str, Output]) -> Table:
    table = Table("stage", Column("minutes of work", justify="right"), "counts", title="Stages")
    for name, output in outputs.items():
        minutes = f"{output.manifest['seconds_of_work'] / 60:.1f}"
        table.add_row(name, minutes, _shown(summary(output.manifest["counts"])))
    return table


def _answers_table(counts: dict[str, dict[str, int]]) -> Table:
    reasons = sorted({reason for line in counts.values() for reason in line} - {"accepted"})
    columns = (Column(_shown(kind), justify="right") for kind in counts)
    table = Table("answers", *columns, title="Answers by query type")
    for reason in ("accepted", *reasons):
        table.add_row(reason, *(f"{line.get(reason, 0):,}" for line in counts.values()))
    return table


def _shown(text: str) -> str:
    return escape(printable(text))


def _filter_table(counts: dict[str, dict[str, dict[str, int]]]) -> Table:
    found = {rule for kinds in counts.values() for line in kinds.values() for rule in line}
    rules = [rule for rule in _RULES if rule in found]
    table = Table("queries", *(Column(rule, justify="right") for rule in rules), title="Lists by filter")
    for group, kinds in counts.items():
        for kind, line in kinds.items():
            table.add_row(_shown(f"{group} {kind}"), *(f"{line.get(rule, 0):,}" for rule in rules))
    return table


@hydra.main(version_base="1.3", config_path="conf/prepare", config_name="prepare")
def application(config: DictConfig) -> None:
    """One job."""
    config = rename_config(config, ())
    check_added(config, HydraConfig.get(), "prepare/prepare.yaml")
    say_what_is_kept(config, HydraConfig.get().overrides.task)
    say_what_has_no_effect(config, HydraConfig.get().overrides.task, OF_PREPARE)
    prepare(config)


def main() -> None:
    """The command."""
    if len(sys.argv) > 1 and sys.argv[1] in list_files.COMMANDS:
        list_files.main(sys.argv[1:])
    else:
        run_kindly(application)


if __name__ == "__main__":
    main()
