"""What every teacher does: score pairs of a query and a passage, and say what decides its scores."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike

from retriever.errors import InputError


@dataclass(frozen=True)
class PairScores:
    """Scores of n pairs.

    Attributes:
        scores: float32 [n], raw, finite, higher is better.
        truncated: bool [n], where the passage was cut (never the template).
    """

    scores: np.ndarray
    truncated: np.ndarray


@dataclass(frozen=True)
class RetrievedPassages(Sequence[str]):
    """The texts of n passages, with the scores that retrievers gave them for their queries.

    Attributes:
        texts: n texts.
        retrieval: retriever → float64 [n] in [0, 1]: its score, min-max scaled over its hits for the query; 0 where
            the passage is none of its hits.
    """

    texts: Sequence[str]
    retrieval: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.texts)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[str]: ...
    def __getitem__(self, place: int | slice) -> str | Sequence[str]:
        return self.texts[place]


class Teacher(ABC):
    """Scores pairs of a query and a passage. A subclass defines :meth:`score` and :meth:`description`.

    Models that read tokens derive from :class:`~retriever.teachers.model_teacher.ModelTeacher`. A teacher that calls a
    web API of another protocol than :class:`~retriever.teachers.web_api.WebApi` needs no more than this::

        class Api(Teacher):
            def __init__(self, url: str, model: str) -> None:
                self.url, self.model = url, model

            def score(self, queries, passages):
                pairs = {"model": self.model, "pairs": list(zip(queries, passages))}
                return requests.post(self.url, json=pairs, timeout=600).json()["scores"]

            def description(self):
                return {"kind": "api", "model": self.model}

    Attributes:
        retrievers: None where it reads texts alone. Else the retrievers whose scores it reads (empty: all that there
            are); its passages are then :class:`RetrievedPassages`.
    """

    retrievers: Collection[str] | None = None

    @abstractmethod
    def score(self, queries: Sequence[str], passages: Sequence[str]) -> ArrayLike:
        """Score n pairs.

        A call gets one block of stage score (``score.block_size`` queries times their candidates), no pair twice, the
        pairs of a query behind each other: what works in parallel has all of these at once.

        Args:
            queries: n texts, without any prompt.
            passages: n texts; ``passages[i]`` goes with ``queries[i]``.

        Returns:
            n finite numbers in the order given, raw, higher is better.
        """

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """Name everything that decides the scores, as JSON values: scores are kept under them and used again.

        A web API's model and version belong in it; its address does only where nothing else tells two models apart. It
        is written to files: no keys, no passwords.
        """

    def score_pairs(
        self, queries: Sequence[str], passages: Sequence[str], on_batch: Callable[[int], None] | None = None
    ) -> PairScores:
        """Score n pairs, check the scores, and report which passages were cut.

        Args:
            queries: as for :meth:`score`.
            passages: likewise.
            on_batch: called with numbers of pairs as they are done.

        Raises:
            InputError: other numbers of queries, passages and scores; a score that is no finite number.
        """
        check_pairs(queries, passages)
        found, name = self.score(queries, passages), type(self).__name__
        try:
            scores = np.asarray(found, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise InputError(f"{name}.score gave what is no list of numbers: {error}.") from error
        if scores.shape != (len(queries),):
            raise InputError(f"{name}.score gave an array {list(scores.shape)} for {len(queries)} pairs.")
        check_finite(scores, name)
        if on_batch:
            on_batch(len(queries))
        return PairScores(scores, np.zeros(len(queries), dtype=bool))

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.description().items() if value is not None)


def check_pairs(queries: Sequence[str], passages: Sequence[str]) -> None:
    """Raise an InputError where there is not one passage to each query."""
    if len(queries) != len(passages):
        raise InputError(f"{len(queries)} queries and {len(passages)} passages; pairs need as many of each.")


def numbers_by_text(texts: Sequence[str]) -> dict[str, list[int]]:
    """Group the numbers of texts that are equal, in order of first appearance."""
    found: dict[str, list[int]] = {}
    for number, text in enumerate(texts):
        found.setdefault(text, []).append(number)
    return found


def check_finite(scores: np.ndarray, teacher: str, advice: str = "Look at what it returns for that pair.") -> None:
    """Raise an InputError where a score is NaN or infinite."""
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        raise InputError(
            f"{teacher} gave {scores[bad[0]]} as the score of pair {bad[0]} ({len(bad)} of {len(scores)} pairs are not "
            f"finite). {advice}"
        )
