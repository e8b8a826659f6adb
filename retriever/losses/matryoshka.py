"""Matryoshka representation learning: any objective, on prefixes of the embeddings as well as the whole."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf

from torch import Tensor
from torch.nn.functional import normalize

from retriever.batch import EncodedBatch
from retriever.encoder.text_encoder import TextEncoder
from retriever.errors import InputError


class Matryoshka:
    """The sum of an objective's losses at several dimensions (Kusupati et al. 2022, arXiv 2205.13147, equation 1).

    Σ_m c_m · loss of the embeddings' first m dimensions, scaled to length 1 again where the encoder scales them. The
    whole embedding has c = 1.

    Args:
        encoder: whose embeddings are cut.
        dimensions: at least one m, each below the encoder's dimension.
        weights: c_m > 0 for each of ``dimensions``; None gives each 1, as the paper does.

    Raises:
        InputError: a dimension or a weight is out of range, or their numbers differ.
    """

    def __init__(self, encoder: TextEncoder, dimensions: Sequence[int], weights: Sequence[float] | None = None) -> None:
        self.dimensions = list(dimensions)
        self.weights = [1.0] * len(self.dimensions) if weights is None else list(weights)
        self.width = encoder.dimension
        limit = self.width or inf
        self.normalize = encoder.spec.normalize
        distinct = set(self.dimensions)
        if not distinct or len(distinct) < len(self.dimensions) or not all(0 < m < limit for m in distinct):
            most, whole = ("", "All") if self.width is None else (f" to {self.width - 1}", f"All {self.width}")
            raise InputError(
                f"module.matryoshka_dimensions is {self.dimensions}; name different dimensions from 1{most}. {whole} "
                "of the encoder are trained anyway."
            )
        if len(self.weights) != len(self.dimensions) or not all(0 < c < float("inf") for c in self.weights):
            raise InputError(
                f"module.matryoshka_weights is {self.weights}; it must be null, or hold a number above 0 for each of "
                f"matryoshka_dimensions {self.dimensions}."
            )

    def __call__(
        self, objective: Callable[[EncodedBatch], dict[str, Tensor]], batch: EncodedBatch
    ) -> dict[str, Tensor]:
        """Compute the objective's parts at the whole width, the sum as ``loss``, and ``loss_dim<m>`` for each m."""
        parts = objective(batch)
        losses = {f"loss_dim{self.width}": parts["loss"]}
        total = parts["loss"]
        for dimension, weight in zip(self.dimensions, self.weights, strict=True):
            loss = objective(self._prefix(batch, dimension))["loss"]
            losses[f"loss_dim{dimension}"] = loss
            total = total + weight * loss
        return {**parts, "loss": total, **losses}

    def _prefix(self, batch: EncodedBatch, dimension: int) -> EncodedBatch:
        queries, passages = batch.queries[:, :dimension], batch.passages[:, :dimension]
        if self.normalize:
            queries, passages = normalize(queries, dim=-1), normalize(passages, dim=-1)
        return replace(batch, queries=queries, passages=passages)
