"""A linear layer at the end of an encoder's head: into another encoder's space, of another width."""

import copy

import numpy as np
import torch
from torch import nn

from retriever.encoder.dense import Dense
from retriever.encoder.text_encoder import TextEncoder
from retriever.errors import InputError

_SHRINKAGES = 10.0 ** np.arange(-6.0, 1.5, 0.5)  # of the largest squared singular value


def project(encoder: TextEncoder, width: int) -> TextEncoder:
    """Put a linear layer at the end of an encoder's head, in place; it learns with the rest.

    It begins by padding with zeros, or by cutting: until :func:`fit` what the encoder gives means nothing.

    Args:
        encoder: whose embeddings are not cut.
        width: of another encoder's embeddings.

    Returns:
        The encoder.

    Raises:
        InputError: ``truncate_dim`` cuts its embeddings.
    """
    if encoder.spec.truncate_dim is not None:
        raise InputError(
            f"encoder.truncate_dim is {encoder.spec.truncate_dim}, and the embeddings of {encoder.name} are projected "
            f"to the {width} dimensions of another encoder: leave it out."
        )
    dense = Dense(encoder.dimension, width)
    nn.init.eye_(dense.linear.weight)
    encoder.head.append(dense)
    encoder.dimension, encoder.projection = width, "unfitted"
    return encoder


def before_projection(encoder: TextEncoder) -> TextEncoder:
    """Give a projected encoder as it is without that layer; its weights are the same objects."""
    last = encoder.head[-1]
    assert isinstance(last, Dense)
    other = copy.copy(encoder)
    other._modules = {**encoder._modules, "head": encoder.head[:-1]}
    other.dimension, other.projection = last.linear.in_features, None
    return other


def fit(encoder: TextEncoder, given: np.ndarray, wanted: np.ndarray) -> None:
    """Give a projection the weights of :func:`least_squares`.

    Args:
        encoder: projected.
        given: embeddings of n texts by :func:`before_projection`, [n, D].
        wanted: by the other encoder, [n, width].
    """
    last = encoder.head[-1]
    assert isinstance(last, Dense)
    with torch.no_grad():
        last.linear.weight.copy_(torch.from_numpy(least_squares(given, wanted).T))
    encoder.projection = "fitted"


def least_squares(given: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Find the matrix W that brings ``given @ W`` nearest to ``wanted``: ridge regression without intercept.

    How far W is shrunk is chosen by generalised cross-validation (Golub, Heath and Wahba 1979), so that a few texts do
    not decide hundreds of dimensions.

    Args:
        given: [n, D], one embedding of each of n texts.
        wanted: [n, E], another one of each.

    Returns:
        float32 [D, E].
    """
    x, y = given.astype(np.float64), wanted.astype(np.float64)
    left, sizes, right = np.linalg.svd(x, full_matrices=False)
    along = left.T @ y
    squares, of_along = sizes**2, (along**2).sum(1)
    best, least = 0.0, np.inf
    for penalty in squares[0] * _SHRINKAGES:
        kept = squares / (squares + penalty)
        error = (y**2).sum() - ((2 * kept - kept**2) * of_along).sum()
        score = error / (len(x) - kept.sum()) ** 2
        if score < least:
            best, least = penalty, score
    return (right.T @ ((sizes / (squares + best))[:, None] * along)).astype(np.float32)
