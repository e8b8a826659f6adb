"""Global orthogonal regularisation against plain loops, finite differences and sentence-transformers' own."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.autograd import gradcheck

from helpers.loss_examples import assert_close, encoded, loss_of, module, random_example
from retriever.losses.orthogonal import global_orthogonal
from retriever.objectives import ListwiseDistillation


def reference(rows):
    """M₁² + max(0, M₂ − 1/D), pair by pair."""
    products = [
        math.fsum(a * b for a, b in zip(x, y, strict=True))
        for i, x in enumerate(rows)
        for j, y in enumerate(rows)
        if i != j
    ]
    if not products:
        return 0.0
    mean, square = math.fsum(products) / len(products), math.fsum(p * p for p in products) / len(products)
    return mean**2 + max(0.0, square - 1 / len(rows[0]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("count", "width"), [(1, 3), (2, 1), (2, 4), (5, 3), (40, 8)])
def test_it_equals_the_loop_over_all_pairs(count, width, dtype):
    for seed in range(4):
        rows = torch.randn(count, width, dtype=dtype, generator=torch.Generator().manual_seed(seed))
        rows[-1] = rows[0]  # a duplicate is another row
        value = global_orthogonal(rows)
        assert value.dtype == dtype
        assert_close(value, reference(rows.double().tolist()), 1e-9 if dtype == torch.float64 else 1e-4)


def test_orthogonal_rows_have_none_and_a_single_point_has_most():
    assert global_orthogonal(torch.eye(4)).item() == 0.0  # M₂ = 0 < 1/D is not rewarded
    assert_close(global_orthogonal(torch.ones(3, 4) / 2), 1 + 1 - 1 / 4)
    assert global_orthogonal(torch.ones(1, 4, dtype=torch.bfloat16)).dtype == torch.float32


def test_gradients_are_those_of_finite_differences():
    rows = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rows[5] = rows[0]
    assert gradcheck(global_orthogonal, (rows.requires_grad_(),))


@pytest.mark.slow
def test_it_is_that_of_sentence_transformers():
    from sentence_transformers.sentence_transformer.losses import GlobalOrthogonalRegularizationLoss

    rows = torch.nn.functional.normalize(torch.randn(30, 8, generator=torch.Generator().manual_seed(2)) + 0.5, dim=1)
    theirs = GlobalOrthogonalRegularizationLoss(None).compute_gor(rows)
    assert_close(global_orthogonal(rows), sum(t.item() for t in theirs), 1e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_any_objective_takes_it_for_queries_and_trained_passages(frozen):
    example = random_example(2)
    batch = encoded(example)
    plain = loss_of(ListwiseDistillation, batch)
    objective = module(ListwiseDistillation, orthogonal_weight=0.5, train_passage_encoder=not frozen)
    parts = objective._objective_in_full_precision(batch)
    term = reference(example.queries) + (0.0 if frozen else reference(list(example.passages.values())))
    assert_close(parts["orthogonal"], term)
    assert_close(parts["loss"], plain.item() + 0.5 * term)
    twice = replace(encoded(example, copies=2))
    assert_close(objective._objective_in_full_precision(twice)["orthogonal"], term)  # two ranks' rows of one passage
    assert "orthogonal" not in module(ListwiseDistillation)._objective_in_full_precision(batch)
