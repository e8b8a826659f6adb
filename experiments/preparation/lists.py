"""Runs the pipeline, writes its lists where the user asks for them, and prints what each stage did."""

import logging
import shutil
from pathlib import Path

import torch
from filelock import FileLock
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from datamodules.pipeline.stages.stage import Output, summary
from datamodules.storage.files import atomic_path, read_json, remove_leftovers, write_json
from experiments.cli.rerun import save_config
from experiments.preparation.pipeline import Pipeline
from experiments.preparation.second_round import next_command
from experiments.preparation.teacher_card import print_card, teacher_card
from retriever.errors import InputError
from retriever.printable import printable

log = logging.getLogger(__name__)
_RULES = ("kept", "inconsistent", "not first", "short list", "low score")


def make_lists(config: DictConfig) -> list[Path]:
    """Run the pipeline of a configuration as far as it asks; return the paths of the lists, if it got so far."""
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")  # TF32
    pipeline = Pipeline(config)
    if "split" in pipeline.names:
        _check_what_is_replaced(pipeline, Path(config.output))
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
        save_config(
            pipeline.with_precisions(config), output
        )  # first: by it the others know that these lists are theirs
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
    if config.tuned is not None:
        log.info("To train on them as that run did: %s", next_command(Path(config.tuned).expanduser(), written))
    return written


def _check_what_is_replaced(pipeline: Pipeline, output: Path) -> None:
    """Say where the lists of another corpus are kept, if there are some in the folder that these go to.

    Raises:
        InputError: they are kept nowhere else.
    """
    path = output / "manifest.json"
    before = read_json(path) if path.is_file() else {}
    splits = [made for name, made in before.items() if name.rpartition("/")[2] == "split"]  # students have one, too
    if not splits or before["queries"]["inputs"]["corpus"] == pipeline.corpus.sha256:
        return
    work = Path(pipeline.config.work)
    kept = {work / f"split-{split['key'][:12]}": split["outputs"] for split in splits}
    what = f"{output} has lists of another corpus, {splits[0]['settings']['corpus_name']}"
    if not all((folder / name).is_file() for folder, names in kept.items() for name in names):
        raise InputError(f"{what}, and {work} has no copy of them. Name another folder: output=…; or move them away.")
    log.warning(
        "%s. Those of %s will replace them; copies stay in %s. To keep both at hand, name another folder: output=…",
        what,
        pipeline.corpus.name,
        ", ".join(map(str, kept)),
    )


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
