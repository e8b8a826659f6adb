"""Run folders: finding them and reading them."""

import glob
import logging
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from callbacks.evaluation.per_query import read_per_query
from callbacks.reporting.metric_tables import earlier_tables, metric_rows
from callbacks.reporting.results import RESULTS, read_results
from datamodules.specs import EvaluationSpec, TrainFile, corpus_name, read_evaluation_specs, read_list_files
from datamodules.storage.files import read_json
from datamodules.storage.yaml_files import read_yaml
from experiments.cli.rerun import CONFIG, FOLLOWS
from experiments.cli.sweep import ERROR_FILE
from experiments.cli.yaml_in_c import safe_loader
from experiments.settings.older_runs import as_now
from experiments.settings.two_encoders import is_embedding_regression
from retriever.errors import InputError, shown

log = logging.getLogger(__name__)
COSTS = ("wall_time_s", "peak_memory_bytes", "passages_encoded", "tokens_encoded")
OTHER_COMMANDS = ("bench", "prepare")
_AGAIN = "Run that experiment again, or leave it out."


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: the run folder.
        results: of ``results.json``.
        config: of ``config.yaml``.
        content: what the configuration names, by content: ``inputs: FILE`` and ``weights`` → hash, as far as
            ``environment.json`` says; two runs of one configuration on changed files are no seeds of one arm.
        datasets: data set, as the comparison calls it → as the run does; other runs may use that name for a set over
            another corpus.
        specs: data set, as the comparison calls it → what the configuration says of it.
        trained_on: names of the corpora that the run was trained on.
        follows: settings that follow others → the expression, as ``follows.yaml`` says.
        states_seed: whether runs of one seed belong together; not where seeds were only counted.
    """

    folder: Path
    results: dict[str, Any]
    config: dict[str, Any]
    content: dict[str, str]
    datasets: dict[str, str]
    specs: dict[str, EvaluationSpec]
    trained_on: set[str]
    follows: dict[str, str] = field(default_factory=dict, kw_only=True)
    states_seed: bool = field(default=True, kw_only=True)

    @property
    def name(self) -> str:
        """The arm's name as it was given, without what a sweep has put behind it."""
        name = self.config.get("name")
        return name if isinstance(name, str) else self.results["name"]

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.results["seed"]

    @property
    def is_trained(self) -> bool:
        """Whether it is a training run, with a base model; not where ``experiments.evaluate`` evaluated a model."""
        return "base" in self.results["steps"]

    def mean(self, dataset: str, metric: str, point: str) -> float:
        """A metric's mean over the queries at a point (``base``, ``best``, ``last``)."""
        path, own = self.folder / RESULTS, self.datasets[dataset]
        value = self.results["datasets"][own].get(metric, {}).get(point)
        _require(path, f"datasets.{own}.{metric}.{point}", value, float)
        return value

    def metrics(self, dataset: str) -> list[str]:
        """The metrics that the run has of a data set."""
        return list(self.results["datasets"][self.datasets[dataset]])

    def values(self, dataset: str, point: str) -> dict[str, float]:
        """Query id → nDCG@10 at a point."""
        step = self.results["steps"].get(point)
        _require(self.folder / RESULTS, f"steps.{point}", step, int)
        path = self.folder / "per_query" / self.datasets[dataset] / f"step-{step:06d}.json"
        if not path.is_file():
            raise InputError(
                f"{path}: missing, though {self.folder / RESULTS} refers to it. Run that experiment again."
            )
        return read_per_query(path)

    def overlap(self, dataset: str) -> dict[str, str] | None:
        """Query id → why training came close to it; None where the run did not write it down."""
        return _optional(self.folder / "overlap" / f"{self.datasets[dataset]}.json", str)

    def queries(self, dataset: str) -> dict[str, dict[str, Any]]:
        """Query id → ``query`` and ``relevant`` in words; empty where the run did not write them down."""
        path = self.folder / "queries" / f"{self.datasets[dataset]}.json"
        found = _optional(path, dict) or {}
        for query, words in found.items():
            _require(path, f"{query}.query", words.get("query"), str)
            _require(path, f"{query}.relevant", words.get("relevant"), list)
            for title in words["relevant"]:
                _require(path, f"{query}.relevant", title, str)
        return found

    def ranking(self, dataset: str, point: str) -> Path:
        """The file of the ranking at a point; it may be gone."""
        return self.folder / "trec_runs" / self.datasets[dataset] / f"step-{self.results['steps'][point]:06d}.trec"

    def curve(self, dataset: str) -> dict[int, float]:
        """Step → nDCG@10."""
        column = f"val/{self.datasets[dataset]}/ndcg@10"
        return self.logged((column,)).get(column, {})

    def logged(self, prefixes: tuple[str, ...] = ("dev/", "val/")) -> dict[str, dict[int, float]]:
        """Figure of a validation → step → value, over all parts of a run that was cut off and went on."""
        found: dict[str, dict[int, float]] = {}
        for path in [*earlier_tables(self.folder), self.folder / "metrics.csv"]:
            for step, row in metric_rows(path, prefixes) if path.is_file() else ():
                for column, value in row.items():
                    found.setdefault(column, {})[step] = value
        return {column: dict(sorted(values.items())) for column, values in found.items()}

    def is_home(self, dataset: str) -> bool:
        """Whether the data set's corpus is one that the run was trained on."""
        return dataset in self.specs and corpus_name(self.specs[dataset].path) in self.trained_on

    def is_aside(self, dataset: str) -> bool:
        """Whether a data set stands for itself alone: dev queries, and query lists that were held out."""
        spec = self.specs.get(dataset)
        return spec is not None and (spec.chooses or spec.lists is not None)

    def part_of(self, dataset: str) -> str:
        """The set as whose part it counts in averages; most count as themselves."""
        spec = self.specs.get(dataset)
        return (spec.part_of if spec else None) or dataset

    def encoder(self) -> dict[str, Any]:
        """How the configuration describes the model, and whose embeddings it was projected to."""
        described = dict(self.config.get("encoder") or {"model": self.results.get("encoder")})
        others = {"passage_encoder": self.config.get("passage_encoder")}
        if is_embedding_regression(self.config.get("module")):
            others["guide"] = self.config["data"].get("guide")
        return described | {name: other for name, other in others.items() if other}


def find_runs(paths: Iterable[str | Path]) -> tuple[dict[Path, dict[str, Any]], list[Path]]:
    """Runs: those named, found below the folders named, or matching a pattern.

    Returns:
        Folder → content of ``results.json`` of the finished ones; folders of those that failed, were cut off, or are
        under way (without whole results), and of damaged ones (results without a configuration).

    Raises:
        InputError: a path without any run, or no finished run in all.
    """
    runs: dict[Path, dict[str, Any]] = {}
    unfinished: list[Path] = []
    for path in expanded(paths):
        found, cut = _runs_below(path)
        if not found and not cut:
            raise InputError(
                f"{path}: no results.json in or below it. Name folders of finished runs, or a sweep's; or files."
            )
        unfinished += [run for run in cut if run not in unfinished]
        runs |= found
    if not runs:
        raise InputError(
            f"There is no whole results.json: none of {len(unfinished)} run(s) is finished. {unfinished[0]}: "
            f"{reason(unfinished[0]).rstrip('.')}. See the runs' logs."
        )
    return runs, unfinished


def _runs_below(path: Path) -> tuple[dict[Path, dict[str, Any]], list[Path]]:
    """Finished and unfinished runs of one folder."""
    results = {folder: read_results(folder) for folder in sorted(p.parent for p in path.rglob(RESULTS))}
    # .hydra/config.yaml is there before the run's own; a W&B folder inside of a run holds a config.yaml, too
    configs = (p.parent for p in path.rglob(CONFIG))
    configured = {p.parent if p.name == ".hydra" else p for p in configs if _is_of_run(p)}
    outermost: list[Path] = []
    for candidate in sorted(configured | results.keys()):
        if not any(run in candidate.parents for run in outermost):
            outermost.append(candidate)
    cut = [run for run in outermost if results.get(run) is None or not (run / CONFIG).is_file()]
    for folder, content in results.items():
        if content is None and folder not in cut:
            raise InputError(f"{folder}: {reason(folder)}. {_AGAIN}")
    return {folder: content for folder, content in results.items() if content and folder not in cut}, cut


def reason(folder: Path) -> str:
    """Why an unfinished run has no results, in one line, as far as its folder says."""
    if (folder / RESULTS).is_file():
        damaged = read_results(folder) is not None  # and no configuration
        what = "without config.yaml: the folder is damaged" if damaged else "is not a whole results file"
        return f"{RESULTS} {what}"
    path = folder / ERROR_FILE
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines() if path.is_file() else []
    return lines[0] if lines else "no results.json: it failed, was cut off, or is under way"


def _is_of_run(folder: Path) -> bool:
    """Whether a configuration may be a run's: the other commands keep theirs in ``.hydra``, too."""
    try:
        text = (folder / "hydra.yaml").read_text(encoding="utf-8")
        hydra = safe_loader(text)(text).get_single_data()
        return hydra["hydra"]["job"]["name"] not in OTHER_COMMANDS
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, RecursionError):  # none, or damaged
        return True


def read_runs(finished: Mapping[Path, dict[str, Any]]) -> list[Run]:
    """Check and read finished runs, given as :func:`find_runs` does.

    Data sets of one name over several corpora get the corpus's name beside their own.

    Raises:
        InputError: results or a configuration hold what they cannot.
    """
    read = []
    corpora: dict[str, set[str]] = {}
    for folder, results in finished.items():
        _check(folder / RESULTS, results)
        config, specs, trained_on = _read_config(folder / CONFIG)
        specs = {name: specs[name] for name in results["datasets"] if name in specs}
        read.append((folder, results, config, specs, trained_on))
        for name, spec in specs.items():
            corpora.setdefault(name, set()).add(corpus_name(spec.path))
    runs = []
    for folder, results, config, specs, trained_on in read:
        names = {n: f"{n} ({corpus_name(s.path)})" if len(corpora[n]) > 1 else n for n, s in specs.items()}
        datasets = {names.get(name, name): name for name in results["datasets"]}
        specs = {names[name]: spec for name, spec in specs.items()}
        follows = read_yaml(folder / FOLLOWS, _AGAIN) if (folder / FOLLOWS).is_file() else {}
        content = _content(folder, config)
        runs.append(Run(folder, results, config, content, datasets, specs, trained_on, follows=follows))
    return runs


def _content(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Hashes of what a run read; of weights, only where the seed has drawn none of them."""
    path = folder / "environment.json"
    if not path.is_file():
        return {}
    facts = read_json(path, _AGAIN)
    inputs = facts.get("inputs") or {}
    _require(path, "inputs", inputs, dict)
    found = {f"inputs: {name}": str(digest)[:8] for name, digest in inputs.items()}
    encoder = config.get("encoder") or {}
    drawn = encoder.get("lora") is not None or "CrossEncoder" in str(encoder.get("_target_"))
    if facts.get("weights") is not None and not drawn:
        found["weights"] = str(facts["weights"])[:8]
    return found


def expanded(paths: Iterable[str | Path]) -> list[Path]:
    """The paths, patterns among them replaced by what they match.

    Raises:
        InputError: nothing is there.
    """
    found: list[Path] = []
    for path in map(str, paths):
        matches = [path] if Path(path).exists() else sorted(glob.glob(path, recursive=True))
        if not matches:
            raise InputError(f"{path}: no such folder or file. Name folders of runs, a sweep's, or files of rankings.")
        found += [Path(match) for match in matches]
    return found


def _optional(path: Path, kind: type) -> dict[str, Any] | None:
    """What a file beside the results says of each query; None where there is no file."""
    if not path.is_file():
        return None
    found = read_json(path, _AGAIN)
    for query, value in found.items():
        _require(path, query, value, kind)
    return found


def _check(path: Path, results: dict[str, Any]) -> None:
    for key, kind in {"name": str, "seed": int, "steps": dict, "datasets": dict}.items():
        _require(path, key, results.get(key), kind)
    if not results["datasets"]:
        raise InputError(f"{path}: the run was evaluated on no data set, so there is nothing to compare. {_AGAIN}")
    for point in ("base", "best", "last"):
        if point in results["steps"]:
            _require(path, f"steps.{point}", results["steps"][point], int)
    for dataset, metrics in results["datasets"].items():
        _require(path, f"datasets.{dataset}", metrics, dict)
        for metric, points in metrics.items():
            _require(path, f"datasets.{dataset}.{metric}", points, dict)
            for point, value in points.items():
                _require(path, f"datasets.{dataset}.{metric}.{point}", value, float)
    for key in COSTS:
        if results.get(key) is not None:
            _require(path, key, results[key], float)


def _require(path: Path, key: str, value: Any, kind: type) -> None:
    """Refuse a value of another kind; a whole number is a ``float``, and what is not finite is none."""
    kinds = (int, float) if kind is float else (kind,)
    good = isinstance(value, kinds) and not isinstance(value, bool)
    if not good or (kind is float and not abs(value) <= sys.float_info.max):
        raise InputError(f"{path}: {shown(key)} is {shown(value)}; expected a JSON {kind.__name__}. {_AGAIN}")


def _read_config(path: Path) -> tuple[dict[str, Any], dict[str, EvaluationSpec], set[str]]:
    """A run's configuration, as it is written now; data set → what it says of it; corpora that were trained on."""
    config = read_yaml(path, _AGAIN)
    sections = {place: {} if config.get(place) is None else config[place] for place in ("data", "evaluation")}
    for place, section in sections.items():
        _require(path, place, section, dict)
    try:
        trained = read_list_files(TrainFile, sections["data"].get("train") or (), "data.train")
        specs = read_evaluation_specs(sections["evaluation"].get("datasets") or ())
    except InputError as error:
        raise InputError(f"{path}: {error} {_AGAIN}") from None
    specs_by_name = {spec.shown_name: spec for spec in specs}
    return as_now(config), specs_by_name, {corpus_name(spec.corpus) for spec in trained}
