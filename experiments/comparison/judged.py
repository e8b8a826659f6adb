"""What is known of a data set's queries beside figures: grades, passages in words, scores of a teacher."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from datamodules.corpus import Corpus, corpus_files, dataset_on_disk, find_file, load_corpus, load_qrels
from datamodules.formats.records import find_records
from datamodules.query_lists.files import list_tables
from datamodules.specs import EvaluationSpec, ListFile, corpus_name, read_list_files
from experiments.comparison.files import FileRun
from experiments.comparison.measured import Measured
from experiments.comparison.runs import Run
from retriever.errors import InputError

log = logging.getLogger(__name__)
_MOST = 100_000_000  # bytes of a corpus that is read where no run has left a memory-mapped copy of it
Grades = dict[str, dict[str, int]]


@dataclass(frozen=True)
class Judged:
    """A data set, as far as its files are still there.

    Attributes:
        grades: query id → passage id → grade; empty where the judgements are gone.
        level: the lowest grade that counts as relevant.
        corpus: the passages; None where they are not there.
        missing: why there are no passages, a sentence, or empty.
        scores: query id → passage id → the teacher's score, of queries that lists of the runs name.
    """

    grades: Grades
    level: int
    corpus: Corpus | None
    missing: str
    scores: dict[str, dict[str, float]]

    def words(self, passage_ids: list[str], characters: int) -> list[list[str]]:
        """Title and first words of each passage; empty lists for those that the corpus does not have."""
        if self.corpus is None:
            return []
        rows = self.corpus.rows(passage_ids)
        known = pa.array(rows[rows >= 0])
        titles = self.corpus.titles.take(known).to_pylist()
        texts = pc.utf8_slice_codeunits(self.corpus.texts.take(known), 0, characters + 1).to_pylist()
        found = iter(zip(titles, texts, strict=True))
        return [[_cut(part, characters) for part in next(found)] if row >= 0 else [] for row in rows.tolist()]


def read_judged(part: Measured) -> Judged:
    """Read what the first run whose files are there knows of a data set; nothing is downloaded."""
    found = Judged({}, 1, None, "The corpus was not found, so passages are shown by their ids alone.", {})
    runs = [run for members in part.runs.values() for run in members]
    for run in sorted(runs, key=lambda run: isinstance(run, FileRun)):  # run folders know more
        try:
            here = _of_file(run) if isinstance(run, FileRun) else _of_run(run, part)
        except (InputError, OSError) as error:
            log.warning("%s: passages are not shown in words: %s", part.dataset, error)
            continue
        if here is not None and here.corpus is not None:
            return here
        found = here if here is not None and here.grades else found
    return found


def _of_run(run: Run, part: Measured) -> Judged | None:
    spec = run.specs.get(part.dataset)
    folder = dataset_on_disk(spec.path, run.config.get("data_dir") or "data") if spec else None
    if spec is None or folder is None:
        return None
    grades: Grades = {}
    if spec.lists is None:
        judged = load_qrels(folder, spec.split or "test")[1]
        grades = {query: {p: grade for p, (grade, _) in judged.get(query, {}).items()} for query in part.query_ids}
    lists = {query: (positives, scores) for query, positives, scores in _lists(run, spec, part)}
    if spec.lists is not None:
        grades = {query: dict.fromkeys(positives, 1) for query, (positives, _) in lists.items()}
    corpus, missing = _corpus(folder, run.config.get("cache_dir"))
    return Judged(grades, spec.relevance_level, corpus, missing, {query: of for query, (_, of) in lists.items()})


def _of_file(run: FileRun) -> Judged | None:
    if not run.judged:
        return None
    folder = run.data_folder
    if folder is None or not find_records(folder, "corpus"):
        missing = "No corpus lies beside the judgements, so passages are shown by their ids alone."
        return Judged(run.judged, 1, None, missing, {})
    return Judged(run.judged, 1, *_corpus(folder, None), {})


def _corpus(folder: Path, cache_dir: Any) -> tuple[Corpus | None, str]:
    """The passages, where that takes no more than seconds, and why not."""
    cache = Path(cache_dir) if isinstance(cache_dir, str) and (Path(cache_dir) / "corpora").is_dir() else None
    if cache is None and sum(path.stat().st_size for path in corpus_files(folder)) > _MOST:
        return None, "The corpus is large, and no run's cache of it is here: passages are shown by their ids alone."
    return load_corpus(folder, empty_passages="keep", cache_dir=cache, warn=False), ""


def _lists(run: Run, spec: EvaluationSpec, part: Measured) -> Iterable[tuple[str, list[str], dict[str, float]]]:
    """Query id, positives, and passage id → teacher's score, of the run's lists that name a query of the set.

    Training lists are left out: they are many, and none of them is of a query that is evaluated.
    """
    data: Mapping[str, Any] = run.config.get("data") or {}
    corpus = corpus_name(spec.path)
    paths = [
        file.path
        for file in read_list_files(ListFile, data.get("dev") or (), "data.dev")
        if corpus_name(file.corpus) == corpus
    ]
    for path in dict.fromkeys(([spec.lists] if spec.lists else []) + paths):
        try:
            yield from _named(find_file(path), part)
        except InputError as error:
            log.warning("%s: scores of the teacher are not shown: %s", part.dataset, error)


def _named(path: Path, part: Measured) -> Iterable[tuple[str, list[str], dict[str, float]]]:
    asked = set(part.query_ids)
    for table, _ in list_tables(path):
        rows = [n for n, query in enumerate(table["query_id"].to_pylist()) if query in asked]
        for row in table.take(rows).to_pylist() if rows else ():
            if row["query"] == part.texts.get(row["query_id"], {}).get("query"):  # no other query of that id
                scores = zip(row["passage_ids"], row["teacher_scores"], strict=False)
                yield row["query_id"], row["positive_ids"], dict(scores)


def _cut(text: str | None, characters: int) -> str:
    text = " ".join((text or "").split())
    return text if len(text) <= characters else text[:characters].rstrip() + "…"
