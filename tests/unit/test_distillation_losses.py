"""Divergences over a list, and the term that holds the batch's other passages, against plain float64 references."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.autograd import gradcheck

from helpers.loss_examples import (
    GARBAGE,
    KINDS,
    STUDENT,
    TEACHER,
    Example,
    assert_close,
    encoded,
    loss_of,
    module,
    random_example,
    score_table,
)
from helpers.loss_references import reference_kl, reference_log_softmax
from retriever.errors import InputError
from retriever.losses.listwise import (
    excess_of_unknown,
    listwise_distillation,
    listwise_jensen_shannon,
    listwise_reverse_kl,
    masked_log_softmax,
)
from retriever.losses.ranking import approx_ndcg, margin_mse
from retriever.objectives import InBatchDistillation, ListwiseDistillation

# ---------------------------------------------------------------------------------------------------- references


def reference_reverse_kl(student_scores, teacher_scores, temperature=STUDENT, teacher_temperature=TEACHER):
    return reference_kl(teacher_scores, student_scores, teacher_temperature, temperature)


def reference_jensen_shannon(student_scores, teacher_scores, temperature=STUDENT, teacher_temperature=TEACHER):
    """The entropy of the mixture less the mean entropy."""
    q = [math.exp(x) for x in reference_log_softmax(student_scores, temperature)]
    p = [math.exp(x) for x in reference_log_softmax(teacher_scores, teacher_temperature)]

    def entropy(distribution):
        return -math.fsum(x * math.log(x) for x in distribution if x > 0)

    middle = entropy([(a + b) / 2 for a, b in zip(p, q, strict=True)])
    return middle - (entropy(p) + entropy(q)) / 2


def log_sum(logits):
    top = max(logits)
    return top + math.log(math.fsum(math.exp(x - top) for x in logits))


def reference_excess(unknown, scores, teacher, temperature=STUDENT, teacher_temperature=TEACHER, margin=0.0):
    """Of one query: the student's scores of unknown passages and of the list, and the list's teacher scores."""
    student_list = log_sum([s / temperature for s in scores])
    teacher_list = log_sum([t / teacher_temperature for t in teacher])
    bound = (min(teacher) - margin) / teacher_temperature - teacher_list
    odds = [s / temperature - student_list for s in unknown]
    return log_sum([0.0, *(max(x, bound) for x in odds)]) - log_sum([0.0, *(bound for _ in odds)])


def reference_in_batch(example, share=None, **options):
    """Mean of the listwise divergence and of the excess, over the queries of an Example."""
    everywhere = {key for pairs in example.lists for key, _ in pairs}
    divergences, excesses = [], []
    for q, pairs in enumerate(example.lists):
        scores, teacher = [example.score(q, key) for key, _ in pairs], [score for _, score in pairs]
        known = {key for key, _ in pairs} | set(example.labelled[q])
        unknown = [example.score(q, key) for key in everywhere - known]
        if share is not None:
            unknown = [s for s in unknown if s <= scores[0] - (1 - share) * abs(scores[0])]
        divergences.append(reference_kl(scores, teacher, STUDENT, TEACHER))
        excesses.append(reference_excess(unknown, scores, teacher, **options))
    count = len(example.lists)
    return math.fsum(divergences) / count, math.fsum(excesses) / count


DIVERGENCES = {
    "reverse_kl": (listwise_reverse_kl, reference_reverse_kl),
    "jensen_shannon": (listwise_jensen_shannon, reference_jensen_shannon),
}


# --------------------------------------------------------------------------------------------------- divergences


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("teacher_kind", ["cosines", "ties", "large"])
@pytest.mark.parametrize("temperatures", [(STUDENT, TEACHER), (0.01, 0.01), (1.0, 0.05)])
@pytest.mark.parametrize("garbage", GARBAGE)
def test_divergences_are_those_of_the_real_entries(name, kind, teacher_kind, temperatures, garbage):
    divergence, reference = DIVERGENCES[name]
    scores, teacher = score_table(kind, 0), score_table(teacher_kind, 1)
    lengths = [1, 2, 5, 11, 12]
    mask = torch.tensor([[p < n for p in range(12)] for n in lengths])
    value = divergence(scores.masked_fill(~mask, -garbage), teacher.masked_fill(~mask, garbage), mask, *temperatures)
    assert value.dtype == torch.float32
    rows = zip(scores.tolist(), teacher.tolist(), lengths, strict=True)
    assert_close(value, [reference(s[:n], t[:n], *temperatures) for s, t, n in rows])


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("lengths", [[6, 6, 6, 6], [6, 4, 2, 1]], ids=["full", "short"])
def test_divergence_gradients_of_scores_and_temperature_in_float64(name, lengths):
    torch.manual_seed(0)
    scores = (torch.randn(4, 6, dtype=torch.float64) * 2 * STUDENT).requires_grad_()
    tau = torch.tensor(STUDENT, dtype=torch.float64, requires_grad=True)
    teacher = torch.rand(4, 6, dtype=torch.float64)
    mask = torch.tensor([[p < n for p in range(6)] for n in lengths])
    divergence = DIVERGENCES[name][0]
    assert gradcheck(lambda s, t: divergence(s, teacher, mask, t, TEACHER), (scores, tau))
    gradient = torch.autograd.grad(divergence(scores, teacher, mask, tau, TEACHER).sum(), scores)[0]
    assert gradient.abs().max() > 1e-2 and (gradient[~mask] == 0).all()


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("garbage", GARBAGE)
def test_divergence_gradients_are_finite_at_extreme_scores(name, garbage):
    scores = torch.tensor([[1.0, -1.0, 1e3, garbage], [0.3, garbage, garbage, garbage]], requires_grad=True)
    teacher = torch.tensor([[0.0, 1e3, -1e3, garbage], [0.7, garbage, garbage, garbage]])
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    tau = torch.tensor(0.01, requires_grad=True)
    value = DIVERGENCES[name][0](scores, teacher, mask, tau, 0.01)
    value.sum().backward()
    assert torch.isfinite(value).all() and torch.isfinite(scores.grad).all() and torch.isfinite(tau.grad)
    assert value[1] == 0 and (scores.grad[~mask] == 0).all() and (scores.grad[1] == 0).all()


@pytest.mark.parametrize("divergence", [listwise_distillation, listwise_reverse_kl, listwise_jensen_shannon, "excess"])
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
def test_no_number_where_masked_reaches_loss_or_gradients(divergence, garbage):
    mask = torch.tensor([[False, True, False, True, True]])
    tau = torch.tensor(STUDENT, requires_grad=True)
    rows = torch.tensor([[0.0, 0.5, 0.0, 0.25, 0.55], [0.0, 0.125, 0.0, 0.75, 0.5]])
    pool = torch.tensor([[0.6, 0.5]]), torch.ones(2), torch.zeros(1, 2, dtype=torch.bool)
    loss = (lambda *rest: excess_of_unknown(*pool, *rest)) if divergence == "excess" else divergence
    found = []
    for kept in (rows.masked_fill(~mask, garbage), rows[:, mask[0]]):
        scores = kept[:1].clone().requires_grad_()
        real = mask if kept.shape[1] == 5 else mask[:, mask[0]]
        value = loss(scores, kept[1:], real, tau, TEACHER)
        gradient, slope = torch.autograd.grad(value.sum(), (scores, tau))
        assert (gradient[~real] == 0).all()
        found.append(torch.cat([value, slope.unsqueeze(0), gradient[real]]))
    assert found[0].abs().min() > 0
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_an_objective_of_each_divergence_is_its_mean(name):
    reference = DIVERGENCES[name][1]
    for seed in range(6):
        example = random_example(seed, short=seed % 3 > 0)
        expected = [
            reference([example.score(q, key) for key, _ in pairs], [t for _, t in pairs], 0.2, 0.1)
            for q, pairs in enumerate(example.lists)
        ]
        arguments = {"divergence": name, "temperature": 0.2, "teacher_temperature": 0.1}
        value = loss_of(ListwiseDistillation, encoded(example), **arguments)
        assert_close(value, math.fsum(expected) / len(expected))


def test_a_wrong_divergence_is_an_error_that_names_the_valid_ones():
    with pytest.raises(InputError, match=r"module\.divergence is 'revers_kl'.*'kl'.*Did you mean 'reverse_kl'"):
        module(ListwiseDistillation, divergence="revers_kl")


# ----------------------------------------------------------------------------------------------------- in the batch


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("teacher_kind", ["cosines", "ties", "large"])
@pytest.mark.parametrize("temperatures", [(STUDENT, TEACHER), (0.01, 0.01), (1.0, 0.05)])
@pytest.mark.parametrize("margin", [0.0, 0.2, math.inf])
def test_excess_is_that_of_a_literal_pool(kind, teacher_kind, temperatures, margin):
    lengths = [1, 2, 5, 11, 12]
    mask = torch.tensor([[p < n for p in range(12)] for n in lengths])
    counts = [1, 0, 1, 2, 1, 1, 0.5, 0.5, 1, 1, 1, 3]
    for seed in range(3):
        garbage = GARBAGE[seed]
        scores, teacher, pool = (
            score_table(kind, seed),
            score_table(teacher_kind, seed + 9),
            score_table(kind, seed + 20),
        )
        pool[:, 7] = pool[:, 6]  # one passage in two rows
        torch.manual_seed(seed)
        excluded = torch.rand(pool.shape) < 0.3
        excluded[:, 7] = excluded[:, 6]
        excluded[-1] = seed == 0  # nothing unknown is left
        value = excess_of_unknown(
            pool,
            torch.tensor(counts),
            excluded,
            scores.masked_fill(~mask, -garbage),
            teacher.masked_fill(~mask, garbage),
            mask,
            *temperatures,
            margin,
        )
        assert value.dtype == torch.float32 and (value >= 0).all()
        expected = []
        for s, t, u, out, n in zip(
            scores.tolist(), teacher.tolist(), pool.tolist(), excluded.tolist(), lengths, strict=True
        ):
            unknown = [u[p] for p in range(12) if not out[p] and p != 7 for _ in range(math.ceil(counts[p]))]
            expected.append(reference_excess(unknown, s[:n], t[:n], *temperatures, margin))
        assert_close(value, expected, tolerance=3e-6)


def test_excess_of_counts_is_as_exact_as_the_scores():
    scores, teacher, pool = (score_table("cosines", seed).double() for seed in range(3))
    every, none = torch.ones(scores.shape, dtype=torch.bool), torch.zeros(pool.shape, dtype=torch.bool)
    value = excess_of_unknown(pool, torch.full((12,), 3), none, scores, teacher, every, 0.5, 0.5)
    rows = zip(pool.tolist(), scores.tolist(), teacher.tolist(), strict=True)
    assert_close(value, [reference_excess(u * 3, s, t, 0.5, 0.5) for u, s, t in rows], tolerance=1e-12)


@pytest.mark.parametrize("lengths", [[6, 6, 6, 6], [6, 4, 2, 1]], ids=["full", "short"])
@pytest.mark.parametrize("margin", [0.0, math.inf])
def test_excess_gradients_in_float64(lengths, margin):
    torch.manual_seed(0)
    scores, lists = ((torch.randn(4, 6, dtype=torch.float64) * STUDENT).requires_grad_() for _ in range(2))
    tau = torch.tensor(STUDENT, dtype=torch.float64, requires_grad=True)
    teacher = torch.rand(4, 6, dtype=torch.float64)
    counts, excluded = torch.tensor([1.0, 1, 0, 1, 0.5, 0.5]), torch.rand(4, 6) < 0.3
    mask = torch.tensor([[p < n for p in range(6)] for n in lengths])

    def excess(scores, lists, tau):
        return excess_of_unknown(scores, counts, excluded, lists, teacher, mask, tau, TEACHER, margin)

    assert gradcheck(excess, (scores, lists, tau))
    gradients = torch.autograd.grad(excess(scores, lists, tau).sum(), (scores, lists))
    assert (gradients[0] >= 0).all() and (gradients[0] > 1e-2).any() and (gradients[0][excluded] == 0).all()
    assert (gradients[1][~mask] == 0).all() and (gradients[1] <= 0).all()


def test_unknown_passages_below_the_bound_have_neither_loss_nor_gradient_and_those_above_both():
    scores = torch.tensor([[0.5, 0.499, 0.9]], requires_grad=True)
    lists = torch.tensor([[0.5, 0.5]], requires_grad=True)
    # the teacher ties the list: an unknown passage may stand as high as either, and no higher
    arguments = lists, torch.tensor([[0.4, 0.4]]), torch.ones(1, 2, dtype=torch.bool), STUDENT, TEACHER
    counts = torch.ones(3)
    within = excess_of_unknown(scores, counts, torch.tensor([[True, False, True]]), *arguments)
    assert within.item() == 0.0
    value = excess_of_unknown(scores, counts, torch.tensor([[True, False, False]]), *arguments)
    value.sum().backward()
    assert value > 5 and scores.grad[0, :2].tolist() == [0.0, 0.0] and scores.grad[0, 2] > 10
    assert (lists.grad < -5).all()


@pytest.mark.parametrize("vectors", ["grid", "signs", "large"])
@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("options", [{}, {"margin": 0.25}, {"margin": math.inf}, {"share": 0.931}])
def test_in_batch_distillation_equals_the_enumeration_of_unknown_passages(vectors, copies, options):
    names = {"margin": "unknown_margin", "share": "false_negative_share"}
    arguments = {names[name]: value for name, value in options.items()}
    for seed in range(8):
        example = random_example(seed, vectors, short=seed % 3 > 0)
        divergence, excess = reference_in_batch(example, **options)
        batch = encoded(example, garbage=GARBAGE[seed % 3], seed=seed, labels=seed % 2 > 0, copies=copies)
        parts = module(InBatchDistillation, unknown_weight=0.5, **arguments).objective(batch)
        assert set(parts) == {"loss", "distillation", "unknown"}
        assert_close(parts["distillation"], divergence)
        assert_close(parts["unknown"], excess, tolerance=3e-6)
        assert_close(parts["loss"], divergence + 0.5 * excess, tolerance=3e-6)


@pytest.mark.parametrize("share", [None, 0.0, 0.9, 1.0])
def test_in_batch_distillation_below_0_and_beside_shorter_lists(share):
    # the second list is shorter: what fills it up is neither its first nor makes a passage known
    example = Example(
        queries=[[1.0], [1.0]],
        passages={1: [0.52], 2: [0.5], 3: [0.3], 4: [0.48]},
        lists=[[(1, -0.25), (4, -0.375), (3, -0.5)], [(2, -0.25)]],
        labelled=[[1], [2]],
    )
    divergence, excess = reference_in_batch(example, share)
    for seed in range(4):
        parts = module(InBatchDistillation, unknown_weight=0, false_negative_share=share).objective(
            encoded(example, seed=seed)
        )
        assert_close(parts["unknown"], excess, tolerance=3e-6)
        assert_close(parts["loss"], divergence)


def test_in_batch_distillation_of_one_list_is_plain_distillation():
    example = random_example(3, "normal", queries=1)
    gradients = []
    for objective in (ListwiseDistillation, InBatchDistillation):
        batch = encoded(example)
        inputs = batch.queries.requires_grad_(), batch.passages.requires_grad_()
        loss = loss_of(objective, batch)
        gradients.append((loss, *torch.autograd.grad(loss, inputs)))
    for plain, ours in zip(*gradients, strict=True):
        assert torch.equal(plain, ours)


def test_in_batch_distillation_that_takes_unknown_for_irrelevant_is_one_divergence_over_the_pool():
    example = random_example(5)
    everywhere = sorted({key for pairs in example.lists for key, _ in pairs})
    expected = []
    for q, pairs in enumerate(example.lists):
        keys = [key for key, _ in pairs] + [key for key in everywhere if key not in dict(pairs)]
        log_q = reference_log_softmax([example.score(q, key) for key in keys], STUDENT)
        log_p = reference_log_softmax([score for _, score in pairs], TEACHER)
        expected.append(math.fsum(math.exp(p) * (p - log_q[i]) for i, p in enumerate(log_p)))
    batch = encoded(replace(example, labelled=[[-1]] * 6), labels=False)
    value = loss_of(InBatchDistillation, batch, unknown_margin=math.inf)
    assert_close(value, math.fsum(expected) / 6)


def test_in_batch_distillation_notices_drift_that_distillation_does_not():
    # both queries order their own lists as the teacher does, but score the other's passages higher
    example = Example(
        queries=[[1.0, 0.0], [0.0, 1.0]],
        passages={1: [0.2, 0.9], 2: [0.15, 0.9], 3: [0.9, 0.2], 4: [0.9, 0.15]},
        lists=[[(1, 0.6), (2, 0.3)], [(3, 0.6), (4, 0.3)]],
        labelled=[[1], [3]],
    )
    batch = encoded(example)
    batch.queries.requires_grad_()
    parts = module(InBatchDistillation).objective(batch)
    assert_close(parts["distillation"], 0.0)
    assert parts["unknown"] > 10
    (gradient,) = torch.autograd.grad(parts["loss"], batch.queries)
    better = encoded(replace(example, queries=(batch.queries.detach() - 0.05 * gradient).tolist()))
    assert module(InBatchDistillation).objective(better)["unknown"] < parts["unknown"]


def test_in_batch_distillation_gradients_reach_queries_and_passages_in_float64():
    batch = encoded(random_example(0, "normal", queries=3, passages=7, length=4), dtype=torch.float64)
    chosen = module(InBatchDistillation)

    def loss(queries, passages):
        return chosen.objective(replace(batch, queries=queries, passages=passages))["unknown"]

    inputs = (batch.queries.clone().requires_grad_(), batch.passages.clone().requires_grad_())
    assert gradcheck(loss, inputs)
    assert all(g.abs().max() > 1e-3 for g in torch.autograd.grad(loss(*inputs), inputs))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"unknown_weight": -1.0}, r"unknown_weight is -1\.0 "),
        ({"unknown_weight": math.inf}, "unknown_weight is inf "),
        ({"unknown_margin": -0.5}, r"unknown_margin -0\.5;"),
        ({"unknown_margin": math.nan}, "unknown_margin nan;"),
        ({"false_negative_share": 95}, "false_negative_share is 95;"),
        ({"false_negative_share": 1.01}, r"false_negative_share is 1\.01;"),
    ],
)
def test_wrong_options_are_errors_with_their_values(arguments, message):
    with pytest.raises(InputError, match=message):
        module(InBatchDistillation, **arguments)


def test_an_infinity_where_masked_does_not_reach_the_temperatures_gradient():
    temperature = torch.tensor(0.05, requires_grad=True)
    mask = torch.tensor([[True, True, False]])
    masked_log_softmax(torch.tensor([[0.3, 0.1, math.inf]]), mask, temperature)[mask].sum().backward()
    assert torch.isfinite(temperature.grad)


def test_a_masked_entry_is_never_the_best_of_negative_scores():
    scores, teacher = torch.tensor([[-0.5, -0.1, 9.0]]), torch.tensor([[-0.4, -0.2, 9.0]])
    mask = torch.tensor([[True, True, False]])
    pool = torch.tensor([[0.2]]), torch.ones(1), torch.zeros(1, 1, dtype=torch.bool)
    excess = excess_of_unknown(*pool, scores, teacher, mask, 0.1, 0.3)
    torch.testing.assert_close(excess, excess_of_unknown(*pool, scores[:, :2], teacher[:, :2], mask[:, :2], 0.1, 0.3))
    error = margin_mse(scores, teacher, mask, 0.1, 0.3)
    torch.testing.assert_close(error, margin_mse(scores[:, :2], teacher[:, :2], mask[:, :2], 0.1, 0.3))


def test_half_precision_of_pool_and_list_is_computed_in_float32():
    generator = torch.Generator().manual_seed(0)
    scores, listed, teacher = (torch.rand(3, 8, generator=generator).bfloat16() for _ in range(3))
    rest = torch.ones(3, 8, dtype=torch.bool), 0.05, 0.3
    counts, excluded = torch.ones(8), torch.zeros(3, 8, dtype=torch.bool)
    found = []
    for pool, own in ((scores, listed), (scores.float(), listed.float())):
        pool, own = pool.clone().requires_grad_(), own.clone().requires_grad_()
        value = excess_of_unknown(pool, counts, excluded, own, teacher.to(own.dtype), *rest)
        found.append((value, *(g.bfloat16() for g in torch.autograd.grad(value.sum(), (pool, own)))))
    for half, whole in zip(*found, strict=True):  # gradients are rounded once
        torch.testing.assert_close(half, whole, atol=0, rtol=0)
    half, whole = (approx_ndcg(*x, rest[0], 0.1) for x in ((listed, teacher), (listed.float(), teacher.float())))
    torch.testing.assert_close(half, whole, atol=0, rtol=0)
