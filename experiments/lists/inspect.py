"""Print what is in a file of query lists, and how its teacher agrees with the judgements."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from callbacks.evaluation.metrics import score_run, without_self_hits
from datamodules.corpus import Corpus, find_file, load_evaluation_set
from datamodules.list_summary import ListSummary, TypeSummary, summarise
from datamodules.query_lists import QueryList, open_query_lists, read_metadata, read_query_lists
from experiments.cli.console import wide_console
from experiments.lists.corpora import find_corpus
from experiments.lists.histograms import draw
from retriever.errors import InputError
from retriever.printable import printable


def inspect_file(
    path: str, corpus: str | None = None, qrels: str | None = None, png: str | None = None, *, empty_passages: str
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
    folder, loaded = find_corpus(name, corpus, empty_passages)
    console = wide_console(highlight=False)
    console.print(_overview(file, summary))
    console.print(_pairs("corpus, checks and judgements", _facts(file, summary, name, folder, loaded, qrels)))
    console.print(_pairs("metadata", read_metadata(file)))
    console.print(_examples(summary, loaded))
    # a shipped file is named by its short path; no picture is put into the package
    picture = Path(png or (f"{path}.inspect.png" if Path(path).is_file() else f"{file.name}.inspect.png"))
    draw(summary, picture, file.name)
    console.print(printable(f"histograms: {picture}"), soft_wrap=True, markup=False)


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


def _overview(file: Path, summary: ListSummary) -> Table:
    title = printable(f"{file}: {len(summary.total.lengths):,} lists")
    rows = [_cells(kind) for kind in summary.types + ([summary.total] if len(summary.types) > 1 else [])]
    first, *others = rows[0]
    columns = (Column(heading, justify="right", no_wrap=True) for heading in others)
    table = Table(Column(first, no_wrap=True), *columns, title=Text(title), title_justify="left")
    for row in rows:
        table.add_row(*row.values())
    return table


def _cells(kind: TypeSummary) -> dict[str, str]:
    def three(values: np.ndarray, form: str) -> str:
        found = (values.min(), np.median(values), values.max()) if len(values) else ()
        return " / ".join(format(value, form) for value in found)

    def share(count: int) -> str:
        return f"{count / kind.labelled:.1%}" if kind.labelled else "–"

    return {
        "query type": escape(printable(kind.query_type)),
        "lists": f"{len(kind.lengths):,}",
        "passages\nmin / median / max": three(kind.lengths, "g"),
        "query words\nmedian": f"{np.median(kind.words):g}",
        "raw score\nmin / median / max": three(kind.scores, ".3g"),
        "labelled": f"{kind.labelled:,}",
        "positive is\nteacher's first": share(kind.positive_first),
        "positive\nin the list": share(kind.positive_listed),
        "repeated\nqueries": f"{kind.repeated:,}",
    }


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
    left_out = ", ".join(f"{reason}: {number:,}" for reason, number in dropped.items())
    return f"{len(lists):,} lists pass those of training; left out: {left_out}"


def _examples(summary: ListSummary, corpus: Corpus | None) -> Table:
    title = "examples, with the teacher's three best (* is a labelled positive)"
    columns = Column("query", ratio=2), Column("score", justify="right"), Column("passage", ratio=3)
    table = Table(*columns, title=title, title_justify="left", expand=True)
    for query_list in summary.examples:
        scored = zip(query_list.teacher_scores, query_list.passage_ids, strict=False)
        best = sorted(scored, key=lambda pair: -pair[0])[:3]
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
