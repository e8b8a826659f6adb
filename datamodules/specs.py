"""What a configuration may say of a file of query lists and of an evaluation set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from datamodules.storage.files import file_name
from retriever.errors import InputError, require_positive
from retriever.typed import read_settings

_SOURCES = ("ir_datasets", "hub")  # may be keys in the place of path


@dataclass(frozen=True)
class ListFile:
    """A file of query lists that is evaluated on while training (``data.dev``).

    Attributes:
        path: the file; for an objective that reads no list, also a ``.txt`` file with a text on each line.
        corpus: folder or name of the corpus that its passages are in.
        weight: passes over each list per epoch, a number or one per query type; a type that is not named gets 0.
    """

    path: str
    corpus: str
    weight: float | Mapping[str, float] = 1.0

    def __post_init__(self) -> None:
        """Refuse a weight that is no number of at least 0."""
        weights = self.weight if isinstance(self.weight, Mapping) else {"": self.weight}
        for kind, weight in weights.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
                of = f" of {kind}" if kind else ""
                raise InputError(f"weight{of} is {weight!r}; it must be a finite number of at least 0.")

    def passes(self, query_type: str) -> float:
        """Passes over each list of a query type per epoch."""
        weight = self.weight.get(query_type, 0.0) if isinstance(self.weight, Mapping) else self.weight
        return float(weight)


@dataclass(frozen=True)
class CorpusScoring:
    """The teacher of objectives that look at the whole corpus (``data.corpus_scores``): a fusion, as ``prepare`` has.

    Attributes:
        bm25: BM25's weight.
        encoder: the weight of the encoder that is trained, by its base weights.
        depth: hits of each, by whose best and worst score its scores are scaled to [0, 1]; passages below count 0.
        columns: passages that a batch looks at: all of a corpus that has no more; of a larger one, the candidates of
            the batch's lists, this teacher's best ``data.list_length`` of each query, and a weighted draw of the
            others, anew for each batch, up to this number (but of these at least a quarter of it).
        language: of BM25's stemmer and stop words; None compares words as they are.
    """

    bm25: float = 0.5
    encoder: float = 0.5
    depth: int = 100
    columns: int = 20_000
    language: str | None = "english"

    def __post_init__(self) -> None:
        """Refuse negative weights, and two of 0."""
        require_positive(depth=self.depth, columns=self.columns)
        if min(self.bm25, self.encoder) < 0 or self.bm25 + self.encoder == 0:
            raise InputError(
                f"bm25 is {self.bm25} and encoder is {self.encoder}; these weights must not be negative, nor both 0."
            )


@dataclass(frozen=True)
class TrainFile(ListFile):
    """A file of query lists that is trained on (``data.train``).

    Attributes:
        types: train on these query types alone; None takes all.
        draw: train on so many lists, see :func:`~datamodules.list_choice.chosen_lists`; None takes all.
    """

    types: Sequence[str] | None = None
    draw: int | None = None

    def __post_init__(self) -> None:
        """Refuse types that are none, or twice there, and a draw of less than one list of each."""
        super().__post_init__()
        _check_types(self.types)
        least = len(self.types or [""])
        if self.draw is not None and self.draw < least:
            raise InputError(f"draw is {self.draw}; it must be a whole number of at least {least}, or null for all.")


@dataclass(frozen=True)
class SampleSpec:
    """How a sample of a corpus is made, which validations search in place of the whole.

    Attributes:
        size: passages of the sample; judged ones and hits are in it even where they are more.
        depth: hits per query of the base model and of BM25.
        seed: of the random rest; not the run's, so that runs with other seeds have one sample.
    """

    size: int
    depth: int = 100
    seed: int = 1

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        for name, number in vars(self).items():
            if number < 1:
                raise InputError(f"{name} is {number}; it must be a whole number of at least 1.")


@dataclass(frozen=True)
class EvaluationSpec:
    """An evaluation set (``evaluation.datasets``).

    Attributes:
        path: a folder in BEIR's layout, the name of a shipped data set, a BEIR name, ``ir_datasets:NAME`` or
            ``hub:OWNER/NAME``; these two may be given as ``ir_datasets: NAME`` and ``hub: OWNER/NAME``, too.
        split: whose judgements are used; ``test`` where neither split nor lists is given.
        name: in the names of metrics; None takes the folder's.
        queries: ``dev``: only the queries of the data module's dev lists, to choose settings by.
        lists: a file of query lists whose queries are evaluated in place of a split's.
        types: the query types among these lists; None takes all.
        sample: validate on a sample of the corpus.
        part_of: in averages it counts as a part of that set, as CQADupStack's forums do, which count as one set.
        relevance_level: the lowest grade that counts as relevant in metrics that name no level themselves; nDCG takes
            grades as they are.
    """

    path: str
    split: str | None = None
    name: str | None = None
    queries: Literal["dev"] | None = None
    lists: str | None = None
    types: Sequence[str] | None = None
    sample: SampleSpec | None = None
    part_of: str | None = None
    relevance_level: int = 1

    def __post_init__(self) -> None:
        """Refuse contradictions; fill in the split."""
        _check_types(self.types)
        if self.relevance_level < 1:
            raise InputError(f"relevance_level is {self.relevance_level}; it must be a grade of at least 1.")
        if self.lists is not None and self.split is not None:
            raise InputError("split and lists are both given; the queries come from one of them.")
        if self.types is not None and self.lists is None:
            raise InputError("types are given, but no lists to take them from.")
        if self.split is None and self.lists is None:
            object.__setattr__(self, "split", "test")

    @property
    def shown_name(self) -> str:
        """The set's name in metrics; that of the corpus folder unless one is given."""
        return self.name or corpus_name(self.path)

    @property
    def source(self) -> str:
        """Where its queries come from: ``dev lists``, a file of lists, or a split."""
        return "dev lists" if self.chooses else self.lists or self.split or "test"

    @property
    def chooses(self) -> bool:
        """Whether its queries are dev queries, by which settings and checkpoints may be chosen."""
        return self.queries == "dev"


def corpus_name(path: str) -> str:
    """Name of a data set's folder, wherever it is."""
    source, _, inner = path.partition(":")
    return inner.replace("/", "-") if source == "ir_datasets" else Path(path).name


def read_list_files(kind: type[ListFile], values: Any, key: str) -> list[Any]:
    """Read ``data.train`` or ``data.dev``.

    Raises:
        InputError: no list, or what :func:`~retriever.typed.read_settings` refuses.
    """
    return [read_settings(kind, value, f"{key}[{n}]") for n, value in enumerate(_as_list(values, key))]


def read_evaluation_specs(values: Any, key: str = "evaluation.datasets") -> list[EvaluationSpec]:
    """Read ``evaluation.datasets``.

    Raises:
        InputError: no list, what :func:`~retriever.typed.read_settings` refuses, a name that files cannot be called by,
            or two sets of one name.
    """
    paths = [_with_path(value, f"{key}[{n}]") for n, value in enumerate(_as_list(values, key))]
    specs = [read_settings(EvaluationSpec, value, f"{key}[{n}]", _SOURCES) for n, value in enumerate(paths)]
    names = [file_name(f"{key}[{n}].name", spec.shown_name) for n, spec in enumerate(specs)]
    names += [f"{spec.shown_name}-sample" for spec in specs if spec.sample is not None]
    if len(set(names)) < len(names):
        raise InputError(f"{key}: two sets have one name ({', '.join(names)}). Give one a name: of its own.")
    return specs


def _with_path(value: Any, where: str) -> Any:
    """Turn ``{ir_datasets: NAME}`` into ``{path: ir_datasets:NAME}``, and so ``hub``."""
    given = [source for source in _SOURCES if isinstance(value, Mapping) and source in value]
    if not given:
        return value
    if len(given) > 1 or "path" in value:
        raise InputError(f"{where}: path, ir_datasets and hub: give one of them.")
    [source] = given
    return {"path": f"{source}:{value[source]}", **{k: v for k, v in value.items() if k != source}}


def _check_types(types: Sequence[str] | None) -> None:
    if types is not None and (not types or len(set(types)) < len(types)):
        raise InputError(f"types is {types!r}; it must be a list of query types, each once, or null for all.")


def _as_list(values: Any, key: str) -> Sequence[Any]:
    if isinstance(values, str | Mapping) or not isinstance(values, Sequence):
        raise InputError(f"{key} is {values!r}; it must be a list of mappings: {key}='[{{path: …}}]'.")
    return values
