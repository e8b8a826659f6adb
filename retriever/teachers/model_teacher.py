"""ModelTeacher: a teacher that is a model, and reads a query and a passage together as tokens."""

import logging
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from retriever.errors import InputError
from retriever.hashing import file_sha256
from retriever.pretrained.source import hub_origin, local_folder
from retriever.teachers.base import PairScores, Teacher, check_finite, check_pairs
from retriever.teachers.pair_tokens import TokenizedPairs

_log = logging.getLogger(__name__)


class ModelTeacher(Teacher):
    """A model that reads pairs. Nothing is loaded before the first call of :meth:`score_pairs` or :meth:`load`.

    Args:
        model: a folder or a hub name.
        revision: branch, tag or commit on the hub.
        trust_remote_code: run the Python code that the model brings.
        max_length: tokens of a pair, template included, at most; longer passages are cut.
        query_max_length: tokens of a query at most; None is half of ``max_length``.
    """

    kind: str
    meaning: str
    dtype: str
    block: int  # pairs that are tokenised together

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        trust_remote_code: bool = False,
        max_length: int = 512,
        query_max_length: int | None = None,
    ) -> None:
        self.name = str(model)
        self.revision = revision
        self.trust_remote_code = trust_remote_code
        self.max_length = max_length
        self.query_max_length = max_length // 2 if query_max_length is None else query_max_length
        if not 0 < self.query_max_length < max_length:
            raise InputError(
                f"teacher.query_max_length is {self.query_max_length} and teacher.max_length {max_length}; the first "
                "must be at least 1 and smaller than the second."
            )
        check_folder(self.name, revision)

    @property
    def origin(self) -> str:
        """Say where the weights come from."""
        return hub_origin(self.name, self.revision)

    @abstractmethod
    def load(self) -> None:
        """Load tokenizer and weights now, so that mistakes show before long work is done.

        Raises:
            InputError: no such model, or one of another kind.
        """

    def score(self, queries: Sequence[str], passages: Sequence[str]) -> np.ndarray:
        """Score n pairs, float32 [n]; see :meth:`score_pairs`."""
        return self.score_pairs(queries, passages).scores

    def score_pairs(
        self, queries: Sequence[str], passages: Sequence[str], on_batch: Callable[[int], None] | None = None
    ) -> PairScores:
        """Score n pairs.

        Args:
            queries: n texts, without any prompt.
            passages: n texts; ``passages[i]`` goes with ``queries[i]``.
            on_batch: called after each micro-batch with its number of pairs.

        Returns:
            Scores in the order given; a pair's score depends on no other pair, but for float rounding.

        Raises:
            InputError: the model is missing or of another kind, or gave a score that is not finite.
        """
        check_pairs(queries, passages)
        self.load()
        scores = np.zeros(len(queries), dtype=np.float32)
        truncated = np.zeros(len(queries), dtype=bool)
        cut_queries = 0
        for start in range(0, len(queries), self.block):
            block = slice(start, start + self.block)
            scores[block], pairs = self._score_block(queries[block], passages[block], on_batch)
            truncated[block] = pairs.truncated
            cut_queries += int(pairs.query_truncated.sum())
        self._warn_of_cut_queries(cut_queries, len(queries))
        too_large = f", or the numbers too large for {self.dtype}: say teacher.dtype=float32."
        check_finite(scores, self.name, f"The weights are broken{'.' if self.dtype == 'float32' else too_large}")
        return PairScores(scores, truncated)

    @abstractmethod
    def _score_block(
        self, queries: Sequence[str], passages: Sequence[str], on_batch: Callable[[int], None] | None
    ) -> tuple[np.ndarray, TokenizedPairs]:
        """Score at most ``block`` pairs; return float32 [n], and what was cut of them."""

    def description(self) -> dict[str, Any]:
        """Name what decides the scores, as JSON values, the same before and after loading.

        ``name`` and ``revision`` as asked for, ``weights`` (SHA-256) for a folder, ``kind``, ``template``, ``dtype``,
        lengths, and in ``score`` what the number is.
        """
        return {
            "name": Path(self.name).name if Path(self.name).is_dir() else self.name,
            "revision": self.revision,
            **self._weights,
            "kind": self.kind,
            "score": self.meaning,
            "max_length": self.max_length,
            "query_max_length": self.query_max_length,
        }

    def __str__(self) -> str:
        facts = {k: v for k, v in self.description().items() if v is not None and k not in ("name", "weights")}
        return ", ".join([self.origin, *(f"{name} {value}" for name, value in facts.items())])

    def _warn_of_cut_queries(self, cut: int, total: int) -> None:
        if cut:
            _log.warning(
                "%d of %d pairs have a query of more than %d tokens, which was cut there; raise "
                "teacher.query_max_length (and teacher.max_length) to keep them whole.",
                cut,
                total,
                self.query_max_length,
            )

    @cached_property
    def _weights(self) -> dict[str, Any]:
        """Hash the weights' files by SHA-256, to tell two models in one folder apart; nothing for a hub model."""
        folder = Path(self.name)
        files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]) if folder.is_dir() else []
        return {"weights": [file_sha256(path) for path in files]} if files else {}


def check_folder(model: str, revision: str | None = None) -> None:
    """Raise an InputError where ``model`` looks like a folder but is none, or one without a model in it."""
    folder = local_folder(model, revision, "teacher.model")
    if folder is not None and not (folder / "config.json").is_file():
        raise InputError(f"{folder}: no config.json, so this is no model folder. Check teacher.model.")
