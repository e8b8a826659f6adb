"""Several teachers as one."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from retriever.errors import InputError, choose, require_positive
from retriever.teachers.base import Teacher

SCALED_BETWEEN = (1.0, 99.0)  # percentiles of a member's scores


class Ensemble(Teacher):
    """Several teachers, each scaled to [0, 1] between the 1st and the 99th percentile of all its scores, and averaged.

    Args:
        members: name → teacher.
        weights: name → weight; None weighs all alike.

    Raises:
        InputError: no member, an ensemble as a member, or a weight that is not above 0 or for none of the members.
    """

    def __init__(self, members: Mapping[str, Teacher], weights: Mapping[str, float] | None = None) -> None:
        if not members:
            raise InputError("teacher.members is empty; name at least one.")
        for name, member in members.items():
            if isinstance(member, Ensemble):
                raise InputError(f"teacher.members.{name} is an ensemble itself; name its members here instead.")
            if not isinstance(member, Teacher):
                kind = f"{type(member).__module__}.{type(member).__name__}"
                raise InputError(f"The teacher is a {kind}; it must derive from retriever.teachers.Teacher.")
        for name, weight in (weights or {}).items():
            choose("teacher.weights: the member", name, members)
            require_positive(**{f"teacher.weights.{name}": weight})
        self.members = dict(members)
        given = {name: (weights or {}).get(name, 1.0) for name in members}
        self.weights = {name: w / sum(given.values()) for name, w in given.items()}

    @classmethod
    def of(cls, teacher: Teacher) -> "Ensemble":
        """Return an ensemble as it is, and make one of any other teacher, whose scores stay raw."""
        return teacher if isinstance(teacher, cls) else cls({"teacher": teacher})

    def description(self) -> dict[str, Any]:
        """See :class:`Teacher`."""
        return {"members": {name: m.description() for name, m in self.members.items()}, "weights": self.weights}

    def score(self, queries: Sequence[str], passages: Sequence[str]) -> np.ndarray:
        """Score n pairs, float32 [n]; percentiles are those of these pairs."""
        return self.combine({name: m.score_pairs(queries, passages).scores for name, m in self.members.items()})

    def combine(
        self, raw: Mapping[str, np.ndarray], scales: Mapping[str, tuple[float, float]] | None = None
    ) -> np.ndarray:
        """Scale and average scores of the same pairs.

        Args:
            raw: member → float32 [n].
            scales: member → the percentiles :data:`SCALED_BETWEEN` of all its scores, where these are but a part of
                them; None: those of these pairs.

        Returns:
            float32 [n], in [0, 1]; the raw scores where there is one member.
        """
        if len(raw) == 1:
            return next(iter(raw.values()))
        total = np.zeros(len(next(iter(raw.values()))))
        for name, scores in raw.items():
            # in float64: a teacher's scores may lie in a band that is narrow beside their size
            scores = scores.astype(np.float64)
            low, high = scales[name] if scales else np.percentile(scores, SCALED_BETWEEN)
            scaled = np.clip((scores - low) / (high - low if high > low else 1.0), 0.0, 1.0)
            total += self.weights[name] * scaled.astype(np.float32)
        return total.astype(np.float32)
