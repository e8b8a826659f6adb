"""The models that an evaluation names: what ranks for them, and what is recorded of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from datamodules.pipeline.searchers import Bm25
from experiments.settings.finished_runs import Check, finished_run
from retriever.errors import InputError, choose
from retriever.typed import read_settings

if TYPE_CHECKING:
    from callbacks.evaluation.ranker import Ranker

Loaded = tuple["Ranker", Any]  # what ranks, and the encoder that it ranks by


@dataclass(frozen=True)
class ModelSettings:
    """One of ``models``: exactly one of these.

    Attributes:
        run: a run's folder, whose exported model is evaluated.
        trust_remote_code: run the Python code that the run's model brings.
        encoder: as ``encoder`` of a run.
        bm25: BM25's settings.
        fusion: name of another of ``models`` → weight.
    """

    run: str | None = None
    encoder: Mapping[str, Any] | None = None
    bm25: Bm25 | None = None
    fusion: Mapping[str, float] | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Refuse none, and several."""
        if sum(value is not None for name, value in vars(self).items() if name != "trust_remote_code") != 1:
            raise InputError("run, encoder, bm25 and fusion: give exactly one of them.")


@dataclass(frozen=True)
class Model:
    """A model to be evaluated.

    Attributes:
        name: in tables; runs that differ in their seed alone share theirs.
        seed: of a run; else 0.
        config: what is recorded of it, as a run's configuration.
        load: loads it.
        is_dense: whether it searches with embeddings.
        smaller_of: the key of the model whose vectors it has, stored otherwise; None for most.
    """

    name: str
    seed: int
    config: dict[str, Any]
    load: Callable[[], Loaded]
    is_dense: bool = False
    smaller_of: str | None = None


@dataclass(frozen=True)
class Depths:
    """Hits of each member that a fusion adds up, and of BM25 that a cross-encoder re-ranks."""

    fusion: int
    rerank: int


def read_models(
    config: Mapping[str, Any], depths: Depths, check: Check, allowed: Sequence[str] = ()
) -> dict[str, Model]:
    """Read ``models``; nothing is loaded yet.

    Args:
        config: name → :class:`ModelSettings`, of plain containers.
        depths: of fusions and re-rankers.
        check: of what a run's configuration calls.
        allowed: what a run's configuration may call beside this project, ``allowed_targets``.

    Raises:
        InputError: none, or a wrong one.
    """
    if not config:
        raise InputError(
            "There is no model to evaluate. Name some: python -m experiments.evaluate RUN minilm bm25 sets=scifact."
        )
    settings = {name: read_settings(ModelSettings, value, f"models.{name}") for name, value in config.items()}
    for name, of in settings.items():
        for member in of.fusion or ():
            choose(f"models.{name}.fusion: a member", member, [n for n, s in settings.items() if s.fusion is None])
    models = {name: _model(name, of, depths, check, allowed) for name, of in settings.items() if of.fusion is None}
    for name, of in settings.items():
        if of.fusion is not None:
            models[name] = _fusion(name, of.fusion, models, depths.fusion)
    return {name: models[name] for name in settings}


def with_smaller_vectors(models: Mapping[str, Model], forms: Sequence[Any]) -> dict[str, Model]:
    """Put behind each model that searches with embeddings the same one, once for each form of its passages.

    Args:
        models: key → model.
        forms: as :meth:`~callbacks.evaluation.vectors.Vectors.of` reads them.

    Raises:
        InputError: a form that is none.
    """
    if not forms:  # the import takes seconds
        return dict(models)
    from callbacks.evaluation.vectors import Vectors

    wanted = {found.name: found for found in map(Vectors.of, forms)}
    both: dict[str, Model] = {}
    for key, model in models.items():
        both[key] = model
        for form, vectors in wanted.items() if model.is_dense else ():
            both[f"{key}_{form}"] = replace(
                model,
                name=f"{model.name} {form}",
                config=model.config | {"vectors": form},
                load=partial(_load_smaller, model.load, vectors),
                smaller_of=key,
            )
    return both


def _load_smaller(load: Callable[[], Loaded], vectors: Any) -> Loaded:
    ranker: Any
    ranker, encoder = load()
    ranker.vectors = vectors
    return ranker, encoder


def _model(name: str, settings: ModelSettings, depths: Depths, check: Check, allowed: Sequence[str]) -> Model:
    if settings.run is not None:
        return _run(Path(settings.run).expanduser(), depths, check, allowed, settings.trust_remote_code)
    if settings.bm25 is not None:
        return Model(name, 0, {"bm25": vars(settings.bm25)}, partial(_load_bm25, settings.bm25))
    encoder = dict(settings.encoder or {})
    placed = OmegaConf.create({"models": {name: {"encoder": encoder}}})  # so that errors name the setting
    load = partial(_load_encoder, placed.models[name].encoder, depths)
    return Model(name, 0, {"encoder": encoder}, load, is_dense="CrossEncoder" not in str(encoder.get("_target_")))


def _run(folder: Path, depths: Depths, check: Check, allowed: Sequence[str], trust_remote_code: bool) -> Model:
    """A run's exported model; one whose query side alone was trained keeps the passages that it was trained for."""
    run = finished_run(folder, check, allowed, trust_remote_code)
    load = partial(_load_run, run.model, trust_remote_code, run.of_passages, run.is_reranker, depths)
    return Model(run.name, run.seed, run.config, load, is_dense=not run.is_reranker)


def _load_bm25(settings: Bm25) -> Loaded:
    from callbacks.evaluation.bm25 import Bm25Ranker

    return Bm25Ranker(**vars(settings)), None


def _load_run(
    exported: Path, trust_remote_code: bool, of_passages: DictConfig | None, is_reranker: bool, depths: Depths
) -> Loaded:
    from callbacks.evaluation.dense import DenseRanker
    from retriever.cross_encoder import CrossEncoder
    from retriever.encoder import TextEncoder

    if is_reranker:
        return _ranked_by(CrossEncoder.from_pretrained(str(exported), trust_remote_code=trust_remote_code), depths)
    base = None if of_passages is None else instantiate(of_passages)
    tuned = TextEncoder.from_pretrained(str(exported), trust_remote_code=trust_remote_code)
    return DenseRanker(passage_encoder=base), tuned


def _load_encoder(config: DictConfig, depths: Depths) -> Loaded:
    return _ranked_by(instantiate(config), depths)


def _ranked_by(encoder: Any, depths: Depths) -> Loaded:
    from callbacks.evaluation.dense import DenseRanker
    from callbacks.evaluation.reranking import CrossEncoderRanker
    from retriever.cross_encoder import CrossEncoder

    if isinstance(encoder, CrossEncoder):
        return CrossEncoderRanker(depths.rerank), encoder
    return DenseRanker(), encoder


def _load_fusion(members: Mapping[str, Model], weights: Mapping[str, float], depth: int) -> Loaded:
    from callbacks.evaluation.fusion import FusedRanker

    return FusedRanker({name: model.load() for name, model in members.items()}, weights, depth), None


def _fusion(name: str, weights: Mapping[str, float], models: Mapping[str, Model], depth: int) -> Model:
    members = {member: models[member] for member in weights}
    config = {"fusion": {member: {"weight": weights[member]} | models[member].config for member in weights}}
    label = "+".join(model.name for model in members.values()) if name == "_".join(members) else name
    return Model(label, 0, config | {"depth": depth}, partial(_load_fusion, members, weights, depth))
