"""Files of other tools as runs: rankings, which judgements score, and figures of queries."""

import logging
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from callbacks.evaluation.metrics import MAIN, PerQuery, mean_scores, score_run
from callbacks.reporting.results import RESULTS
from datamodules.corpus import find_file, load_queries, read_qrels
from datamodules.formats.query_figures import figures_in_lines, figures_of
from datamodules.formats.rankings import ranking_of, read_ranking
from datamodules.formats.records import FORMATS, find_records
from datamodules.storage.compressed import split_ending
from datamodules.storage.files import read_json
from experiments.cli.rerun import CONFIG
from experiments.comparison.runs import Run, expanded
from retriever.errors import InputError, shown

log = logging.getLogger(__name__)
_ENDINGS = (".trec", ".run", ".txt", ".res", ".qrels", ".json", *FORMATS)  # what stands behind another dot is a name's
_SEED = re.compile(r"[-_.]?seed[-_=]?(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class FileRun(Run):
    """A run of which there is only a file.

    Attributes:
        per_query: query id → nDCG@10.
        texts: query id → ``query`` and ``relevant`` in words.
        hits: query id → passage id → score; empty where the file holds figures.
        judged: query id → passage id → grade; empty without judgements.
        data_folder: the folder of the judgements, in BEIR's layout; else None.
    """

    per_query: dict[str, float]
    texts: dict[str, dict[str, Any]]
    hits: Mapping[str, Mapping[str, float]]
    judged: dict[str, dict[str, int]]
    data_folder: Path | None

    def values(self, dataset: str, point: str) -> dict[str, float]:
        """Query id → nDCG@10, at any point."""
        return self.per_query

    def queries(self, dataset: str) -> dict[str, dict[str, Any]]:
        """Query id → ``query`` and ``relevant`` in words, as far as the folder of the judgements says."""
        return self.texts


@dataclass(frozen=True)
class NamedFile:
    """A file, and whose run it is.

    Attributes:
        path: the file.
        arm: files of one arm are its seeds.
        seed: in the name, or counted.
        states_seed: whether it stands in the name.
    """

    path: Path
    arm: str
    seed: int
    states_seed: bool


def find_files(paths: Iterable[str | Path]) -> tuple[list[NamedFile], list[Path]]:
    """Tell files of other tools from folders.

    Args:
        paths: files, folders, patterns; ``ARM=`` may stand before files.

    Returns:
        The files, and the folders.

    Raises:
        InputError: nothing is there, an arm is given to a folder, a file to two arms, or a run's own file.
    """
    given: dict[Path, str | None] = {}
    folders: list[Path] = []
    for text in map(str, paths):
        arm, matches = _matches(text)
        if arm and not all(path.is_file() for path in matches):
            raise InputError(f"{text}: a name is for files of other tools; run folders have names of their own.")
        for path in (path for path in matches if path.is_file()):
            if given.setdefault(path, arm) != arm:
                both = " and ".join(shown(name) if name else "without a name" for name in (given[path], arm))
                raise InputError(f"{path}: given twice, as {both}. Give each file once.")
            if _is_of_runs(path):
                raise InputError(f"{path}: a file of a run's or a sweep's own. Name the folder: {path.parent}.")
        folders += [path for path in matches if not path.is_file()]
    names = _names([path for path, arm in given.items() if arm is None], {arm for arm in given.values() if arm})
    arms: dict[str, list[Path]] = {}
    for path, arm in given.items():
        arms.setdefault(arm or names[path], []).append(path)
    return [file for arm, members in arms.items() for file in _with_seeds(arm, members)], folders


def read_files(
    files: Sequence[NamedFile], qrels: str | Path | None, others: Sequence[Run], which: str
) -> list[FileRun]:
    """Read files of other tools, and score those that are rankings.

    A judged query that a file lacks counts 0, as in ir_measures; a query without judgements is left out.

    Args:
        files: as :func:`find_files` gives them.
        qrels: judgements, BEIR's or TREC's; None, where all files hold figures.
        others: run folders of the same comparison, one of whose data sets has the same queries.
        which: of :func:`~experiments.comparison.tables.compare`.

    Raises:
        InputError: with file and line; or the queries fit no data set of the run folders.
    """
    path = None if qrels is None else find_file(str(qrels))
    judged = {} if path is None else {q: {p: g for p, (g, _) in of.items()} for q, of in read_qrels(path).items()}
    dataset, level = "queries" if path is None else _name_of(path), 1
    if others:
        asked = set(judged) if path else set(_score(files[0].path, judged, path, level)[0][MAIN])
        dataset = _fitting(files[0].path, asked, dataset, others, which)
        levels = [run.specs[dataset].relevance_level for run in others if dataset in run.specs]
        level = levels[0] if levels else 1
    folder = None if path is None else _folder_of(path)
    texts = {} if folder is None else _texts(folder)
    runs = []
    for file in files:
        scores, hits = _score(file.path, judged, path, level)
        runs.append(_run(file, dataset, scores, texts=texts, hits=hits, judged=judged, data_folder=folder))
    return runs


def _run(file: NamedFile, dataset: str, scores: PerQuery, **known: Any) -> FileRun:
    means = {metric: {"best": mean, "last": mean} for metric, mean in mean_scores(scores).items()}
    results = {"name": file.arm, "seed": file.seed, "steps": {"best": 0, "last": 0}, "datasets": {dataset: means}}
    return FileRun(
        folder=file.path,
        results=results,
        config={"name": file.arm},
        content={},
        datasets={dataset: dataset},
        specs={},
        trained_on=set(),
        per_query=scores[MAIN],
        states_seed=file.states_seed,
        **known,
    )


def _score(
    path: Path, judged: Mapping[str, Mapping[str, int]], qrels: Path | None, level: int
) -> tuple[PerQuery, Mapping[str, Mapping[str, float]]]:
    """Metric → query id → value, of grades from a level on, and the ranking; of figures, nDCG@10 alone, and none."""
    content = read_json(path, "Write it again.") if split_ending(path)[0] == ".json" else None
    figures = figures_in_lines(path) if content is None else figures_of(path, content)
    if figures is None and qrels is None:
        raise InputError(f"{path}: a ranking (or no file of figures); judgements are needed: --qrels FILE.")
    if figures is not None and qrels is None:
        return {MAIN: figures}, {}
    if figures is not None:
        found: Mapping[str, Any] = {query: value for query, value in figures.items() if query in judged}
        others = len(figures) - len(found)
        scores = {MAIN: {query: found.get(query, 0.0) for query in judged}}
    else:
        found, others = read_ranking(path, judged) if content is None else ranking_of(path, content, judged)
        scores = score_run(judged, found, relevance_level=level)[1]
    if not found:
        raise InputError(
            f"{path}: none of its queries is judged in {qrels}. Are these the judgements of other queries?"
        )
    if len(found) < len(judged):
        log.warning(
            "%s: %d of %d judged queries are not in it, and count 0", path, len(judged) - len(found), len(judged)
        )
    if others:
        log.warning("%s: %d entries of queries without judgements are left out", path, others)
    return scores, {} if figures is not None else found


def _fitting(path: Path, queries: set[str], name: str, others: Sequence[Run], which: str) -> str:
    """The data set of the run folders that has these queries; the one of that name, where several have."""
    sets: dict[str, Run] = {}
    for run in others:
        for dataset in run.datasets:
            sets.setdefault(dataset, run)
    sizes = {dataset: run.values(dataset, which).keys() for dataset, run in sets.items()}
    fitting = [dataset for dataset, ids in sizes.items() if ids == queries]
    if name in fitting or len(fitting) == 1:
        return name if name in fitting else fitting[0]
    if fitting:
        raise InputError(f"{path}: {' and '.join(fitting)} have its queries. Compare with runs of one of these sets.")
    of_each = ", ".join(f"{dataset} {len(ids)} ({len(ids & queries)} the same)" for dataset, ids in sizes.items())
    raise InputError(
        f"{path}: it is compared on {len(queries)} queries, and no data set of the run folders has these: {of_each}. "
        "Give the judgements that the runs were evaluated by (--qrels FILE), or compare the files alone."
    )


def _name_of(qrels: Path) -> str:
    """What a data set is called by its judgements: by its folder, in BEIR's layout; the test split, by that alone."""
    stem = _stem(qrels)
    if qrels.parent.name != "qrels":
        return stem
    folder = qrels.absolute().parent.parent.name
    return folder if stem == "test" else f"{folder}-{stem}"


def _folder_of(qrels: Path) -> Path | None:
    """The data set's folder, where the judgements lie in BEIR's layout."""
    return qrels.absolute().parent.parent if qrels.parent.name == "qrels" else None


def _texts(folder: Path) -> dict[str, dict[str, Any]]:
    """Queries in words, where the folder has them."""
    if not find_records(folder, "queries"):
        return {}
    return {query: {"query": text, "relevant": []} for query, text in load_queries(folder).items()}


def _matches(text: str) -> tuple[str | None, list[Path]]:
    """The arm that is given, and the paths that are meant."""
    try:
        return None, expanded([text])
    except InputError:
        arm, equals, rest = text.partition("=")
        if not equals or not arm or "/" in arm:
            raise
        return arm, expanded([rest])


def _is_of_runs(path: Path) -> bool:
    """Whether a file lies directly in the folder of a run or of a sweep; rankings and figures lie deeper."""
    beside = {RESULTS, CONFIG}
    return (path.parent / "multirun.yaml").is_file() or all((path.parent / name).is_file() for name in beside)


def _names(paths: Sequence[Path], taken: Collection[str]) -> dict[Path, str]:
    """Each file's name without endings and seed; with its folder before it, where several have such a file.

    Files that would share a name, or have a given one, without a seed of their own in it keep theirs whole.
    """
    stems = {path: _SEED.sub("", _stem(path)) or _stem(path) for path in paths}
    names = {}
    for path, stem in stems.items():
        folders = [other.resolve().parent.parts for other, name in stems.items() if name == stem]
        begin, end = _shared(folders), _shared([parts[::-1] for parts in folders])
        inner = path.resolve().parent.parts
        names[path] = "/".join([*inner[begin : len(inner) - end], stem] if len(set(folders)) > 1 else [stem])
    seeds = {path: tuple(_SEED.findall(_stem(path))[-1:]) for path in paths}
    members = Counter(names.values())
    of_one_seed = Counter((name, seeds[path]) for path, name in names.items())
    whole = {
        path: name.removesuffix(stems[path]) + path.name
        for path, name in names.items()
        if name in taken or (members[name] > 1 and not seeds[path]) or of_one_seed[name, seeds[path]] > 1
    }
    return names | whole


def _shared(sequences: Sequence[Sequence[str]]) -> int:
    """With how many equal items they all begin."""
    return len(list(takewhile(lambda items: len(set(items)) == 1, zip(*sequences, strict=False))))


def _stem(path: Path) -> str:
    ending, packed = split_ending(path)
    name = path.name.removesuffix(packed)
    return name.removesuffix(ending) if ending in _ENDINGS else name


def _with_seeds(arm: str, paths: Sequence[Path]) -> list[NamedFile]:
    """An arm's files with their seeds, as their names state them; else counted."""
    stated = [found[-1] for found in (_SEED.findall(str(path)) for path in paths) if found]
    if len(set(stated)) == len(paths):
        return [NamedFile(path, arm, int(seed), True) for path, seed in zip(paths, stated, strict=True)]
    return [NamedFile(path, arm, number, False) for number, path in enumerate(paths, int(len(paths) > 1))]
