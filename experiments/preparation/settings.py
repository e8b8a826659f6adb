"""The settings of a preparation that no class takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from datamodules.storage.files import file_name
from retriever.typed import read_settings

StageName = Literal["deduplicate", "sample", "generate", "collect", "mine", "score", "filter", "split"]
STAGES: tuple[str, ...] = get_args(StageName)


@dataclass(frozen=True)
class QueryGroup:
    """A group of queries (``queries``), see :class:`~datamodules.pipeline.stages.collect.Collect`.

    Attributes:
        source: ``generated``, ``judged``, ``titles``, ``assertions`` or ``file``.
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
    queries: Mapping[str, Any]
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


def read_prepare_settings(config: Mapping[str, Any]) -> PrepareSettings:
    """Read the top of a preparation's whole configuration, and its groups of queries.

    Raises:
        InputError: see :func:`~retriever.typed.read_settings`; or a group whose name no file can have.
    """
    stated = {f.name: config[f.name] for f in fields(PrepareSettings) if f.name in config}
    settings = read_settings(PrepareSettings, stated, "")
    for name, group in settings.queries.items():
        read_settings(QueryGroup, group or {}, f"queries.{file_name('queries: a group', name)}")
    return settings
