"""What an adaptation does, decided by the corpus, this machine and the time that it may take."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from callbacks.reporting.statistics import too_few
from datamodules.batch_sampler import fitting_batch_size
from datamodules.corpus import Corpus, find_dataset, load_corpus
from experiments.adaptation.estimate import RANGE, Speed, Work
from experiments.adaptation.settings import HELD_OUT, AdaptSettings, Decided
from experiments.adaptation.survey import Survey, groups
from retriever.errors import InputError

_MOST_BATCH, _STEPS, _PASSES = 64, range(20, 101), 3
_LEAST_QUERIES = 200


@dataclass(frozen=True)
class Plan:
    """What is done, and how long it takes.

    Attributes:
        decided: what is done.
        work: in numbers.
        seconds: part → seconds, as measured on this machine.
        cut: what was left out to keep to the time.
        busy: that other programs slowed the measurement down, in words.
    """

    decided: Decided
    work: Work
    seconds: dict[str, float]
    cut: Sequence[str]
    busy: str


def decide(asked: AdaptSettings, found: Survey, corpus: str, speed: Speed) -> Plan:
    """Choose queries, steps and batch size by the number of lists; less of them where time is short.

    A batch has the power of two nearest to the square root of the number of lists, at most 64; a run has as many steps
    as three passes over the lists, from 20 to 100.

    Args:
        asked: the command's settings.
        found: the corpus.
        corpus: as the commands are to name it.
        speed: of the encoder.

    Raises:
        InputError: the least that makes sense takes longer than ``asked.minutes``.
    """
    for plan in _plans(asked, found, corpus, speed):
        if asked.minutes is None or RANGE[1] * sum(plan.seconds.values()) <= 60 * asked.minutes:
            return plan
    least = RANGE[1] * sum(plan.seconds.values()) / 60
    part, most = max(plan.seconds.items(), key=lambda item: item[1])
    raise InputError(
        f"minutes is {asked.minutes:g}; with {plan.work.queries:,} queries and {plan.work.steps} steps, this takes "
        f"up to {least:.1f} ({part}: about {most / 60:.1f}). Give it more time, or fewer queries (queries=…), "
        "steps (steps=…), objectives, seeds or other corpora (elsewhere=[]), a smaller model (encoder=…), or a part of "
        "the corpus: python -m experiments.prepare cut --help."
    )


def _plans(asked: AdaptSettings, found: Survey, corpus: str, speed: Speed) -> Iterator[Plan]:
    """All that was asked for, then less and less."""
    # by name: two corpora of one name cannot be told apart in results
    elsewhere = [name for name in asked.elsewhere if find_dataset(name, asked.data_dir).name != found.folder.name]
    passages = sum(len(_corpus(name, asked)) for name in elsewhere)
    whole = _plan(asked, found, corpus, speed, asked.queries, elsewhere, passages)
    yield whole
    cut = []
    if elsewhere:
        cut = [f"{', '.join(elsewhere)} (what is lost elsewhere)"]
        yield replace(_plan(asked, found, corpus, speed, asked.queries, [], 0), cut=cut)
    queries = min(asked.queries, sum(n for source, n in found.queries.items() if source != "judged")) // 2
    while queries >= _LEAST_QUERIES:
        plan = _plan(asked, found, corpus, speed, queries, [], 0)
        yield replace(plan, cut=[*cut, f"queries from {whole.work.queries:,} to {plan.work.queries:,}"])
        queries //= 2


def _plan(
    asked: AdaptSettings,
    found: Survey,
    corpus: str,
    speed: Speed,
    most: int,
    elsewhere: Sequence[str],
    passages: int,
) -> Plan:
    chosen = groups(found, most)
    queries = sum(options.get("limit", found.queries.get("judged", 0)) for options in chosen.values())
    lists = (1 - HELD_OUT * (1 if found.split else 2)) * queries
    batch = asked.batch_size or min(_MOST_BATCH, fitting_batch_size(round(lists)))
    steps = asked.steps or min(_STEPS[-1], max(_STEPS[0], round(_PASSES * lists / batch) // 4 * 4))
    decided = Decided(corpus, chosen, steps, batch, elsewhere)
    work = Work(
        passages=len(found.corpus),
        elsewhere=passages,
        queries=queries,
        measured=found.test_queries or round(HELD_OUT * queries),
        arms=len(asked.objectives) * len(asked.seeds),
        steps=steps,
        batch=batch,
        validations=-(-steps // decided.every),
    )
    return Plan(decided, work, work.seconds(speed), [], speed.busy)


def _corpus(name: str, asked: AdaptSettings) -> Corpus:
    return load_corpus(find_dataset(name, asked.data_dir), empty_passages="keep", cache_dir=asked.cache_dir)


def lines(plan: Plan, found: Survey, asked: AdaptSettings, model: str, folder: Path) -> dict[str, str]:
    """Subject → what the plan says of it."""
    decided, work = plan.decided, plan.work
    kinds = [
        f"{o['source']} (at most {o['limit']:,})" if "limit" in o else f"{o['source']} ({found.queries['judged']:,})"
        for o in decided.groups.values()
    ]
    measured = (
        f"{found.test_queries:,} human queries ({found.split})"
        if found.split
        else "made-up queries that are kept out of training: there are no human ones (qrels/test.tsv)"
    )
    if found.split and too_few(found.test_queries, len(asked.objectives)):
        measured += ", too few for any difference to be significant"
    low, high = (sum(plan.seconds.values()) * factor / 60 for factor in RANGE)
    digits = 0 if high >= 10 else 1
    parts = ", ".join(f"{name} {seconds / 60:.1f}" for name, seconds in plan.seconds.items())
    said = {
        "corpus": f"{found.folder}: {work.passages:,} passages",
        "queries": f"{', '.join(kinds)}; about a tenth are dev lists, which choose each run's step",
        "teacher": f"BM25{_stemmed(found.stemmer)} and the base model, half and half",
        "model": f"{model}; queries learn, passages keep the base model's embeddings: an index stays as it is",
        "runs": f"{', '.join(asked.objectives)}; seeds {', '.join(map(str, asked.seeds))}; {decided.steps} steps of "
        f"{decided.batch} lists each, {decided.every} from one validation to the next",
        "measured on": measured + (f"; elsewhere: {', '.join(decided.elsewhere)}" if decided.elsewhere else ""),
        "minutes": f"about {low:.{digits}f} to {high:.{digits}f} ({parts})" + (f"; {plan.busy}" if plan.busy else ""),
    }
    if plan.cut:
        said["left out"] = f"{'; '.join(plan.cut)}, to take at most {asked.minutes:g} minutes"
    return said | {"folder": str(folder)}


def _stemmed(stemmer: str | None) -> str:
    """How BM25 reads words, where that is not English."""
    if stemmer == "english":
        return ""
    return (
        f" (words stemmed as {stemmer})" if stemmer else " (words as they are: no one language, or no stemmer for it)"
    )
