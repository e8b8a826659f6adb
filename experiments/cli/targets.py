"""Which Python objects a configuration may call: the project's own, the user's own, and what a switch allows."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from retriever.errors import InputError

# What a `_target_` may name without a switch, and all that is in it.
PROJECT = (
    "retriever.encoder.TextEncoder.from_pretrained",
    "retriever.cross_encoder.CrossEncoder.from_pretrained",
    "retriever.cross_encoder.module.CrossEncoderModule",
    "retriever.objectives",
    "retriever.teachers",
    "datamodules.QueryListDataModule",
    "datamodules.pipeline.engines.choose_engine",
    "datamodules.pipeline.stages.score",
    "callbacks.Evaluation",
    "callbacks.DenseEvaluation",
    "callbacks.RerankEvaluation",
    "callbacks.DenseRanker",
    "callbacks.CrossEncoderRanker",
)
LIBRARIES = (
    "datetime.timedelta",  # how long ranks wait for each other
    "lightning.Trainer",
    "lightning.pytorch.strategies",
    "lightning.pytorch.plugins",
    "optuna.pruners",
)


def check_targets(config: DictConfig) -> None:
    """Refuse a configuration that calls what it may not, before anything of it is imported or called.

    Allowed are ``PROJECT``, ``LIBRARIES``, what ``allowed_targets`` in the configuration names, and modules that are
    the user's own: on Python's path, and neither installed as a package nor part of Python. Where ``repeats`` says
    that the configuration was found in a run folder, the user's own are allowed by ``allowed_targets`` alone. Python's
    standard library never is.

    Args:
        config: a whole configuration; every ``_target_`` in it is looked at.

    Raises:
        InputError: with the key, the target and the switch.
    """
    given = config.get("allowed_targets") or ()
    if isinstance(given, str):
        raise InputError(f"allowed_targets is {given!r}; it must be a list: allowed_targets=[{given}].")
    allowed = tuple(given)
    found_in_run = config.get("repeats") is not None
    for key, node in nodes(OmegaConf.to_container(config, resolve=True, throw_on_missing=False)):
        _check(f"{key}._target_", node["_target_"], allowed, found_in_run)


def nodes(value: Any, key: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Dotted key and content of every mapping that has a ``_target_``, at any depth."""
    if isinstance(value, dict):
        if "_target_" in value:
            yield key, value
        for name, inner in value.items():
            yield from nodes(inner, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from nodes(inner, f"{key}[{number}]")


def _check(key: str, target: Any, allowed: Sequence[str], found_in_run: bool) -> None:
    if not isinstance(target, str):
        raise InputError(f"{key} is {target!r}; it is the dotted name of a class.")
    root = target.partition(".")[0]
    if root in sys.stdlib_module_names and target not in LIBRARIES:
        raise InputError(f"{key} is {target!r}, of Python's standard library, which no configuration may call.")
    own = not found_in_run and _is_own(root)
    if not (own or any(_within(target, prefix) for prefix in (*PROJECT, *LIBRARIES, *allowed))):
        raise InputError(
            f"{key} is {target!r}, which a configuration may not call. Where you know and trust that code, say "
            f"allowed_targets=[{target.rpartition('.')[0] or target}]."
        )
    # a module also reaches what it imports: retriever.encoder.torch.load; the user's own from each other is all right
    home = getattr(_located(key, target), "__module__", None) or ""
    from_root = home.partition(".")[0]
    if not (from_root in {prefix.partition(".")[0] for prefix in (root, *allowed)} or (own and _is_own(from_root))):
        raise InputError(f"{key} is {target!r}, which comes from {home or 'elsewhere'!r}; name what you mean itself.")


def _within(target: str, prefix: str) -> bool:
    return target == prefix or target.startswith(f"{prefix}.")


def _is_own(root: str) -> bool:
    """Whether a top-level module is neither Python's, nor installed, nor one of the project's packages."""
    if root in sys.stdlib_module_names:
        return False
    try:
        spec = importlib.util.find_spec(root)
    except (ImportError, ValueError):
        spec = None
    if spec is None or root in {name.partition(".")[0] for name in PROJECT} | {"experiments", "hydra_plugins"}:
        return False
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or ())
    return not any({"site-packages", "dist-packages"} & set(Path(place).parts) for place in places)


def _located(key: str, target: str) -> Any:
    try:
        return get_object(target)
    except Exception as error:  # whatever a module raises while it is imported
        raise InputError(f"{key} is {target!r}, which cannot be imported: {_cause(error)}.") from error


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
