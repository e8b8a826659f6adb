"""Global orthogonal regularisation: embeddings of different texts spread over the sphere, as a pure function."""

import torch
from torch import Tensor

from retriever.losses.listwise import at_least_float32


def global_orthogonal(embeddings: Tensor) -> Tensor:
    """Compute how far the inner products of different rows are from those of independent points on the sphere.

    M₁² + max(0, M₂ − 1/D) (Zhang et al. 2017, arXiv 1708.06320, equation 6), where M₁ is the mean of x_i · x_j over all
    pairs of rows i ≠ j, and M₂ that of their squares: of uniform points these are 0 and 1/D. Both come from sums over
    rows, Σ x and Σ x xᵀ, so no matrix of all pairs is made.

    Args:
        embeddings: [N, D].

    Returns:
        A scalar, float32 or better, at least 0; 0 for fewer than two rows.
    """
    rows = at_least_float32(embeddings)
    count, width = rows.shape
    pairs = count * (count - 1) or 1
    own = rows.square().sum(1)
    mean = (rows.sum(0).square().sum() - own.sum()) / pairs
    square = ((rows.T @ rows).square().sum() - own.square().sum()) / pairs
    return mean.square() + torch.relu(square - 1 / width)
