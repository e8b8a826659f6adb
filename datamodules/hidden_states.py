"""A cache on disk, by content: what an encoder's frozen layers make of texts, so that encoding starts there."""

import hashlib
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from datamodules.caches import cached_array, precision_of, update_with_tokens
from retriever.distributed.ranks import broadcast
from retriever.encoder.budget import fastest_token_budget
from retriever.encoder.encoding import device_of, evaluating
from retriever.encoder.states import StoredStates
from retriever.encoder.text_encoder import TextEncoder
from retriever.encoder.tokens import TokenizedTexts, micro_batches
from retriever.errors import InputError

log = logging.getLogger(__name__)
_BLOCK = 1_024  # texts whose states are one file until all are merged
_SHARE_OF_DISK = 0.25  # of what is free, that one set of texts may take, first in parts, then as a whole


def with_states(
    tokens: TokenizedTexts, encoder: TextEncoder, cache_dir: str | Path, token_budget: int | None, title: str
) -> TokenizedTexts:
    """Add the states that an encoder's frozen layers give, computed once; nothing where no layer is frozen.

    They are float16 in a memory-mapped file, two bytes for each token and dimension. While they are
    written they take twice that; where it is more than a quarter of the free disk, nothing is stored, and each encoding
    computes all layers.

    Args:
        tokens: N texts.
        encoder: stays as it is; its frozen layers are used in evaluation mode.
        cache_dir: the cache's folder; processes that share it share the work.
        token_budget: as for :func:`retriever.encoder.encoding.encode`.
        title: what the progress bar says.

    Raises:
        InputError: a state is too large for float16.
    """
    if not encoder.starts_from_states or not len(tokens):
        return tokens
    file = broadcast(states_file(tokens, encoder, cache_dir))  # ranks may see other disks, and must do alike
    if file is None:
        log.warning(
            "%s: to store the states below the trained layers would take more than a quarter of what is free in %s; "
            "all layers are computed each time",
            title,
            cache_dir,
        )
        return tokens

    def computed(rows: np.ndarray, advance: Callable[[int], None]) -> np.ndarray:
        return _states(tokens.select(rows), encoder, token_budget, advance)

    shape = int(tokens.offsets[-1]), encoder.backbone.config.hidden_size
    states = cached_array(file, tokens.lengths, _BLOCK, computed, shape, "float16", tokens.positions, title)
    return replace(tokens, states=StoredStates((states,), tokens.offsets[:-1]))


def states_file(tokens: TokenizedTexts, encoder: TextEncoder, cache_dir: str | Path) -> Path | None:
    """Name the file of texts' states; None where no layer is frozen, or the states are not there and too large."""
    if encoder.split is None or not encoder.starts_from_states:
        return None
    digest = hashlib.sha256(f"{encoder.split.fingerprint()} {precision_of(encoder)}".encode())
    update_with_tokens(digest, tokens)
    file = Path(cache_dir) / "states" / digest.hexdigest()[:32] / "states.npy"
    Path(cache_dir).mkdir(parents=True, exist_ok=True)
    size = 2 * int(tokens.offsets[-1]) * encoder.backbone.config.hidden_size
    fits = 2 * size <= _SHARE_OF_DISK * shutil.disk_usage(cache_dir).free
    return file if fits or file.is_file() else None


def _states(
    tokens: TokenizedTexts, encoder: TextEncoder, token_budget: int | None, advance: Callable[[int], None]
) -> np.ndarray:
    """Compute the states of texts, float16 [T, D]."""
    assert encoder.split is not None
    device = device_of(encoder)
    budget = token_budget or fastest_token_budget(encoder, device)
    found = np.empty((len(tokens.ids), encoder.backbone.config.hidden_size), np.float16)
    with evaluating(encoder):
        for rows in micro_batches(tokens.lengths, budget, on_gpu=device.type != "cpu"):
            ids, mask = tokens.padded(rows, encoder.pad_id, device)
            found[tokens.positions(rows)] = encoder.split.lower(ids, mask)[mask.bool()].to(torch.float16).cpu().numpy()
            advance(len(rows))
    if not np.isfinite(found).all():
        raise InputError(
            f"encoder.trainable_layers: the states below the trained layers of {encoder.name} are too large for "
            "float16, in which they are stored. Take another number of layers, or null."
        )
    return found
