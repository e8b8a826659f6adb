"""The settings of a preparation that no class takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from datamodules.storage.files import file_name

StageName = Literal["deduplicate", "sample", "generate", "queries", "mine", "score", "filter", "split"]
STAGES: tuple[str, ...] = get_args(StageName)


@dataclass(frozen=True)
class QueryGroup:
    """A group of queries (``queries``), see :class:`~datamodules.pipeline.stages.queries.CollectQueries`.

    Attributes:
        source: ``generated``, ``judged``, ``titles``, ``claims`` or ``file``.
        split: of judged queries.
        path: of a file of queries.
        filter: False lets all its lists pass stage filter.
        leak_guard: what becomes of its lists that give away an evaluation query; None takes ``split.leak_guard``.
    """

    source: str | None = None
    split: str = "train"
    path: str | None = None
    filter: bool = True
    leak_guard: Literal["drop", "fail", "off"] | None = None


@dataclass(frozen=True)
class JudgedSplit:
    """Queries that the leak guard protects (``split.evaluation``).

    Attributes:
        path: a folder in BEIR's layout, the name of a shipped data set, or a BEIR name.
        split: whose judgements are used.
    """

    path: str
    split: str = "test"


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """The top of ``experiments/conf/prepare/prepare.yaml``, where each setting is told of."""

    corpus: str
    queries: Mapping[str, QueryGroup]
    output: str
    stage: StageName | None
    until: StageName | None
    shard: str | int | None
    seed: int
    empty_passages: Literal["error", "keep"]
    unknown_qrels: Literal["error", "keep"]
    token_budget: int
    device: str | None
    work: str
    cache_dir: str
    data_dir: str
    allowed_targets: Sequence[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse a group whose name no file can have."""
        for name in self.queries:
            file_name("queries: a group", name)
