"""Evaluator: evaluation sets, ranked by an encoder and scored, with or without a training run around it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from callbacks.evaluation.block_search import score_runs
from callbacks.evaluation.history import Figures, History
from callbacks.evaluation.metrics import mean_scores
from callbacks.evaluation.ranker import Ranker, Ranking
from datamodules.corpus import EvaluationSet
from retriever.distributed.ranks import broadcast


class Evaluator:
    """Ranks and scores evaluation sets, keeps the figures and writes the files of each step.

    Works without a trainer::

        history = History(folder, Metrics(["nDCG@10", "R(rel=2)@1000"]))
        history.sets = open_sets(read_evaluation_specs([{"path": "scifact"}]), Reading())
        evaluator = Evaluator(DenseRanker(), history, Ranking(device=torch.device("cuda")))
        evaluator.prepare(encoder)
        figures = evaluator.evaluate(encoder)

    Args:
        ranker: what orders the passages.
        history: whose sets are open; figures are added to it.
        how: device, precision and cache.

    Attributes:
        sets: what is ranked, samples included; empty before :meth:`prepare`.
    """

    def __init__(self, ranker: Ranker, history: History, how: Ranking) -> None:
        self.ranker = ranker
        self.history = history
        depth = history.metrics.depth
        self.how = replace(how, looked_at=None if depth is None else max(depth, history.run_hits))
        self.sets: list[EvaluationSet] = []
        self._scored: set[str] = set()

    def prepare(self, encoder: Any) -> None:
        """Tokenise, encode and draw samples, with the base model's weights."""
        self.sets = self.ranker.prepare(self.history.sets, encoder, self.how)
        self.history.samples = self.ranker.samples

    def unknown(self, step: int) -> list[EvaluationSet]:
        """Sets that have not been evaluated at this step."""
        known = self.history.steps.get(step, {})
        return [data for data in self.sets if data.name not in known]

    def evaluate(self, encoder: Any, step: int = 0, sets: Sequence[EvaluationSet] | None = None) -> Figures:
        """Evaluate an encoder as it is now; every rank must take part.

        Args:
            encoder: with the weights of this step.
            step: 0 is the model before training.
            sets: of those that are prepared; None takes all.

        Returns:
            Data set → metric → value, in [0, 1]; the history has it, too.
        """
        sets = self.sets if sets is None else sets
        if not self.history.base and step and "base" not in self.ranker.points:
            self.history.base = self._figures(encoder, 0, sets)
        figures = self._figures(encoder, step, sets)
        self.history.base = self.history.base or figures
        self.history.add(step, figures)
        return figures

    def finish(self, encoder: Any, step: int) -> None:
        """Have the ranker do what it does at the end, by the weights of the chosen step."""
        self.ranker.finish(encoder, step, self.how, self.history.metrics, self.history.folder)

    def _figures(self, encoder: Any, step: int, sets: Sequence[EvaluationSet]) -> Figures:
        found = {}
        for data, runs in self.ranker.rank(sets, encoder, step, self.how):
            with self.history.files(data.name, step) as (keep_run, keep_values):
                own = self.how.ignore_identical_ids
                per_query = score_runs(
                    data,
                    runs,
                    self.history.metrics,
                    ignore_identical_ids=own,
                    keep_run=keep_run,
                    says_left_out=data.name not in self._scored,
                )
                self._scored.add(data.name)
                keep_values(per_query)
            found[data.name] = broadcast(mean_scores(per_query))
        return {data.name: found[data.name] for data in sets}
