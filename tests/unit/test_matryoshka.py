"""Objectives on prefixes of the embeddings, against the objective on embeddings cut by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import gradcheck

from helpers.loss_examples import assert_close, encoded, loss_of, random_example
from retriever.errors import InputError
from retriever.objectives import CombinedObjective, InfoNCE, MarginMSE


def cut(vectors, dimension, scaled):
    """First dimensions of plain vectors, of length 1 where ``scaled``."""
    out = []
    for vector in vectors:
        head = vector[:dimension]
        length = math.sqrt(math.fsum(x * x for x in head)) if scaled else 1.0
        out.append([x / length for x in head])
    return out


def wide(objective, normalize=True, **arguments):
    """The objective over an encoder of five dimensions that it never calls."""
    encoder = torch.nn.Linear(2, 2)
    encoder.dimension, encoder.spec = 5, SimpleNamespace(normalize=normalize)
    return objective(encoder, **arguments)


@pytest.mark.parametrize("objective", [InfoNCE, CombinedObjective, MarginMSE])
@pytest.mark.parametrize("weights", [None, [0.5, 2.0]])
@pytest.mark.parametrize("normalize", [True, False])
def test_loss_is_the_weighted_sum_over_embeddings_cut_by_hand(objective, weights, normalize):
    example = random_example(1, "normal")
    chosen = wide(objective, normalize, matryoshka_dimensions=[3, 2], matryoshka_weights=weights)
    parts = chosen._objective_in_full_precision(encoded(example))
    whole = chosen.objective(encoded(example))
    expected = [whole["loss"].item()]
    for dimension in (3, 2):
        passages = cut(example.passages.values(), dimension, normalize)
        prefix = replace(
            example,
            queries=cut(example.queries, dimension, normalize),
            passages=dict(zip(example.passages, passages, strict=True)),
        )
        expected.append(loss_of(objective, encoded(prefix)).item())
    for dimension, value in zip((5, 3, 2), expected, strict=True):
        assert_close(parts[f"loss_dim{dimension}"], value, tolerance=2e-5)
    assert len({round(value, 3) for value in expected}) == 3
    weighted = math.fsum(c * x for c, x in zip([1.0, *(weights or [1.0, 1.0])], expected, strict=True))
    assert_close(parts["loss"], weighted, tolerance=2e-5)
    assert all(parts[name] == value for name, value in whole.items() if name != "loss")


def test_gradients_are_those_of_one_shared_encoder_and_temperature():
    batch = encoded(random_example(0, "normal", queries=3, passages=7, length=4), dtype=torch.float64)
    chosen = wide(InfoNCE, matryoshka_dimensions=[3], temperature=0.05, learnable_temperature=True).double()

    def loss(queries, passages):
        return chosen._objective_in_full_precision(replace(batch, queries=queries, passages=passages))["loss"]

    inputs = (batch.queries.clone().requires_grad_(), batch.passages.clone().requires_grad_())
    assert gradcheck(loss, inputs)
    temperatures = [name for name, _ in chosen.named_parameters() if not name.startswith("encoder")]
    assert temperatures == ["contrast.temperature.log"]
    assert wide(InfoNCE, matryoshka_dimensions=[3], positive="labelled").needs.labels


def test_a_prefix_of_zeros_has_finite_gradients():
    batch = encoded(random_example(0, "normal"))
    batch.queries[0, :2] = 0.0
    batch.passages[3, :2] = 0.0
    inputs = batch.queries.requires_grad_(), batch.passages.requires_grad_()
    loss = wide(CombinedObjective, matryoshka_dimensions=[2])._objective_in_full_precision(batch)["loss"]
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(loss, inputs))


def test_one_dimension_is_enough_to_be_a_prefix():
    parts = wide(MarginMSE, matryoshka_dimensions=[1])._objective_in_full_precision(
        encoded(random_example(1, "normal"))
    )
    assert parts.keys() == {"loss", "loss_dim5", "loss_dim1"}


@pytest.mark.parametrize("dimensions", [[5], [0], [3, 3], [], [-1], [384, 2]])
def test_dimensions_out_of_range_are_an_error_with_their_values(dimensions):
    with pytest.raises(InputError, match=rf"matryoshka_dimensions is \[{', '.join(map(str, dimensions))}\].*1 to 4"):
        wide(InfoNCE, matryoshka_dimensions=tuple(dimensions))


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -1.0], [1.0, math.inf], []])
def test_wrong_weights_are_an_error_with_their_values(weights):
    values = ", ".join(map(str, weights))
    with pytest.raises(InputError, match=rf"matryoshka_weights is \[{values}\].* for each of matryoshka_dimensions"):
        wide(InfoNCE, matryoshka_dimensions=[3, 2], matryoshka_weights=tuple(weights))
