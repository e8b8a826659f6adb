"""Embedding regression against plain loops, finite differences and its limits; the projection's least squares."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from datamodules.caches import embed
from helpers.loss_examples import assert_close, encoded, loss_of, module, random_example
from retriever.batch import BatchNeeds
from retriever.encoder.projection import before_projection, fit, least_squares, project
from retriever.errors import InputError
from retriever.losses.embedding import cosine_distance, squared_distance
from retriever.objectives import EmbeddingRegression
from retriever.objectives.embedding_regression import DISTANCES


def squared(x, t):
    return math.fsum((a - b) ** 2 for a, b in zip(x, t, strict=True))


def cosine(x, t):
    lengths = math.sqrt(squared(x, [0] * len(x))) * math.sqrt(squared(t, [0] * len(t)))
    return 1 - math.fsum(a * b for a, b in zip(x, t, strict=True)) / lengths


REFERENCES = {"squared": squared, "cosine": cosine}


def reference(example, distance="squared", passage_weight=1.0):
    """The mean over queries, list by list; the teacher has the same vectors, backwards."""
    losses = []
    for query, pairs in zip(example.queries, example.lists, strict=True):
        passages = [REFERENCES[distance](x, x[::-1]) for x in (example.passages[key] for key, _ in pairs)]
        of_passages = passage_weight * math.fsum(passages) / len(passages)
        losses.append(REFERENCES[distance](query, query[::-1]) + of_passages)
    return math.fsum(losses) / len(losses)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("weight", [0.0, 1.0, 0.25])
def test_it_equals_the_loop_over_queries_and_their_lists(distance, weight):
    for seed in range(4):
        example = random_example(seed, "normal")
        batch = encoded(example, dtype=torch.float64, garbage=1e30, seed=seed)
        parts = module(EmbeddingRegression, distance=distance, passage_weight=weight).objective(batch)
        assert parts["loss"].dtype == torch.float64
        assert_close(parts["loss"], reference(example, distance, weight), 1e-12)
        alone = module(EmbeddingRegression, distance=distance, train_passage_encoder=False, passage_weight=weight)
        assert_close(alone.objective(batch)["loss"], reference(example, distance, 0.0), 1e-12)
        if weight:
            assert_close(parts["queries"] + weight * parts["passages"], parts["loss"].item(), 1e-12)


@pytest.mark.parametrize("distance", DISTANCES.values())
def test_half_precision_is_computed_with_in_float32(distance):
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 300, dtype=torch.float64), torch.randn(4, 300, dtype=torch.float64)
    halves = student.half(), teacher.half()
    found = distance(*halves)
    assert found.dtype == torch.float32
    assert_close(found, distance(*(half.double() for half in halves)).tolist(), 1e-6)


def test_of_unit_vectors_one_distance_is_twice_the_other_and_lengths_count_in_one_alone():
    x, t = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)).unbind()
    x, t = (torch.nn.functional.normalize(rows, dim=1) for rows in (x, t))
    assert_close(squared_distance(x, t), (2 * cosine_distance(x, t)).tolist(), 1e-5)
    assert_close(cosine_distance(3 * x, t), cosine_distance(x, t).tolist(), 1e-5)
    assert_close(squared_distance(3 * t, t), [4.0] * 5, 1e-5)
    assert squared_distance(x.bfloat16(), t).dtype == cosine_distance(x.bfloat16(), t.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("distance", DISTANCES)
def test_gradients_are_those_of_finite_differences(distance):
    batch = encoded(random_example(1, "normal"), dtype=torch.float64)
    chosen = module(EmbeddingRegression, distance=distance, passage_weight=0.5)

    def loss(queries, passages):
        return chosen.objective(replace(batch, queries=queries, passages=passages))["loss"]

    assert gradcheck(loss, (batch.queries.requires_grad_(), batch.passages.requires_grad_()))


def test_the_teacher_is_asked_for_and_scores_are_not_looked_at():
    needs = BatchNeeds(guide=True, texts_alone=True)
    assert module(EmbeddingRegression).needs == needs
    assert module(EmbeddingRegression, train_passage_encoder=False).needs == replace(needs, frozen_passages=True)
    batch = encoded(random_example(2))
    value = loss_of(EmbeddingRegression, batch).item()
    assert loss_of(EmbeddingRegression, replace(batch, teacher_scores=batch.teacher_scores + 1)).item() == value
    for lacks in ({"guide_queries": None}, {"guide_passages": None}):
        with pytest.raises(InputError, match=r"data\.needs = module\.needs"):
            loss_of(EmbeddingRegression, replace(batch, **lacks))
    with pytest.raises(InputError, match="4 dimensions and the teacher's 3: project"):
        loss_of(EmbeddingRegression, replace(batch, guide_queries=batch.guide_queries[:, :3]))
    with pytest.raises(InputError, match=r"module\.passage_weight is -1"):
        module(EmbeddingRegression, passage_weight=-1)
    with pytest.raises(InputError, match=r"module\.distance"):
        module(EmbeddingRegression, distance="manhattan")


def test_prefixes_are_drawn_to_the_teachers_prefixes(tiny_encoder):
    batch = encoded(random_example(3, "normal"), dtype=torch.float64)
    wide = {n: torch.nn.functional.pad(getattr(batch, n), (0, 27), value=0.1) for n in ("queries", "passages")}
    wide |= {f"guide_{n}": torch.nn.functional.normalize(v.flip(1), dim=1) for n, v in wide.items()}
    batch = replace(batch, **wide)
    parts = EmbeddingRegression(tiny_encoder, matryoshka_dimensions=[4])._objective_in_full_precision(batch)
    cut = {n: torch.nn.functional.normalize(getattr(batch, n)[:, :4], dim=1) for n in wide}
    assert_close(parts["loss_dim4"], loss_of(EmbeddingRegression, replace(batch, **cut)).item(), 1e-12)


def test_least_squares_finds_a_map_that_is_there_and_shrinks_where_there_is_none():
    random = np.random.default_rng(0)
    x, wanted = random.normal(size=(300, 6)), random.normal(size=(6, 9))
    found = least_squares(x, x @ wanted)
    assert found.dtype == np.float32 and np.allclose(found, wanted, atol=1e-4)
    noise = random.normal(size=(40, 9))
    few = least_squares(x[:40], noise)
    plain = np.linalg.lstsq(x[:40], noise, rcond=None)[0]
    assert np.linalg.norm(few) < 0.9 * np.linalg.norm(plain)
    # what is left of it is a ridge's: its gradient along each axis is as large as the penalty says
    gradient = x[:40].T @ (noise - x[:40] @ few)
    penalties = (gradient * few).sum() / (few**2).sum()
    assert np.allclose(gradient, penalties * few, atol=1e-3 * np.abs(gradient).max())


def test_a_projected_encoder_is_fitted_from_what_it_was(tiny_encoder):
    tokens = tiny_encoder.tokenize(["a text", "another one of a few words", "risk of aspirin"], "query")
    plain = embed(tokens, tiny_encoder, 4096)
    assert project(tiny_encoder, 48) is tiny_encoder and (tiny_encoder.dimension, len(tiny_encoder.head)) == (48, 1)
    before = before_projection(tiny_encoder)
    assert (before.dimension, len(before.head), len(tiny_encoder.head)) == (32, 0, 1)
    assert np.array_equal(embed(tokens, before, 4096), plain) and tiny_encoder.projection == "unfitted"
    wanted = np.random.default_rng(0).normal(size=(3, 48)).astype(np.float32)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    fit(tiny_encoder, plain, wanted)
    assert tiny_encoder.projection == "fitted"
    expected = plain @ least_squares(plain, wanted)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.allclose(embed(tokens, tiny_encoder, 4096), expected, atol=1e-5)
    tiny_encoder.spec = replace(tiny_encoder.spec, truncate_dim=20)
    with pytest.raises(InputError, match=r"encoder\.truncate_dim is 20, .* projected to the 48"):
        project(tiny_encoder, 48)
