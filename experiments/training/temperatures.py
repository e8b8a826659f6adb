"""Temperatures that are fitted to the train lists before a run begins: ``temperatures.fitted``."""

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from datamodules import QueryListDataModule
from experiments.cli.ranks import broadcast_from_rank_zero
from experiments.settings.fitted_temperatures import read_by_objective, recorded_temperatures
from retriever.batch import EncodedBatch, membership_mask
from retriever.encoder.encoding import evaluating
from retriever.errors import InputError
from retriever.module import RetrieverModule
from retriever.query_list_module import QueryListModule
from retriever.temperature_fit import ScoredQueries, fit_temperatures

log = logging.getLogger(__name__)
_LISTS = 512
_ENCODED = 2560  # candidates, at most, where passages have no embeddings yet
_DIGITS = 3  # of a temperature, so that machines that round otherwise find the same one


def with_fitted_temperatures(
    config: DictConfig, module: QueryListModule, data: QueryListDataModule, folder: Path
) -> tuple[DictConfig, dict[str, Any] | None]:
    """Fit the temperatures that a run's objective reads, or take those that a run that goes on began with.

    The first rank fits them, and all take its numbers.

    Args:
        config: with numbers of no meaning where ``temperatures.fitted`` says so.
        module: made by it, with the base model's weights.
        data: of the run; it is opened, and its passages are encoded where they are frozen.
        folder: of the run.

    Returns:
        The configuration with the numbers; and what came out, JSON values by subject, None where nothing is fitted.

    Raises:
        InputError: the module is of a cross-encoder, or its scores allow no fit.
    """
    names = read_by_objective(config)
    if not config.temperatures.get("fitted") or not names:
        return config, None
    recorded = recorded_temperatures(config, Path(config.resume)) if config.resume else None
    if recorded is not None:
        found: dict[str, Any] = {"resumed": True, "temperatures": {name: recorded[name] for name in names}}
    else:
        nodes = config.trainer.get("num_nodes") or 1
        key = f"temperatures of {folder}"
        found = json.loads(broadcast_from_rank_zero(key, lambda: json.dumps(fit(config, module, data)), nodes))
        found["temperatures"] = {n: found["student" if n == "student" else "teacher"]["temperature"] for n in names}
        for warning in found["warnings"]:
            log.warning("%s", warning)
    config = config.copy()
    for name, value in found["temperatures"].items():
        config.temperatures[name] = value
    return config, found


def fit(config: DictConfig, module: QueryListModule, data: QueryListDataModule) -> dict[str, Any]:
    """Fit τ_t and τ_s to a draw of the train lists, and to the whole corpus where the objective looks at that.

    Args:
        config: of a run.
        module: with the base model's weights.
        data: of the run; None of its dev lists is looked at.

    Returns:
        :class:`~retriever.temperature_fit.TemperatureFit`, as plain values.

    Raises:
        InputError: see :func:`with_fitted_temperatures`.
    """
    if not isinstance(module, RetrieverModule):
        raise InputError("temperatures.fitted is for encoders of single texts: this module scores pairs. Say null.")
    # for the device and the precision alone; the run's own trainer is made once its temperatures are known
    trainer = instantiate(config.trainer, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    data.trainer = trainer
    data.setup()
    module.to(trainer.strategy.root_device)
    parts = list(_scored(module, data, trainer))
    found = asdict(fit_temperatures(parts, config.temperatures.fitted or "labels"))
    for side in ("teacher", "student"):
        found[side]["temperature"] = float(f"{found[side]['temperature']:.{_DIGITS}g}")
    return found | {"whole_corpus": module.needs.all_scores}


def _scored(module: RetrieverModule, data: QueryListDataModule, trainer: Any) -> Iterator[ScoredQueries]:
    most = _LISTS if module.needs.frozen_passages else max(1, _ENCODED // data.list_length)
    for batch, types in data.drawn_batches(min(most, _LISTS)):
        with evaluating(module.encoder), trainer.precision_plugin.forward_context():
            encoded = module.encode_batch(batch.to(module.device))
        with torch.inference_mode():
            scored = _as_trained(encoded, module.needs.all_scores)
        judged = np.isin(types, data.human_types)
        yield replace(scored, labelled=scored.labelled & judged[:, None])


def _as_trained(batch: EncodedBatch, whole_corpus: bool) -> ScoredQueries:
    """The scores that the objective compares, of a batch."""
    if whole_corpus:
        assert batch.all_scores is not None and batch.log_weights is not None  # what it needs
        teacher, student = batch.all_scores, batch.queries.float() @ batch.passages.float().T
        log_weights = batch.weights_of(batch.hidden_keys).expand_as(teacher)
        labelled = membership_mask(batch.passage_keys, batch.labelled_keys)
    else:
        teacher, student = batch.teacher_scores, batch.list_scores
        log_weights = torch.zeros_like(teacher).masked_fill(~batch.list_mask, float("-inf"))
        keys = batch.passage_keys[batch.list_index]
        labelled = (keys.unsqueeze(2) == batch.labelled_keys.unsqueeze(1)).any(2) & batch.list_mask
    return ScoredQueries(_double(teacher), _double(student), _double(log_weights), labelled.cpu().numpy())


def _double(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().cpu().numpy()
