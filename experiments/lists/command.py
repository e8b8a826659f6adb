"""Look into files of query lists, import, export and measure them, and cut data sets.

python -m experiments.prepare inspect FILE …
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from datamodules.corpus import find_dataset
from datamodules.formats.transfer import LAYOUTS
from datamodules.small_corpus import cut_data_set
from experiments.cli.errors import KindParser
from experiments.lists import COMMANDS
from experiments.lists.inspect import inspect_file
from experiments.lists.temperatures import print_temperatures
from experiments.lists.transfer import export_file, import_file
from retriever.errors import InputError
from retriever.printable import PrintableFormatter, printable


def main(argv: Sequence[str]) -> None:
    """The command.

    Args:
        argv: one of ``COMMANDS`` and what follows it.
    """
    logging.basicConfig(level=logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(PrintableFormatter("%(levelname)s: %(message)s"))
    options = _parser().parse_args(argv)
    given = {name: value for name, value in vars(options).items() if value is not None}  # the others have defaults
    command, parser = given.pop("run"), given.pop("parser")
    try:
        count = command(**given)
        if count is not None:
            print(printable(f"{options.output}: {count:,} lists"))
    except InputError as error:
        sys.stderr.write(printable(f"error: {parser.as_options(str(error))}\n"))
        sys.exit(2)
    except OSError as error:  # of what is written; what is read says more
        name = error.filename2 or error.filename
        sys.stderr.write(printable(f"error: {name}: cannot be written ({error.strerror}).\n"))
        sys.exit(2)


def _parser() -> KindParser:
    parser = KindParser(prog="python -m experiments.prepare", description="Files of query lists.")
    commands = parser.add_subparsers(required=True, metavar="|".join(COMMANDS))
    show = commands.add_parser("inspect", help="print what stands in a file, and draw its histograms")
    show.add_argument("path", metavar="file", help=".parquet or .jsonl file of query lists")
    show.add_argument("--corpus", metavar="FOLDER_OR_NAME", help="default: the name in the file, if it is found here")
    show.add_argument("--qrels", metavar="SPLIT", help="judgements to hold the teacher against (default: train)")
    show.add_argument("--png", metavar="PATH", help="default: FILE.inspect.png")
    show.set_defaults(run=inspect_file)

    read = commands.add_parser("import", help="read another tool's file")
    read.add_argument("path", metavar="file", help="the other tool's file")
    _common(read, "PATH.parquet or PATH.jsonl")
    read.add_argument("--corpus", metavar="FOLDER_OR_NAME", help="that the lists were made from; without it, one is "
                      "written from the texts")  # fmt: skip
    read.add_argument("--corpus-output", metavar="FOLDER", help="of that new corpus (default: beside the output)")
    read.add_argument("--query-type", help="of lists whose line states none (default: human)")
    read.add_argument("--teacher", help="where the scores come from, for the metadata")
    read.add_argument("--source-ids", action="store_const", const=True, help="cadet: qid is the id of the passage that "
                      "the query was written for, its positive")  # fmt: skip
    read.add_argument("--ignore-texts", dest="check_texts", action="store_const", const=False,
                      help="where a file gives ids and texts, do not compare the texts with the corpus")  # fmt: skip
    read.add_argument("--queries", metavar="FILE", help="runs: queries.jsonl or queries.tsv (default: "
                      "FILE.queries.jsonl, or the queries in its folder or the corpus')")  # fmt: skip
    read.add_argument("--scores", metavar="stated|labels|ranks", help="flag_embedding, tevatron: labels takes 1 for "
                      "positives and 0 for negatives; runs: ranks takes minus the rank")  # fmt: skip
    read.add_argument("--qrels", metavar="TSV", help="runs: judgements for the positives (default: FILE.qrels.tsv)")
    read.set_defaults(run=import_file)

    write = commands.add_parser("export", help="write a file for another tool")
    write.add_argument("path", metavar="file", help=".parquet or .jsonl file of query lists")
    _common(write, "PATH")
    write.add_argument("--corpus", metavar="FOLDER_OR_NAME", help="default: the name in the file, if it is found here")
    write.add_argument("--form", help="sentence_transformers: columns (default) or lists")
    write.add_argument("--list-length", type=int, help="sentence_transformers: keep the teacher's best ones only")
    write.set_defaults(run=export_file)

    cut = commands.add_parser("cut", help="write a data set of fewer passages, the judged ones of its queries kept")
    cut.add_argument("data_set", help="a BEIR-layout folder, a shipped or a BEIR name")
    cut.add_argument("--passages", type=int, required=True, help="how many")
    cut.add_argument("--output", required=True, metavar="FOLDER", help="its name is the new corpus' name")
    cut.add_argument("--split", default="test", help="whose queries are kept as far as they fit (default: test)")
    cut.add_argument("--seed", type=int, default=1)
    cut.set_defaults(run=_cut)
    for command in (show, read, write, cut):
        command.add_argument("--empty-passages", default="keep", metavar="keep|error",
                             help="what to do about passages without title and text (default: keep them)")  # fmt: skip
        command.set_defaults(parser=command)

    fitted = commands.add_parser("temperatures", help="print the temperatures that fit files of query lists")
    fitted.add_argument("words", nargs="+", metavar="file|key=value", help=".parquet or .jsonl files of query lists, "
                        "and settings of experiments.run: encoder=bge_base data.list_length=50")  # fmt: skip
    fitted.set_defaults(run=print_temperatures, parser=fitted)
    return parser


def _common(parser: argparse.ArgumentParser, output: str) -> None:
    parser.add_argument("--layout", required=True, help=", ".join(LAYOUTS))
    parser.add_argument("--output", required=True, metavar=output)
    parser.add_argument("--score-key", help="cadet, tevatron: the passage's key for the score (default: score)")
    parser.add_argument("--on-bad-list", help="error (default), or drop to leave out lists that fail a check")


def _cut(data_set: str, output: str, passages: int, split: str, seed: int, empty_passages: str) -> None:
    counts = cut_data_set(find_dataset(data_set), Path(output), passages, split, seed, empty_passages)
    print(printable(f"{output}: {', '.join(f'{count:,} {what}' for what, count in counts.items())}"))
