"""Metrics by name, with trec_eval's own values, per query and as means; and the class of a metric of one's own."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from heapq import nlargest
from typing import Any

from ir_measures import Measure, parse_measure
from ir_measures.providers import registry

from retriever.errors import InputError, shown

DEFAULT_METRICS = ("nDCG@10", "R@100", "RR@10", "AP@100")
# Under which names they have been logged and stored since the first run; every other metric keeps the name it is asked
# for by: R(rel=2)@1000.
LOGGED_AS = {"nDCG@10": "ndcg@10", "R@100": "recall@100", "RR@10": "mrr@10", "AP@100": "map@100"}
ASKED_AS = {logged: measure for measure, logged in LOGGED_AS.items()}
MAIN = "ndcg@10"  # by which runs are compared
Qrels = Mapping[str, Mapping[str, int]]
Run = dict[str, dict[str, float]]
PerQuery = dict[str, dict[str, float]]
_TREC_EVAL = registry["pytrec_eval"]
_COUNTS = ("NumQ", "NumRel", "NumRet")  # have no mean in [0, 1]


class Metric(ABC):
    """A metric of one's own: a subclass in a file on Python's path, named by ``_target_`` in ``evaluation.metrics``.

    Example::

        class FirstGrade(Metric):
            name, depth = "first_grade", 1

            def __call__(self, qrels, run):
                best = {query: max(hits, key=hits.get, default="") for query, hits in run.items()}
                return {query: float(qrels[query].get(best[query], 0) > 0) for query in qrels}

    Attributes:
        name: under which it is logged and stored.
        depth: hits per query that it looks at: it may be given no others, and ``evaluation.hits`` must not be lower.
            None: all that there are.
    """

    name: str
    depth: int | None = None

    @abstractmethod
    def __call__(self, qrels: Qrels, run: Run) -> dict[str, float]:
        """Score some queries.

        Args:
            qrels: query id → passage id → grade.
            run: query id → passage id → score, of every query in ``qrels``, the best ``depth`` hits or more; {} where
                nothing was found.

        Returns:
            Query id → value, for every query in ``qrels``; the data set's figure is the mean.
        """


class Metrics:
    """The metrics of a run.

    Names are those of ir_measures (https://ir-measur.es): ``nDCG@10``, ``R(rel=2)@1000``, ``AP(rel=2)@1000``,
    ``RR@10``, ``P@5``, ``Success@5``. ``rel`` is the lowest grade that counts as relevant. All values are trec_eval's:
    linear gain, the ideal ranking is that of all judgements, equal scores are ordered by descending passage id.

    Args:
        metrics: names, and instances of :class:`Metric`; nDCG@10 is among them.
        hits: hits per query that are kept; None does not check whether they suffice.

    Attributes:
        names: as they are logged, in this order: ``ndcg@10``, ``recall@100``, ``mrr@10``, ``map@100`` for nDCG@10,
            R@100, RR@10 and AP@100, every other under its own name.
        depth: hits of a query, the best, that all of them look at; None: a metric without a cutoff looks at all.

    Raises:
        InputError: a name that ir_measures or trec_eval does not know, one that comes twice, a cutoff beyond ``hits``,
            or nDCG@10 is missing.
    """

    def __init__(self, metrics: Sequence[str | Metric] = DEFAULT_METRICS, hits: int | None = None) -> None:
        self._named: dict[str, Measure] = {}
        self._own: dict[str, Metric] = {}
        names: list[str] = []
        depths: list[int | None] = []
        for metric in metrics:
            if isinstance(metric, Metric):
                name = metric.name
                self._own[name] = metric
                depths.append(metric.depth)
            else:
                measure = _parse(metric)
                name = LOGGED_AS.get(str(measure), str(measure))
                self._named[name] = measure
                # judged_only takes hits out before it cuts
                depths.append(None if measure.params.get("judged_only") else measure.params.get("cutoff"))
            depth = depths[-1] or 1
            if name in names:
                raise InputError(f"evaluation.metrics: {name} is there twice.")
            if hits is not None and depth > hits:
                raise InputError(
                    f"evaluation.hits is {hits}; {name} looks at {depth} hits of a query. Say evaluation.hits={depth}, "
                    f"or leave {metric if isinstance(metric, str) else name} out of evaluation.metrics."
                )
            names.append(name)
        if MAIN not in self._named:
            asked = ", ".join(str(metric if isinstance(metric, str) else metric.name) for metric in metrics)
            raise InputError(f"evaluation.metrics is [{asked}]; nDCG@10 must be among them: runs are compared by it.")
        self.names = tuple(names)
        known = [depth for depth in depths if depth is not None]
        self.depth = max(known) if len(known) == len(depths) else None

    def score(self, qrels: Qrels, run: Run, relevance_level: int = 1) -> PerQuery:
        """Metric → query id → value, for all judged queries; arguments as for :func:`score_run`."""
        complete = {query: run.get(query) or {"": 0.0} for query in qrels}  # "" is no passage's id, so never relevant
        found: PerQuery = {}
        for cutoff, measures in self._passes(relevance_level).items():
            hits = complete
            if cutoff is not None:
                hits = {query: dict(in_trec_order(scores, cutoff)) for query, scores in complete.items()}
            # grades are nDCG's gains at any level, and the provider gives it that of the first measure
            ordered = sorted(measures.items(), key=lambda item: item[0].NAME != "nDCG")
            for value in _TREC_EVAL.evaluator([asked for asked, _ in ordered], qrels).iter_calc(hits):
                found.setdefault(measures[value.measure], {})[value.query_id] = value.value
        for name, metric in self._own.items():
            found[name] = _checked(name, metric(qrels, {query: run.get(query, {}) for query in qrels}), qrels)
        return {name: found[name] for name in self.names}

    def _passes(self, relevance_level: int) -> dict[int | None, dict[Measure, str]]:
        """Cutoff → measure as trec_eval knows it → name. Its reciprocal rank has no cutoff: hits are cut before."""
        passes: dict[int | None, dict[Measure, str]] = defaultdict(dict)
        for name, asked in self._named.items():
            has_own = "rel" not in asked.SUPPORTED_PARAMS or "rel" in asked.params
            measure = asked if has_own or relevance_level == 1 else asked(rel=relevance_level)
            cutoff = measure.params.get("cutoff") if measure.NAME == "RR" else None
            passes[cutoff][_without_cutoff(measure) if cutoff else measure] = name
        return passes


def _checked(name: str, values: Mapping[str, float], qrels: Qrels) -> dict[str, float]:
    """Refuse values of a user's metric that make no mean: of other queries than the judged ones, or not in [0, 1]."""
    if values.keys() != qrels.keys():
        raise InputError(
            f"The metric {name} gives values of {len(values)} queries; {len(qrels)} are judged: give each."
        )
    for query, value in values.items():
        if not 0 <= value <= 1:
            raise InputError(
                f"The metric {name} gives {value} for query {shown(query)}; expected a number from 0 to 1."
            )
    return dict(values)


def _parse(name: Any) -> Measure:
    """A measure that trec_eval computes, by its name; also by that under which it is logged."""
    asked = ASKED_AS.get(name, name)
    try:
        measure = parse_measure(asked)
        measure.validate_params()
        known = _TREC_EVAL.supports(_without_cutoff(measure) if measure.NAME == "RR" else measure)
    except (AssertionError, KeyError, NameError, TypeError, ValueError):
        known = False
    if not known or measure.NAME in _COUNTS or measure.params.get("cutoff") == 0:
        raise InputError(
            f"evaluation.metrics: {shown(str(name))} is no metric that trec_eval computes. Write nDCG@10, R@100, "
            "RR@10, AP@100, P@5 or Success@5; with a relevance level, R(rel=2)@1000."
        )
    return measure


def _without_cutoff(measure: Measure) -> Measure:
    return type(measure)(**{name: value for name, value in measure.params.items() if name != "cutoff"})


def headings(names: Iterable[str]) -> dict[str, str]:
    """The metrics that tables show beside nDCG@10, with their headings: Recall@100, and those that are no default."""
    left_out = {name for metric, name in LOGGED_AS.items() if metric != "R@100"}
    return {name: "Recall@100" if name == "recall@100" else name for name in names if name not in left_out}


def score_run(
    qrels: Qrels, run: Run, metrics: Metrics | None = None, relevance_level: int = 1
) -> tuple[dict[str, float], PerQuery]:
    """Score a run; the figures of the default metrics are those of ``beir``'s EvaluateRetrieval.

    Args:
        qrels: query id → passage id → grade.
        run: query id → passage id → score. A judged query that the run lacks, or that has no hit, counts as 0.
        metrics: None takes the default ones.
        relevance_level: the lowest grade that counts as relevant, in metrics that name none themselves.

    Returns:
        Metric → mean over all judged queries, rounded to five digits as in ``beir``, and metric → query id → value.
    """
    per_query = (metrics or Metrics()).score(qrels, run, relevance_level)
    return mean_scores(per_query), per_query


def mean_scores(per_query: PerQuery) -> dict[str, float]:
    """Metric → mean over queries, rounded to five digits as in ``beir``."""
    return {name: round(sum(values.values()) / len(values), 5) for name, values in per_query.items()}


def in_trec_order(hits: Mapping[str, float], k: int) -> list[tuple[str, float]]:
    """The best ``k`` hits of a query in trec_eval's order: by score, ties by descending id."""
    return nlargest(k, hits.items(), key=lambda item: (item[1], item[0]))


def without_self_hits(run: Run, qrels: Qrels) -> Run:
    """Take each query's own id out of its hits (ArguAna and Quora hold their queries among the passages).

    A passage that is judged relevant stays: its id is equal by chance.
    """
    return {
        query: {p: s for p, s in hits.items() if p != query or qrels.get(query, {}).get(p, 0) > 0}
        for query, hits in run.items()
    }
