"""The history of a run's evaluation: figures by step, and their files. This is what recorders are handed."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from callbacks.evaluation.block_search import trec_file
from callbacks.evaluation.metrics import MAIN, Metrics, PerQuery, Run
from callbacks.evaluation.per_query import read_per_query
from callbacks.evaluation.sets import OpenedSet
from datamodules.storage.files import write_json
from retriever.distributed.ranks import rank

log = logging.getLogger(__name__)
Figures = dict[str, dict[str, float]]


class History:
    """Data set → metric → value, of every step that was evaluated.

    Args:
        folder: the run folder; ``per_query/<set>/step-NNNNNN.json`` and ``trec_runs/<set>/step-NNNNNN.trec`` are
            written there.
        metrics: of the run.
        run_hits: hits per query in the TREC run files.

    Attributes:
        sets: what is evaluated, with the specification of each; empty until they are opened.
        base: figures of the model before training, or of the ranking that a re-ranker begins with.
        steps: step → figures.
        samples: set whose validations search a sample of its corpus → how the sample is made up.
    """

    def __init__(self, folder: str | Path, metrics: Metrics, run_hits: int = 100) -> None:
        self.folder = Path(folder)
        self.metrics = metrics
        self.run_hits = run_hits
        self.sets: Sequence[OpenedSet] = ()
        self.base: Figures = {}
        self.steps: dict[int, Figures] = {}
        self.samples: Mapping[str, Mapping[str, int]] = {}

    def add(self, step: int, figures: Figures) -> None:
        """Remember what was found at a step, beside what is known of it."""
        self.steps = dict(sorted((self.steps | {step: self.steps.get(step, {}) | figures}).items()))
        for name, values in figures.items():
            log.info("step %d: %s nDCG@10 %.4f (%+.4f)", step, name, values[MAIN], values[MAIN] - self.base[name][MAIN])
        for name in self.samples:
            if {name, f"{name}-sample"} <= self.steps[step].keys():
                error = self.steps[step][f"{name}-sample"][MAIN] - self.steps[step][name][MAIN]
                log.info("step %d: %s nDCG@10 on the sample is off by %+.4f", step, name, error)

    def to_log(self, figures: Figures) -> dict[str, float]:
        """The figures under the names that they are logged by; with each nDCG@10 its base and the difference."""
        flat: dict[str, float] = {}
        for name, values in figures.items():
            base = self.base[name][MAIN]
            flat |= {f"val/{name}/{metric}": values[metric] for metric in self.metrics.names}
            flat |= {f"val/{name}/{MAIN}_base": base, f"val/{name}/{MAIN}_delta": values[MAIN] - base}
        return flat

    @contextmanager
    def files(self, name: str, step: int) -> Iterator[tuple[Callable[[Run], None], Callable[[PerQuery], None]]]:
        """Write the files of a set at a step: give a function that takes a part of the run, and one for the values.

        On other ranks than the first one they keep nothing.
        """
        if rank() != 0:
            yield lambda run: None, lambda values: None
            return
        path = self.folder / "trec_runs" / name / f"step-{step:06d}.trec"
        with trec_file(path, f"step-{step}", self.run_hits) as keep_run:
            yield keep_run, lambda values: write_json(self._per_query_file(name, step), values)

    def per_query(self, name: str, step: int) -> dict[str, float]:
        """Query id → nDCG@10 of a set at a step."""
        return read_per_query(self._per_query_file(name, step))

    def sample_report(self, steps: Mapping[str, int]) -> dict[str, Any]:
        """Data set → how its sample is made up, and metric → point → figures on the whole corpus and on the sample.

        Args:
            steps: point (``base``, …) → its step; evaluated on both.
        """
        report: dict[str, Any] = {}
        for name, facts in self.samples.items():
            report[name] = {**facts, "figures": {metric: {} for metric in self.metrics.names}}
            for metric, figures in report[name]["figures"].items():
                for point, step in steps.items():
                    whole, sample = (self.steps[step][key][metric] for key in (name, f"{name}-sample"))
                    figures[point] = {"whole": whole, "sample": sample, "error": round(sample - whole, 5)}
        return report

    def state_dict(self) -> dict[str, Any]:
        """The base model's figures and those of all steps, so that a resumed run keeps them."""
        return {"base": self.base, "history": [{"step": s, "metrics": figures} for s, figures in self.steps.items()]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a resumed run's figures."""
        self.base = state_dict["base"]
        self.steps = {entry["step"]: entry["metrics"] for entry in state_dict["history"]}

    def _per_query_file(self, name: str, step: int) -> Path:
        return self.folder / "per_query" / name / f"step-{step:06d}.json"
