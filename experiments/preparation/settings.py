"""The settings of a preparation that no class takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from datamodules.storage.files import file_name
from experiments.settings.common import CommonSettings, PrecisionName

StageName = Literal["deduplicate", "sample", "generate", "queries", "mine", "score", "filter", "split"]
STAGES: tuple[str, ...] = get_args(StageName)
TUNED = "tuned"  # the retriever that the setting of this name adds
# section of the configuration → the stage whose arguments alone it has
OF_STAGES = {
    "deduplicate": "datamodules.pipeline.stages.deduplicate.Deduplicate",
    "sample": "datamodules.pipeline.stages.sample.Sample",
    "score": "datamodules.pipeline.stages.score.Score",
    "filter": "datamodules.pipeline.stages.filter.Filter",
}


@dataclass(frozen=True)
class QueryGroup:
    """A group of queries (``queries``), see :class:`~datamodules.pipeline.stages.queries.CollectQueries`.

    Attributes:
        source: ``generated``, ``judged``, ``titles``, ``claims``, ``sentences``, ``keywords`` or
            ``file``.
        split: of judged queries.
        path: of a file of queries.
        limit: at most so many queries, of each passage about as many; None takes all.
        quality: of queries that are cut from passages, True leaves out those that say nothing of theirs.
        filter: False lets all its lists pass stage filter.
        leak_guard: what becomes of its lists that give away an evaluation query; None takes ``split.leak_guard``.
    """

    source: str | None = None
    split: str = "train"
    path: str | None = None
    limit: int | None = None
    quality: bool = False
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
class PrepareSettings(CommonSettings):
    """The top of ``experiments/conf/prepare/prepare.yaml``, where each setting is told of."""

    seed: int
    corpus: str
    queries: Mapping[str, QueryGroup]
    output: str
    students: Mapping[str, str]
    tuned: str | None = None
    repeats: str | None = None
    stage: StageName | None
    until: StageName | None
    plan: bool = False
    shard: str | int | None
    device: str | None
    precision: PrecisionName
    work: str
    data_dir: str

    def __post_init__(self) -> None:
        """Refuse a group whose name no file can have."""
        super().__post_init__()
        for name in self.queries:
            file_name("queries: a group", name)
        for name in self.students:
            file_name("students: a student", name)
