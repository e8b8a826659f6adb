"""Margin, pair and nDCG losses against plain float64 loops over the pairs and positions of a list."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.utils.checkpoint import checkpoint

from helpers.loss_examples import (
    GARBAGE,
    KINDS,
    STUDENT,
    TEACHER,
    assert_close,
    encoded,
    loss_of,
    module,
    random_example,
    score_table,
)
from retriever.errors import InputError
from retriever.losses.ranking import LAMBDA_WEIGHTS, approx_ndcg, lambda_loss, margin_mse, ranknet
from retriever.objectives import ApproxNDCG, LambdaLoss, MarginMSE, RankNet

POSITIONS = 0.01
LENGTHS = [1, 2, 5, 11, 12]


# ---------------------------------------------------------------------------------------------------- references


def softplus(x):
    """log(1 + e^x)."""
    return x + math.log1p(math.exp(-x)) if x > 0 else math.log1p(math.exp(x))


def reference_margin_mse(scores, teacher, temperature=STUDENT, teacher_temperature=TEACHER):
    best = teacher.index(max(teacher))
    errors = []
    for j in range(len(scores)):
        if j != best:
            student_margin = (scores[best] - scores[j]) / temperature
            errors.append((student_margin - (teacher[best] - teacher[j]) / teacher_temperature) ** 2)
    return math.fsum(errors) / len(errors) if errors else 0.0


def reference_ranknet(scores, teacher, temperature=STUDENT, weighted=False):
    costs = []
    for i in range(len(scores)):
        for j in range(len(scores)):
            if teacher[i] > teacher[j]:
                weight = teacher[i] - teacher[j] if weighted else 1.0
                costs.append(weight * softplus((scores[j] - scores[i]) / temperature))
    return math.fsum(costs) / len(costs) if costs else 0.0


def dcg(gains, positions):
    return math.fsum(gain / math.log2(1 + position) for gain, position in zip(gains, positions, strict=True))


def ideal_dcg(teacher):
    return dcg(sorted(teacher, reverse=True), range(1, len(teacher) + 1))


def reference_approx_ndcg(scores, teacher, temperature=POSITIONS):
    ideal = ideal_dcg(teacher)
    if ideal == 0:
        return 0.0
    positions = [
        1 + math.fsum(math.exp(-softplus((a - b) / temperature)) for j, b in enumerate(scores) if j != i)
        for i, a in enumerate(scores)
    ]
    return 1 - dcg(teacher, positions) / ideal


def ranks_of(scores):
    """Places from 1; of tied passages the first comes first."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    return [order.index(i) + 1 for i in range(len(scores))]


def reference_lambda_loss(scores, teacher, temperature=STUDENT, weights="ndcg_loss2"):
    ideal = ideal_dcg(teacher)
    ranks = ranks_of(scores)
    costs = []
    for i in range(len(scores)):
        for j in range(len(scores)):
            if teacher[i] > teacher[j]:
                if weights == "lambdarank":
                    changed = list(ranks)
                    changed[i], changed[j] = ranks[j], ranks[i]
                    weight = abs(dcg(teacher, changed) - dcg(teacher, ranks)) / ideal
                else:
                    apart = abs(ranks[i] - ranks[j])
                    discount = 1 / math.log2(1 + apart) - 1 / math.log2(2 + apart)
                    weight = discount * (teacher[i] - teacher[j]) / ideal
                costs.append(weight * softplus((scores[j] - scores[i]) / temperature) / math.log(2))
    return math.fsum(costs)


LOSSES = {
    "margin_mse": (lambda s, t, m, tau: margin_mse(s, t, m, tau, TEACHER), reference_margin_mse),
    "ranknet": (ranknet, reference_ranknet),
    "ranknet, weighted": (
        lambda s, t, m, tau: ranknet(s, t, m, tau, weighted=True),
        lambda s, t, tau: reference_ranknet(s, t, tau, weighted=True),
    ),
    "approx_ndcg": (approx_ndcg, reference_approx_ndcg),
    "ndcg_loss2": (lambda_loss, reference_lambda_loss),
    "lambdarank": (
        lambda s, t, m, tau: lambda_loss(s, t, m, tau, "lambdarank"),
        lambda s, t, tau: reference_lambda_loss(s, t, tau, "lambdarank"),
    ),
}


# ------------------------------------------------------------------------------------------------- pure functions


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("teacher_kind", ["cosines", "ties"])
@pytest.mark.parametrize("temperature", [POSITIONS, STUDENT, 1.0])
def test_losses_equal_loops_over_the_real_entries(name, kind, teacher_kind, temperature):
    loss, reference = LOSSES[name]
    for seed in range(3):
        scores, teacher = score_table(kind, seed), score_table(teacher_kind, seed + 9).abs()
        mask = torch.tensor([[p < n for p in range(12)] for n in LENGTHS])
        garbage = GARBAGE[seed]
        value = loss(scores.masked_fill(~mask, -garbage), teacher.masked_fill(~mask, garbage), mask, temperature)
        assert value.dtype == torch.float32
        rows = zip(scores.tolist(), teacher.tolist(), LENGTHS, strict=True)
        assert_close(value, [reference(s[:n], t[:n], temperature) for s, t, n in rows], tolerance=3e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_mask_entries_that_do_not_stand_last(name):
    loss, reference = LOSSES[name]
    mask = torch.tensor([[False, True, False, True, True]])
    scores, teacher = torch.tensor([[9.0, 0.5, -9.0, 0.25, 0.55]]), torch.tensor([[7.0, 0.125, 3.0, 0.75, 0.5]])
    expected = reference([0.5, 0.25, 0.55], [0.125, 0.75, 0.5], STUDENT)
    assert expected > 1e-3
    assert_close(loss(scores, teacher, mask, STUDENT), expected)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
def test_no_number_where_masked_reaches_loss_or_gradients(name, garbage):
    mask = torch.tensor([[False, True, False, True, True]])
    tau = torch.tensor(STUDENT, requires_grad=True)
    rows = torch.tensor([[0.0, 0.5, 0.0, 0.25, 0.55], [0.0, 0.125, 0.0, 0.75, 0.5]])
    found = []
    for kept in (rows.masked_fill(~mask, garbage), rows[:, mask[0]]):
        scores = kept[:1].clone().requires_grad_()
        real = mask if kept.shape[1] == 5 else mask[:, mask[0]]
        value = LOSSES[name][0](scores, kept[1:], real, tau)
        gradient, slope = torch.autograd.grad(value.sum(), (scores, tau))
        assert (gradient[~real] == 0).all()
        found.append(torch.cat([value, slope.unsqueeze(0), gradient[real]]))
    assert found[0].abs().min() > 0
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["margin_mse", "ranknet", "ranknet, weighted"])
def test_negative_teacher_scores_are_below_no_masked_entry(name):
    loss, reference = LOSSES[name]
    scores, teacher = torch.tensor([[0.5, 0.25, 0.1]]), torch.tensor([[-0.7, -0.2, 0.0]])
    value = loss(scores, teacher, torch.tensor([[True, True, False]]), STUDENT)
    assert_close(value, reference([0.5, 0.25], [-0.7, -0.2], STUDENT))


@pytest.mark.parametrize("weights", LAMBDA_WEIGHTS)
def test_passages_that_the_student_ties_are_ranked_as_they_stand(weights):
    scores, teacher = torch.zeros(1, 40), torch.arange(1.0, 41.0).unsqueeze(0) / 40
    value = lambda_loss(scores, teacher, torch.ones(1, 40, dtype=torch.bool), STUDENT, weights)
    assert_close(value, reference_lambda_loss(scores[0].tolist(), teacher[0].tolist(), STUDENT, weights), 3e-6)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("lengths", [[6, 6, 6, 6], [6, 4, 2, 1]], ids=["full", "short"])
@pytest.mark.parametrize("ties", [False, True])
def test_gradients_of_scores_and_temperature_in_float64(name, lengths, ties):
    torch.manual_seed(0)
    tau = torch.tensor(POSITIONS if name == "approx_ndcg" else STUDENT, dtype=torch.float64, requires_grad=True)
    scores = (torch.randn(4, 6, dtype=torch.float64) * 2 * tau.item()).requires_grad_()
    teacher = torch.rand(4, 6, dtype=torch.float64)
    if ties:
        teacher = (teacher * 3).round() / 3
    mask = torch.tensor([[p < n for p in range(6)] for n in lengths])
    loss = LOSSES[name][0]
    assert gradcheck(lambda s, t: loss(s, teacher, mask, t), (scores, tau))
    gradient = torch.autograd.grad(loss(scores, teacher, mask, tau).sum(), scores)[0]
    assert gradient.abs().max() > 1e-3 and (gradient[~mask] == 0).all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("teacher", [[0.7, 0.0], [0.0, 0.0]])
def test_one_entry_has_no_loss_and_zero_gradients(name, garbage, teacher):
    scores = torch.tensor([[0.3, -garbage]], requires_grad=True)
    tau = torch.tensor(STUDENT, requires_grad=True)
    teacher = torch.tensor([teacher]).index_fill(1, torch.tensor([1]), garbage)
    value = LOSSES[name][0](scores, teacher, torch.tensor([[True, False]]), tau)
    assert value.tolist() == [0.0]
    value.sum().backward()
    assert scores.grad.tolist() == [[0.0, 0.0]] and tau.grad == 0


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "margin_mse"])
@pytest.mark.parametrize("level", [0.0, 0.5])
def test_a_list_that_the_teacher_ties_says_nothing(name, level):
    scores = score_table("cosines", 1).requires_grad_()
    value = LOSSES[name][0](
        scores, torch.full(scores.shape, level), torch.ones(scores.shape, dtype=torch.bool), STUDENT
    )
    if name == "approx_ndcg":  # smooth positions of equal gains still differ from whole ones
        assert (value.abs() < (0.05 if level else 1e-9)).all()
    else:
        assert value.tolist() == [0.0] * len(value)
    value.sum().backward()
    assert torch.isfinite(scores.grad).all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_scores_are_computed_in_float32(name, half):
    scores, teacher = score_table("cosines", 0).to(half), score_table("cosines", 1).abs().to(half)
    loss, reference = LOSSES[name]
    values, gradients = [], []
    for inputs in ((scores, teacher), (scores.float(), teacher.float())):
        inputs = [x.clone().requires_grad_() for x in inputs]
        values.append(loss(*inputs, torch.ones(scores.shape, dtype=torch.bool), STUDENT))
        gradients.append(torch.autograd.grad(values[-1].sum(), inputs, materialize_grads=True, allow_unused=True))
    assert values[0].dtype == torch.float32
    rows = zip(scores.tolist(), teacher.tolist(), strict=True)
    assert_close(values[0], [reference(s, t, STUDENT) for s, t in rows], tolerance=3e-6)
    for in_half, in_full in zip(*gradients, strict=True):
        assert torch.equal(in_half, in_full.to(half))  # rounded once


def test_margin_mse_has_no_loss_where_distillation_has_none():
    teacher = score_table("cosines", 3).abs().double()
    scores = teacher * STUDENT / TEACHER + 0.3
    assert_close(margin_mse(scores, teacher, torch.ones(scores.shape, dtype=torch.bool), STUDENT, TEACHER), [0.0] * 5)


def test_approx_ndcg_with_small_temperatures_is_trec_evals_ndcg():
    for seed in range(5):
        scores, teacher = score_table("cosines", seed), score_table("cosines", seed + 20).abs()
        value = approx_ndcg(scores, teacher, torch.ones(scores.shape, dtype=torch.bool), 1e-6)
        expected = [
            1 - dcg(t, ranks_of(s)) / ideal_dcg(t) for s, t in zip(scores.tolist(), teacher.tolist(), strict=True)
        ]
        assert_close(value, expected)


@pytest.mark.parametrize("loss", [approx_ndcg, lambda_loss])
def test_a_negative_gain_is_an_error_with_its_value_but_not_where_masked(loss):
    scores, teacher = torch.zeros(1, 3), torch.tensor([[1.0, 0.5, -0.25]])
    loss(scores, teacher, torch.tensor([[True, True, False]]), STUDENT)
    with pytest.raises(InputError, match=r"teacher score is -0\.25;.*data\.normalization"):
        loss(scores, teacher, torch.ones(1, 3, dtype=torch.bool), STUDENT)


# ----------------------------------------------------------------------------------------------------- objectives


@pytest.mark.parametrize(
    ("objective", "arguments", "reference"),
    [
        (MarginMSE, {}, reference_margin_mse),
        (
            MarginMSE,
            {"temperature": 0.2, "teacher_temperature": 0.5},
            lambda s, t: reference_margin_mse(s, t, 0.2, 0.5),
        ),
        (RankNet, {}, reference_ranknet),
        (RankNet, {"weighted": True, "temperature": 0.2}, lambda s, t: reference_ranknet(s, t, 0.2, True)),
        (ApproxNDCG, {}, reference_approx_ndcg),
        (ApproxNDCG, {"temperature": 0.2}, lambda s, t: reference_approx_ndcg(s, t, 0.2)),
        (LambdaLoss, {}, reference_lambda_loss),
        (LambdaLoss, {"weights": "lambdarank"}, lambda s, t: reference_lambda_loss(s, t, STUDENT, "lambdarank")),
    ],
)
def test_objectives_are_the_mean_over_the_lists(objective, arguments, reference):
    for seed in range(6):
        example = random_example(seed, short=seed % 3 > 0)
        expected = [
            reference([example.score(q, key) for key, _ in pairs], [score for _, score in pairs])
            for q, pairs in enumerate(example.lists)
        ]
        batch = encoded(example, garbage=GARBAGE[seed % 3], seed=seed, labels=False)
        assert_close(loss_of(objective, batch, **arguments), math.fsum(expected) / len(expected), tolerance=3e-6)


def test_pairs_of_lists_fill_a_block(monkeypatch):
    batch = encoded(random_example(3, short=False))
    batch.queries.requires_grad_()
    calls = []
    monkeypatch.setattr("retriever.losses.query_blocks.BLOCK_NUMBERS", 2 * 6**2)  # the pairs of two of six lists
    monkeypatch.setattr(
        "retriever.losses.query_blocks.checkpoint", lambda *a, **k: calls.append(a) or checkpoint(*a, **k)
    )
    loss_of(RankNet, batch)
    assert [len(rows[0]) for function, *rows in calls if function.__name__ == "list_losses"] == [2, 2, 2]


def test_wrong_weights_are_an_error_that_names_the_valid_ones():
    with pytest.raises(InputError, match=r"module\.weights is 'ndcg_los2'.*Did you mean 'ndcg_loss2'"):
        module(LambdaLoss, weights="ndcg_los2")
