"""The protocol of what ranks the passages of evaluation sets, and what it is given to do so."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning as L
import torch

from callbacks.evaluation.metrics import Metrics, Run
from callbacks.evaluation.sets import OpenedSet
from datamodules.corpus import EvaluationSet
from datamodules.prompted import passage_tokens, query_tokens
from datamodules.storage.made_ahead import made_ahead
from retriever.encoder.tokens import TokenizedTexts
from retriever.errors import InputError
from retriever.work import Work

_CPU = torch.device("cpu")
Points = tuple[Literal["base", "last", "best"], ...]


@dataclass(frozen=True)
class Ranking:
    """How and where a ranker works.

    Attributes:
        hits: passages to give for each query (BEIR: 1,000).
        ignore_identical_ids: whether a query's own passage counts as no hit, unless it is judged relevant.
        cache_dir: where token ids, embeddings, samples and scores are kept.
        token_budget: tokens of a micro-batch; None takes the machine's.
        device: where texts are encoded.
        precision: as Lightning calls it; what is kept depends on it.
        autocast: makes the context in which the encoder runs.
        looked_at: how many hits metrics and files look at, which the evaluator fills in; a ranker may give these alone,
            with those that are level with the last one. None: all.
    """

    hits: int = 1000
    ignore_identical_ids: bool = True
    cache_dir: Path = Path("outputs/cache")
    token_budget: int | None = None
    device: torch.device = _CPU
    precision: str = "32-true"
    autocast: Callable[[], AbstractContextManager] = nullcontext
    looked_at: int | None = None

    def on(self, trainer: L.Trainer) -> Ranking:
        """The same on a trainer's device, in its precision."""
        device, autocast = trainer.strategy.root_device, trainer.precision_plugin.forward_context
        return replace(self, device=device, precision=trainer.precision, autocast=autocast)


class Ranker(ABC):
    """Ranks passages for the queries of evaluation sets, by an encoder as it is at some step.

    A ranker of one's own is a subclass with :meth:`rank`, in a file on Python's path; its YAML file is::

        defaults: [_evaluation, _self_]
        ranker: {_target_: my_rankers.Mine}

    It knows of no trainer. Where several processes train, each of them calls every method.

    Attributes:
        points: at which it is asked beside validations: ``base``, before the first step; ``last`` and ``best``, when
            training ends. Without ``base``, step 0 is asked for when its figures are needed first.
        every_validation: whether it is asked at every validation.
        draws_samples: whether it searches a sample of a corpus where ``sample`` asks for it.
        finishes: whether :meth:`finish` has something to do.
        samples: set that it has a sample of → how that is made up; filled by :meth:`prepare`.
        costs: set → what its search took, by subject; filled by :meth:`rank`, where it is known.
    """

    points: ClassVar[Points] = ("base", "last", "best")
    every_validation: bool = True
    draws_samples: ClassVar[bool] = False
    finishes: ClassVar[bool] = False

    def __init__(self) -> None:
        self.samples: dict[str, dict[str, int]] = {}
        self.costs: dict[str, dict[str, float]] = {}

    @property
    def first_step(self) -> int:
        """The step at which it ranks by an encoder as it is: at 0, a re-ranker gives the order that it is given."""
        return 0 if "base" in self.points else 1

    def check(self, module: L.LightningModule) -> None:  # noqa: B027 - most have nothing to refuse
        """Refuse a module that it cannot rank by, with an InputError; take from it what matters."""

    def encode_passages_by(self, encoder: Any) -> None:
        """Take another encoder for the passages than the one that is trained.

        Raises:
            InputError: it ranks by one encoder alone.
        """
        raise InputError(f"{type(self).__name__} ranks by one encoder: leave passage_encoder out.")

    def prepare(self, sets: Sequence[OpenedSet], encoder: Any, how: Ranking) -> list[EvaluationSet]:
        """Do what is done once, with the base model's weights: tokenise, encode, draw samples.

        Returns:
            What to rank: the data of ``sets``, and samples, named ``<set>-sample``, behind those that they are of.
        """
        return [opened.data for opened in sets]

    @abstractmethod
    def rank(
        self, sets: Sequence[EvaluationSet], encoder: Any, step: int, how: Ranking
    ) -> Iterator[tuple[EvaluationSet, Iterable[Run]]]:
        """Rank the passages of some prepared sets.

        Args:
            sets: of those that :meth:`prepare` gave.
            encoder: with the weights of this step.
            step: 0 is what training begins with: the base model or, for a re-ranker, the order that it is given.
            how: device, precision and cache.

        Yields:
            Each set with its run, query id → passage id → score, higher is better, in parts of some queries each, on
            the first rank; other ranks yield no parts. A part is used up before the next one is asked for.
        """

    def finish(  # noqa: B027 - most have nothing to do
        self, encoder: Any, step: int, how: Ranking, metrics: Metrics, folder: Path
    ) -> None:
        """Do what is done once, at the end, with the chosen step's weights; files go to ``folder``."""

    def corpora_to_encode(self, sets: Sequence[OpenedSet]) -> dict[tuple[str, str], Any]:
        """(name, dtype of the embeddings) → corpus, of those that the base model encodes, for an estimate of time."""
        return {}

    def work(self, sets: Sequence[OpenedSet], module: Any) -> dict[str, Work]:
        """What is done at ``base``, each ``validation`` and the ``end``, for an estimate of the time that it takes."""
        return dict.fromkeys(("base", "validation", "end"), Work())


def tokenized(
    sets: Sequence[OpenedSet], encoder: Any, how: Ranking, of_passages: Any = None
) -> Iterator[tuple[OpenedSet, tuple[TokenizedTexts, TokenizedTexts]]]:
    """Give each set with the token ids of its queries and passages; one is tokenised while the one before is used.

    ``of_passages`` is the passages' encoder, where it is another.
    """

    def tokenize(opened: OpenedSet) -> tuple[TokenizedTexts, TokenizedTexts]:
        data, types = opened.data, opened.spec.types or ()
        names = [data.name, *(types if len(types) == 1 else ()), data.corpus.name]
        queries = query_tokens(list(data.queries.values()), encoder, how.cache_dir, names)
        return queries, passage_tokens(data.corpus, of_passages or encoder, how.cache_dir)

    return zip(sets, made_ahead(tokenize, sets), strict=True)
