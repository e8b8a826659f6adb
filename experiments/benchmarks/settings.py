"""The settings of a benchmark (``experiments/conf/bench.yaml``, where each is told of)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from experiments.settings.common import CommonSettings
from retriever.errors import choose, require_positive

Part = Literal["step", "profile", "evaluation", "curves", "cost", "scale"]
PARTS: tuple[str, ...] = get_args(Part)
SYSTEMS = ("ours_infonce", "st_infonce", "plain_infonce", "ours_kl", "st_kl")
EVALUATED = ("ours", "st", "beir")
PRECISIONS = ("32-true", "bf16-mixed")


def _check(systems: Sequence[str], known: Sequence[str]) -> None:
    """Refuse a system that is not measured, or a precision behind its ``@``."""
    for system in systems:
        name, at, precision = system.partition("@")
        choose("systems: one", name, known)
        if at:
            choose(f"systems: {name}@", precision, PRECISIONS)


@dataclass(frozen=True)
class StepCase:
    """A training step that is measured; what is None is as the configuration's top says."""

    lists: int
    rounds: int
    systems: Sequence[str]
    max_length: int | None = None
    list_length: int | None = None
    attention: str | None = None
    trainable_layers: int | None = None
    uncheckpointed_tokens: int | None = None
    peer_batch: int | Literal["best"] | None = None

    def __post_init__(self) -> None:
        """Refuse a system that is not measured."""
        _check(self.systems, SYSTEMS)


@dataclass(frozen=True)
class StepPart:
    """``step``."""

    cases: Sequence[StepCase]


@dataclass(frozen=True)
class ProfilePart:
    """``profile``."""

    lists: int


@dataclass(frozen=True)
class EvaluationPart:
    """``evaluation``."""

    dataset: str
    systems: Sequence[str]
    rounds: int
    max_length: int

    def __post_init__(self) -> None:
        """Refuse a system that is not measured."""
        _check(self.systems, EVALUATED)


@dataclass(frozen=True)
class CurvesPart:
    """``curves``."""

    lists: Sequence[int]
    list_lengths: Sequence[int]
    list_length_at: int
    passages: Sequence[int]
    queries: Sequence[int]


@dataclass(frozen=True)
class NeuralWork:
    """Work of a network: how many texts a passage of the corpus makes, and how many a second (None: as encoding)."""

    per_passage: float
    per_second: float | None


@dataclass(frozen=True)
class ScalePart:
    """``scale``."""

    passages: Sequence[int]
    extrapolated: Sequence[int]
    depth: int
    bm25_queries: int
    neural: Mapping[str, NeuralWork]


@dataclass(frozen=True, kw_only=True)
class BenchSettings(CommonSettings):
    """The top of the configuration."""

    parts: Sequence[Part]
    seed: int
    device: str
    threads: int | None
    output_dir: str
    on_bad_list: Literal["error", "drop"]
    uncheckpointed_tokens: int | None
    peer_batch: int | Literal["best"]
    rate_seconds: float
    corpus: str
    files: Sequence[str]
    list_length: int
    max_length: int
    step: StepPart
    profile: ProfilePart
    evaluation: EvaluationPart
    curves: CurvesPart
    cost: Mapping[str, Any]
    scale: ScalePart

    def __post_init__(self) -> None:
        """Refuse lengths of nothing."""
        super().__post_init__()
        require_positive(max_length=self.max_length, list_length=self.list_length)
