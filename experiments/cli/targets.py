"""What a configuration calls: Python objects of the project, of the user, or allowed by a switch; and with what."""

import importlib.util
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from experiments.cli.signatures import Signature, of_object, of_source
from experiments.settings.walk import walk
from retriever.errors import InputError, did_you_mean
from retriever.typed import check_value

# What a `_target_` may name without a switch, and all that is in it.
PROJECT = (
    "retriever.encoder.TextEncoder.from_pretrained",
    "retriever.cross_encoder.CrossEncoder.from_pretrained",
    "retriever.cross_encoder.module.CrossEncoderModule",
    "retriever.objectives",
    "retriever.teachers",
    "datamodules.QueryListDataModule",
    "datamodules.pipeline.engines.choose_engine",
    "callbacks.Evaluation",
    "callbacks.DenseEvaluation",
    "callbacks.RerankEvaluation",
    "callbacks.DenseRanker",
    "callbacks.CrossEncoderRanker",
    "callbacks.Diagnostics",
    "callbacks.StopWhenNoneImproves",
    "retriever.schedule.linear_with_warmup",
)
LIBRARIES = (
    "datetime.timedelta",  # how long ranks wait for each other
    "lightning.Trainer",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.strategies",
    "lightning.pytorch.plugins",
    "optuna.pruners",
    "torch.optim",
)
HYDRAS = {"_target_", "_convert_", "_recursive_", "_partial_", "_args_"}
_FOLLOWS = re.compile(r"\$\{([\w.]+)\}")


def check_targets(config: DictConfig, imported: bool = True) -> list[tuple[str, dict[str, Any]]]:
    """Find what a configuration calls; refuse what it may not call, before anything of it is called.

    Allowed are ``PROJECT``, ``LIBRARIES``, what ``allowed_targets`` in the configuration names, and modules that are
    the user's own: on Python's path, and neither installed as a package nor part of Python. Where ``repeats`` says
    that the configuration was found in a run folder, the user's own are allowed by ``allowed_targets`` alone. Python's
    standard library never is.

    Args:
        config: a whole configuration; every ``_target_`` in it is looked at.
        imported: whether what is called is also imported, and must come from where its name says; else its name is
            looked at alone.

    Returns:
        Dotted key and content of every mapping with a ``_target_``.

    Raises:
        InputError: with the key, the target and the switch.
    """
    given = config.get("allowed_targets") or ()
    if isinstance(given, str):
        raise InputError(f"allowed_targets is {given!r}; it must be a list: allowed_targets=[{given}].")
    allowed = tuple(given)
    found_in_run = config.get("repeats") is not None
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    found = [(key, node) for key, node in walk(plain) if isinstance(node, dict) and "_target_" in node]
    for key, node in found:
        _check_name(f"{key}._target_", node["_target_"], allowed, found_in_run)
    for key, node in found if imported else ():
        _check_home(f"{key}._target_", node["_target_"], allowed, found_in_run)
    return found


def _check_name(key: str, target: Any, allowed: Sequence[str], found_in_run: bool) -> None:
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


def _check_home(key: str, target: str, allowed: Sequence[str], found_in_run: bool) -> None:
    root = target.partition(".")[0]
    own = not found_in_run and _is_own(root)
    # a module also reaches what it imports: retriever.encoder.torch.load; the user's own from each other is all right
    home = getattr(_located(key, target), "__module__", None) or ""
    from_root = home.partition(".")[0]
    if _within(target, "torch.optim") and not _within(home, "torch.optim"):  # the rest of torch reads files
        from_root = ""
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


def check_arguments(config: DictConfig, specs: Mapping[str, type]) -> None:
    """Compare every ``_target_`` with what may be called, and every setting under it with what that takes.

    Args:
        config: a whole configuration.
        specs: target → a class whose fields it takes, too, as ``**spec``.

    Raises:
        InputError: as :func:`check_targets`; a key that the target does not take, with the
            nearest it does; or a value of another type than its annotation names, with what it may be.
    """
    for key, node in check_targets(config):
        _check_node(config, key, node, of_object(get_object(node["_target_"])), specs)


def check_written(config: DictConfig, specs: Mapping[str, type]) -> None:
    """Do what :func:`check_arguments` does, as far as it can be done by names and sources: nothing is imported."""
    for key, node in check_targets(config, imported=False):
        signature = of_source(node["_target_"])
        if signature is not None:
            _check_node(config, key, node, signature, specs)


def _check_node(
    config: DictConfig, key: str, node: Mapping[str, Any], signature: Signature, specs: Mapping[str, type]
) -> None:
    names = {name: _followed(config, f"{key}.{name}") for name in node}
    check_settings(key, node, signature, specs.get(node["_target_"]), names)


def _followed(config: DictConfig, key: str) -> str:
    """The setting that gives this one its value: evaluation.datasets for data.evaluation."""
    for _ in range(10):  # settings may follow each other round
        place, _, name = key.rpartition(".")
        parent = OmegaConf.select(config, place) if place else config
        written = parent._get_node(name) if isinstance(parent, DictConfig) else None
        followed = _FOLLOWS.fullmatch(str(written._value())) if written is not None else None
        if followed is None:
            break
        key = followed[1]
    return key


def check_settings(
    key: str,
    settings: Mapping[str, Any],
    signature: Signature,
    spec: type | None = None,
    names: Mapping[str, str] | None = None,
) -> None:
    """Compare settings with what a call takes.

    Args:
        key: where the settings stand.
        settings: name → value.
        signature: of what takes them.
        spec: a class whose fields it takes, too.
        names: setting → what to call it where its value is wrong; None calls each by its dotted key.

    Raises:
        InputError: as :func:`check_arguments`.
    """
    known, is_open = dict(signature.parameters), signature.is_open
    fields = get_type_hints(spec) if spec is not None else {}
    if spec is not None:
        known, is_open = known | fields, False
    for name, value in settings.items():
        if name in HYDRAS:
            continue
        if name not in known:
            if is_open:
                continue
            raise InputError(
                f"{key} has an unexpected keyword argument {name!r}; {signature.name} takes "
                f"{', '.join(sorted(known))}.{did_you_mean(name, known)}"
            )
        if value is None and name in fields:
            continue  # the model's own
        if value != "???":
            check_value((names or {}).get(name, f"{key}.{name}"), known[name], value)
