"""Look into, import and export files of query lists, and cut data sets: python -m experiments.prepare inspect FILE …"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from callbacks.evaluation.metrics import score_run, without_self_hits
from datamodules.corpus import SHIPPED, Corpus, find_dataset, find_file, load_corpus, load_evaluation_set
from datamodules.formats.passages import CorpusPassages, new_corpus
from datamodules.formats.records import find_records
from datamodules.formats.transfer import LAYOUTS, export_lists, import_lists
from datamodules.formats.trec import Trec, queries_beside
from datamodules.list_summary import ListSummary, TypeSummary, summarise
from datamodules.query_lists import QueryList, open_query_lists, read_metadata, read_query_lists, write_query_lists
from datamodules.small_corpus import cut_data_set
from datamodules.storage.files import atomic_path, is_folder
from experiments.cli.errors import KindParser
from retriever.errors import InputError
from retriever.printable import PrintableFormatter, printable

EMPTY_PASSAGES = "keep"
COMMANDS = ("inspect", "import", "export", "cut")
_BLUE, _ORANGE, _GREEN, _PINK, _GREY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#555555"
_COLOURS = (_BLUE, _ORANGE, _GREEN, _PINK, _GREY, "#e69f00", "#56b4e9", "#000000")


def main(argv: Sequence[str]) -> None:
    """The command.

    Args:
        argv: one of ``COMMANDS`` and what follows it.
    """
    logging.basicConfig(level=logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(PrintableFormatter("%(levelname)s: %(message)s"))
    options = _parser().parse_args(argv)
    try:
        options.run(options)
    except InputError as error:
        sys.stderr.write(printable(f"error: {options.parser.as_options(str(error))}\n"))
        sys.exit(2)
    except OSError as error:  # of what is written; what is read says more
        name = error.filename2 or error.filename
        sys.stderr.write(printable(f"error: {name}: cannot be written ({error.strerror}).\n"))
        sys.exit(2)


def inspect_file(
    path: str, corpus: str | None, qrels: str | None, png: str | None, empty_passages: str = EMPTY_PASSAGES
) -> None:
    """Print what stands in a file of query lists, and draw its histograms.

    Args:
        path: the file, or one that is shipped.
        corpus: data set whose passages and judgements to use; None tries the name that the file gives.
        qrels: split of its judgements; None takes ``train`` where it judges queries of the file.
        png: the picture; None puts it at ``<path>.inspect.png``.
        empty_passages: as for :func:`~datamodules.corpus.load_corpus`.

    Raises:
        InputError: the file, or a corpus or split that was asked for, cannot be read.
    """
    file = find_file(path)
    try:
        summary = summarise(read_query_lists(file))
    except InputError as error:
        raise InputError(str(error) if str(file) in str(error) else f"{file}: {error}") from error
    name = summary.corpora.most_common(1)[0][0]
    folder, loaded = _find_corpus(name, corpus, empty_passages)
    console = Console(width=None if sys.stdout.isatty() else 132, highlight=False)
    console.print(_overview(file, summary))
    console.print(_pairs("corpus, checks and judgements", _facts(file, summary, name, folder, loaded, qrels)))
    console.print(_pairs("metadata", read_metadata(file)))
    console.print(_examples(summary, loaded))
    # a shipped file is named by its short path; no picture is put into the package
    picture = Path(png or (f"{path}.inspect.png" if Path(path).is_file() else f"{file.name}.inspect.png"))
    draw(summary, picture, file.name)
    console.print(printable(f"histograms: {picture}"), soft_wrap=True, markup=False)


def import_file(
    path: str,
    output: str,
    layout: str,
    corpus: str | None,
    corpus_output: str | None,
    teacher: str | None,
    empty_passages: str = EMPTY_PASSAGES,
    **options: Any,
) -> int:
    """Read another tool's file into a file of query lists; return how many.

    Args:
        path: the file.
        output: ``.parquet`` or ``.jsonl``.
        layout: a key of ``LAYOUTS``.
        corpus: data set that the lists were made from; None writes one from the texts.
        corpus_output: its folder; None puts it beside ``output``, named ``<stem>_corpus``.
        teacher: what to keep in the metadata about where the scores come from.
        empty_passages: of the corpus, as for :func:`~datamodules.corpus.load_corpus`.
        options: of :func:`datamodules.formats.import_lists` and of the layout, and ``check_texts``.

    Raises:
        InputError: with file and line.
    """
    if corpus and corpus_output:
        raise InputError("Both a corpus and a folder for a new one are given. Name one of the two.")
    check_texts = options.pop("check_texts", True)
    if corpus:
        queries = find_records(find_dataset(corpus), "queries")
        if LAYOUTS.get(layout) is Trec and "queries" not in options and queries and not queries_beside(Path(path)):
            options["queries"] = queries[0]
        opened: Any = nullcontext(CorpusPassages(_load(find_dataset(corpus), None, empty_passages), check_texts))
    else:
        opened = new_corpus(corpus_output or Path(output).with_name(f"{Path(output).name.split('.')[0]}_corpus"))
    metadata = {"teacher": teacher or "unknown", "imported_from": Path(path).name, "layout": layout}
    with opened as passages:
        lists = import_lists(path, layout, passages, **options)
        return write_query_lists(output, lists, {**metadata, "corpus": passages.name})


def export_file(
    path: str,
    output: str,
    layout: str,
    corpus: str | None,
    empty_passages: str = EMPTY_PASSAGES,
    **options: Any,
) -> int:
    """Write a file of query lists in another tool's layout; return how many.

    Args:
        path: the file, or one that is shipped.
        output: the file to write.
        layout: a key of ``LAYOUTS``.
        corpus: data set that the lists were made from; None tries the name that the file gives.
        empty_passages: as for :func:`~datamodules.corpus.load_corpus`.
        options: of :func:`datamodules.formats.export_lists` and of the layout.

    Raises:
        InputError: with the list's place in the file.
    """
    file = find_file(path)
    first = next(read_query_lists(file), None)
    if first is None:
        raise InputError(f"{file}: no list in it.")
    _, loaded = _find_corpus(first.corpus, corpus, empty_passages)
    if loaded is None:
        raise InputError(f"{file}: its corpus {first.corpus!r} is not found here. Name its folder with --corpus.")
    return export_lists(read_query_lists(file), output, layout, CorpusPassages(loaded), **options)


def teacher_ndcg(file: Path, folder: Path, corpus: Corpus, split: str | None) -> tuple[str, float, int] | None:
    """nDCG@10 of the teacher's order over its own candidates, with trec_eval's ideal over all judgements.

    Args:
        file: the lists.
        folder: the data set.
        corpus: its corpus.
        split: of its judgements; None tries ``train``.

    Returns:
        The split, the mean over the file's lists whose query is judged (same id and same text), and their number;
        None where there is none and no split was asked for.

    Raises:
        InputError: the split was asked for, and is not there or judges no query of the file.
    """
    chosen = split or "train"
    try:
        judged = load_evaluation_set(str(folder), chosen, corpus=corpus, unknown_qrels="keep")
    except InputError:
        if split:
            raise
        return None
    run = {
        q.query_id: dict(zip(q.passage_ids, q.teacher_scores, strict=False))
        for q in read_query_lists(file)
        if judged.queries.get(q.query_id, "").strip() == q.query.strip()
    }
    if not run:
        if split:
            raise InputError(f"{folder}: the split {split!r} judges no query of {file} (by id and text).")
        return None
    means, _ = score_run({q: judged.qrels[q] for q in run}, without_self_hits(run, judged.qrels))
    return chosen, means["ndcg@10"], len(run)


def draw(summary: ListSummary, path: Path, title: str) -> None:
    """Draw histograms of list length, query length, scores and best scores, by query type, to a PNG file."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    panels = {
        "passages in a list": "lengths",
        "words in a query": "words",
        "raw teacher score, all passages": "scores",
        "raw teacher score, best of each list": "best",
    }
    for axes, (label, name) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
        values = [getattr(t, name) for t in summary.types]
        edges = _edges(np.concatenate(values), whole=name in ("lengths", "words"))
        for part, kind, colour in zip(values, summary.types, _cycle(len(values)), strict=True):
            if not len(part):
                continue
            share = np.histogram(part, edges)[0] / len(part)
            axes.stairs(share, edges, color=colour, linewidth=1.5, label=f"{kind.query_type} ({len(kind.lengths):,})")
            if len(values) == 1:
                axes.stairs(share, edges, color=colour, alpha=0.15, fill=True)
        axes.set_xlabel(label)
        axes.set_ylabel(f"share of {'passages' if name == 'scores' else 'lists'}")
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(f"{title}: {len(summary.total.lengths):,} lists, by query type")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _cycle(count: int) -> list[str]:
    return [_COLOURS[number % len(_COLOURS)] for number in range(count)]


def _edges(values: np.ndarray, whole: bool) -> np.ndarray:
    """Bins for all types: one per whole number where there are few of them, else forty."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if whole:
        step = max(1, int(np.ceil((high - low + 1) / 40)))
        margin = 3 if low == high else 0  # one bar is not drawn as wide as the panel
        return np.arange(low - 0.5 - margin, high + step + margin, step)
    return np.linspace(low, high, 41) if high > low else np.linspace(low - 0.5, low + 0.5, 41)


def _overview(file: Path, summary: ListSummary) -> Table:
    title = printable(f"{file}: {len(summary.total.lengths):,} lists")
    table = Table(title=Text(title), title_justify="left")
    table.add_column("query type", no_wrap=True)
    for heading in (
        "lists",
        "passages\nmin / median / max",
        "query words\nmedian",
        "raw score\nmin / median / max",
        "labelled",
        "positive is\nteacher's first",
        "positive\nin the list",
        "repeated\nqueries",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for kind in summary.types + ([summary.total] if len(summary.types) > 1 else []):
        table.add_row(*_cells(kind))
    return table


def _cells(kind: TypeSummary) -> list[str]:
    def three(values: np.ndarray, form: str) -> str:
        if not len(values):
            return ""
        return " / ".join(format(v, form) for v in (values.min(), np.median(values), values.max()))

    def share(count: int) -> str:
        return f"{count / kind.labelled:.1%}" if kind.labelled else "–"

    return [
        escape(printable(kind.query_type)),
        f"{len(kind.lengths):,}",
        three(kind.lengths, "g"),
        f"{np.median(kind.words):g}",
        three(kind.scores, ".3g"),
        f"{kind.labelled:,}",
        share(kind.positive_first),
        share(kind.positive_listed),
        f"{kind.repeated:,}",
    ]


def _facts(
    file: Path, summary: ListSummary, name: str, folder: Path | None, corpus: Corpus | None, qrels: str | None
) -> dict[str, str]:
    """The corpus, the checks of training, and the teacher against the judgements."""
    facts = {"corpus": ", ".join(f"{c!r} ({n:,} lists)" for c, n in summary.corpora.most_common())}
    if corpus is None or folder is None:
        return facts | {"passages": f"no corpus {name!r} found here; name its folder with --corpus to see texts"}
    agreement = teacher_ndcg(file, folder, corpus, qrels)
    return facts | {
        "passages": f"{len(corpus):,} in {folder}",
        "checks": _check(file, corpus, name),
        "teacher nDCG@10": f"{agreement[1]:.4f} over the {agreement[2]:,} lists judged in qrels/{agreement[0]}.tsv"
        if agreement
        else "no query of this file is judged in qrels/train.tsv; name another split with --qrels",
    }


def _pairs(title: str, values: dict[str, Any]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    for key, value in values.items():
        table.add_row(Text(printable(str(key)), no_wrap=True), Text(printable(str(value))))
    return table


def _check(file: Path, corpus: Corpus, name: str) -> str:
    """What training says of the file."""
    with TemporaryDirectory() as scratch:
        try:
            named = Corpus(name, corpus.ids, corpus.titles, corpus.texts)
            lists, dropped = open_query_lists(file, named, scratch, "drop")
        except InputError as error:
            return f"training refuses this file: {error}"
    if not dropped:
        return f"all {len(lists):,} lists pass those of training"
    return (
        f"{len(lists):,} lists pass those of training; left out: {', '.join(f'{k}: {n:,}' for k, n in dropped.items())}"
    )


def _examples(summary: ListSummary, corpus: Corpus | None) -> Table:
    title = "examples, with the teacher's three best (* is a labelled positive)"
    table = Table(title=title, title_justify="left", expand=True)
    table.add_column("query", ratio=2)
    table.add_column("score", justify="right")
    table.add_column("passage", ratio=3)
    for query_list in summary.examples:
        best = sorted(zip(query_list.teacher_scores, query_list.passage_ids, strict=False), key=lambda pair: -pair[0])[
            :3
        ]
        passages = [_beginning(query_list, passage_id, corpus) for _, passage_id in best]
        table.add_row(
            Text(printable(f"{_short(query_list.query, 160)} [{query_list.query_type}]")),
            "\n".join(f"{score:.4g}" for score, _ in best),
            Text(printable("\n".join(passages)), no_wrap=True, overflow="ellipsis"),
            end_section=True,
        )
    return table


def _beginning(query_list: QueryList, passage_id: str, corpus: Corpus | None) -> str:
    mark = "*" if passage_id in query_list.positive_ids else " "
    if corpus is None:
        return f"{mark}{passage_id}"
    row = int(corpus.rows([passage_id])[0])
    text = _short(corpus.passages[row].as_py(), 120) if row >= 0 else "(not in the corpus)"
    return f"{mark}{passage_id} {text}".rstrip()


def _short(text: str, length: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"


def _load(folder: Path, name: str | None, empty_passages: str) -> Corpus:
    return load_corpus(folder, name=name, empty_passages=empty_passages)


def _find_corpus(name: str, asked: str | None, empty_passages: str) -> tuple[Path | None, Corpus | None]:
    """The corpus asked for (downloaded if need be); else the one that the file names, if it is on this machine."""
    if asked:
        folder = find_dataset(asked)
        return folder, _load(folder, name, empty_passages)
    if not any(is_folder(place / name) for place in (Path(), SHIPPED, Path("data"))):
        return None, None
    try:
        folder = find_dataset(name)
        return folder, _load(folder, None, empty_passages)
    except InputError:  # a folder of that name that holds no corpus
        return None, None


def _parser() -> KindParser:
    parser = KindParser(prog="python -m experiments.prepare", description="Files of query lists.")
    commands = parser.add_subparsers(required=True, metavar="|".join(COMMANDS))
    show = commands.add_parser("inspect", help="print what stands in a file, and draw its histograms")
    show.add_argument("file", help=".parquet or .jsonl file of query lists")
    show.add_argument("--corpus", metavar="FOLDER_OR_NAME", help="default: the name in the file, if it is found here")
    show.add_argument("--qrels", metavar="SPLIT", help="judgements to hold the teacher against (default: train)")
    show.add_argument("--png", metavar="PATH", help="default: FILE.inspect.png")
    show.set_defaults(run=lambda o: inspect_file(o.file, o.corpus, o.qrels, o.png, o.empty_passages))

    read = commands.add_parser("import", help="read another tool's file")
    read.add_argument("file", help="the other tool's file")
    _common(read, "PATH.parquet or PATH.jsonl")
    read.add_argument("--corpus", metavar="FOLDER_OR_NAME", help="that the lists were made from; without it, one is "
                      "written from the texts")  # fmt: skip
    read.add_argument("--corpus-output", metavar="FOLDER", help="of that new corpus (default: beside the output)")
    read.add_argument("--query-type", help="of lists whose line states none (default: human)")
    read.add_argument("--teacher", help="where the scores come from, for the metadata")
    read.add_argument("--ignore-texts", dest="check_texts", action="store_const", const=False,
                      help="where a file gives ids and texts, do not compare the texts with the corpus")  # fmt: skip
    read.add_argument("--queries", metavar="FILE", help="runs: queries.jsonl or queries.tsv (default: "
                      "FILE.queries.jsonl, or the queries in its folder or the corpus')")  # fmt: skip
    read.add_argument("--scores", metavar="stated|labels|ranks", help="flag_embedding, tevatron: labels takes 1 for "
                      "positives and 0 for negatives; runs: ranks takes minus the rank")  # fmt: skip
    read.add_argument("--qrels", metavar="TSV", help="runs: judgements for the positives (default: FILE.qrels.tsv)")
    read.set_defaults(run=_run_import)

    write = commands.add_parser("export", help="write a file for another tool")
    write.add_argument("file", help=".parquet or .jsonl file of query lists")
    _common(write, "PATH")
    write.add_argument("--corpus", metavar="FOLDER_OR_NAME", help="default: the name in the file, if it is found here")
    write.add_argument("--form", help="sentence_transformers: columns (default) or lists")
    write.add_argument("--list-length", type=int, help="sentence_transformers: keep the teacher's best ones only")
    write.set_defaults(run=_run_export)

    cut = commands.add_parser("cut", help="write a data set of fewer passages, the judged ones of its queries kept")
    cut.add_argument("data_set", help="a BEIR-layout folder, a shipped or a BEIR name")
    cut.add_argument("--passages", type=int, required=True, help="how many")
    cut.add_argument("--output", required=True, metavar="FOLDER", help="its name is the new corpus' name")
    cut.add_argument("--split", default="test", help="whose queries are kept as far as they fit (default: test)")
    cut.add_argument("--seed", type=int, default=1)
    cut.set_defaults(run=_run_cut)
    for command in (show, read, write, cut):
        command.add_argument("--empty-passages", default=EMPTY_PASSAGES, metavar="keep|error",
                             help="what to do about passages without title and text (default: keep them)")  # fmt: skip
        command.set_defaults(parser=command)
    return parser


def _common(parser: argparse.ArgumentParser, output: str) -> None:
    parser.add_argument("--layout", required=True, help=", ".join(LAYOUTS))
    parser.add_argument("--output", required=True, metavar=output)
    parser.add_argument("--score-key", help="cadet, tevatron: the passage's key for the score (default: score)")
    parser.add_argument("--on-bad-list", help="error (default), or drop to leave out lists that fail a check")


def _run_import(options: argparse.Namespace) -> None:
    given = _given(options)
    count = import_file(
        given.pop("file"),
        given.pop("output"),
        given.pop("layout"),
        given.pop("corpus", None),
        given.pop("corpus_output", None),
        given.pop("teacher", None),
        **given,
    )
    print(printable(f"{options.output}: {count:,} lists"))


def _run_export(options: argparse.Namespace) -> None:
    given = _given(options)
    count = export_file(given.pop("file"), given.pop("output"), given.pop("layout"), given.pop("corpus", None), **given)
    print(printable(f"{options.output}: {count:,} lists"))


def _run_cut(options: argparse.Namespace) -> None:
    counts = cut_data_set(
        find_dataset(options.data_set),
        Path(options.output),
        options.passages,
        options.split,
        options.seed,
        options.empty_passages,
    )
    print(printable(f"{options.output}: {', '.join(f'{count:,} {what}' for what, count in counts.items())}"))


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """What was typed; what was not is left to the defaults of the functions."""
    return {name: value for name, value in vars(options).items() if value is not None and name not in ("run", "parser")}
