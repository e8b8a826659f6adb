"""Losses and objectives against plain float64 enumerations of the paper's formulas."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch
from torch.autograd import gradcheck
from torch.utils.checkpoint import checkpoint

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
from helpers.loss_references import (
    TAU,
    reference_distillation_objective,
    reference_infonce,
    reference_infonce_objective,
    reference_kl,
    reference_log_softmax,
)
from helpers.objectives import CLASSES, COMPARING, OF_CORPUS, learnable
from retriever.batch import BatchNeeds, membership_mask
from retriever.errors import InputError
from retriever.losses.infonce import above_positive, infonce, likely_false_negatives
from retriever.losses.listwise import listwise_distillation, masked_log_softmax
from retriever.objectives import (
    ApproxNDCG,
    CombinedObjective,
    InBatchDistillation,
    InfoNCE,
    LambdaLoss,
    ListwiseDistillation,
    MarginMSE,
    RankNet,
)
from retriever.objectives.temperature import Temperature

OF_THE_PAPER = [InfoNCE, ListwiseDistillation, CombinedObjective]


# ------------------------------------------------------------------------------------------------------ examples


def example_with_two_queries(first_list, second_list, scores, labelled=((1,), (2,))):
    """Both queries score passage ``key`` with ``scores[key]``."""
    return Example(
        queries=[[1.0], [1.0]],
        passages={key: [score] for key, score in scores.items()},
        lists=[first_list, second_list],
        labelled=[list(keys) for keys in labelled],
    )


def learned_temperatures(objective_module):
    """τ's modules by the submodule that holds them."""
    return {
        name.split(".")[0]: part for name, part in objective_module.named_modules() if isinstance(part, Temperature)
    }


# ------------------------------------------------------------------------------------------------- pure functions


@pytest.mark.parametrize("temperature", [TAU, 0.05, 1.0])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("counted", [None, "per passage", "per query"])
def test_infonce_is_the_positives_share_of_a_literal_pool(kind, temperature, counted):
    for seed in range(4):
        rng = random.Random(seed)
        scores = score_table(kind, seed)
        rows, columns = scores.shape
        positive = [rng.randrange(columns) for _ in range(rows)]
        excluded = [[rng.random() < 0.3 for _ in range(columns)] for _ in range(rows)]
        shared = [rng.randint(0, 4) for _ in range(columns)]
        counts = {
            None: [[1] * columns] * rows,
            "per passage": [shared] * rows,
            "per query": [[rng.randint(0, 4) for _ in range(columns)] for _ in range(rows)],
        }[counted]
        expected = []
        for q, own in enumerate(scores.tolist()):
            negatives = []
            for p in range(columns):
                if p != positive[q] and not excluded[q][p]:
                    negatives.extend([own[p]] * counts[q][p])
            expected.append(reference_infonce(own[positive[q]], negatives, temperature))
        given = {None: None, "per passage": torch.tensor(shared), "per query": torch.tensor(counts)}[counted]
        value = infonce(scores, torch.tensor(positive), temperature, given, torch.tensor(excluded))
        assert value.dtype == torch.float32 and (value >= 0).all()
        assert_close(value, expected)


def test_infonce_without_counts_and_exclusions_takes_every_other_passage():
    scores = score_table("cosines", 1)
    expected = [reference_infonce(row[2], row[:2] + row[3:], TAU) for row in scores.tolist()]
    assert_close(infonce(scores, torch.full((len(scores),), 2), TAU), expected)


@pytest.mark.parametrize("positive_count", [0, 1, 7])
@pytest.mark.parametrize("positive_excluded", [False, True])
def test_infonce_counts_the_positive_once_whatever_its_column_says(positive_count, positive_excluded):
    counts = torch.tensor([2, positive_count, 3])
    excluded = torch.tensor([[False, positive_excluded, False]])
    value = infonce(torch.tensor([[0.5, 0.5, 0.5]]), torch.tensor([1]), TAU, counts, excluded)
    assert_close(value, [math.log(6)])


def test_infonce_with_half_counts_adds_up_equal_columns():
    # a passage that two ranks hold stands in two columns, which count as half a passage each
    scores = torch.tensor([[0.4, 0.41, 0.39, 0.41]])
    value = infonce(scores, torch.tensor([0]), TAU, torch.tensor([1.0, 0.5, 1.0, 0.5]))
    positive, *negatives = scores[0, :3].tolist()
    assert_close(value, [reference_infonce(positive, negatives, TAU)])


def test_infonce_of_counts_is_as_exact_as_the_scores():
    scores = score_table("cosines", 0).double()
    value = infonce(scores, torch.zeros(len(scores), dtype=torch.long), 0.5, torch.full((12,), 3))
    assert_close(value, [reference_infonce(row[0], row[1:] * 3, 0.5) for row in scores.tolist()], tolerance=1e-12)


def test_infonce_at_cosines_that_overflow_a_plain_exponential():
    worst = infonce(torch.tensor([[-1.0, 1.0]]), torch.tensor([0]), TAU)
    best = infonce(torch.tensor([[1.0, -1.0]]), torch.tensor([0]), TAU)
    same = infonce(torch.tensor([[1.0, 1.0, 1.0]]), torch.tensor([0]), TAU)
    assert_close(torch.cat([worst, best, same]), [200.0, 0.0, math.log(3)])


def test_infonce_keeps_differences_that_vanish_in_large_scores():
    scores = torch.tensor([[1000.0, 1000.0 - 2**-13]])  # neighbours in float32 are 2^-14 apart here
    assert_close(infonce(scores, torch.tensor([0]), TAU), [math.log1p(math.exp(-(2**-13) / TAU))])


@pytest.mark.parametrize("why", ["alone", "excluded", "counted 0"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_infonce_of_a_query_without_negatives_is_zero_with_finite_gradients(why, dtype):
    scores = torch.tensor([[0.3]] if why == "alone" else [[0.3, 0.9]], dtype=dtype, requires_grad=True)
    temperature = torch.tensor(TAU, dtype=dtype, requires_grad=True)
    counts = torch.tensor([1, 0]) if why == "counted 0" else None
    excluded = torch.tensor([[False, True]]) if why == "excluded" else None
    value = infonce(scores, torch.tensor([0]), temperature, counts, excluded)
    assert value.tolist() == [0.0]
    value.sum().backward()
    assert (scores.grad == 0).all() and temperature.grad == 0


def test_infonce_gradient_is_the_softmax_minus_the_positive_even_where_exponentials_overflow():
    scores = torch.tensor([[-1.0, 1.0, 1.0, -1.0]], requires_grad=True)
    infonce(scores, torch.tensor([0]), TAU, torch.tensor([1, 3, 1, 5])).sum().backward()
    # a loss of 201 is known to 1.5e-5 in float32, and so are the shares
    assert_close(scores.grad[0], [-100.0, 75.0, 25.0, 0.0], tolerance=2e-5)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_scores_are_computed_in_float32(half):
    scores = score_table("cosines", 0).to(half)
    teacher = score_table("cosines", 1).to(half)
    positive, mask = torch.zeros(len(scores), dtype=torch.long), torch.ones(scores.shape, dtype=torch.bool)
    contrast = infonce(scores, positive, TAU)
    divergence = listwise_distillation(scores, teacher, mask, STUDENT, TEACHER)
    assert contrast.dtype == divergence.dtype == torch.float32
    assert_close(contrast, [reference_infonce(row[0], row[1:], TAU) for row in scores.tolist()])
    pairs = zip(scores.tolist(), teacher.tolist(), strict=True)
    assert_close(divergence, [reference_kl(s, t, STUDENT, TEACHER) for s, t in pairs])


@pytest.mark.parametrize(("temperature", "teacher_temperature"), [(STUDENT, TEACHER), (TAU, TAU), (1.0, 0.05)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("teacher_kind", ["cosines", "ties", "large"])
@pytest.mark.parametrize("garbage", GARBAGE)
def test_distillation_is_the_divergence_over_the_real_entries(
    kind, teacher_kind, temperature, teacher_temperature, garbage
):
    scores, teacher = score_table(kind, 0), score_table(teacher_kind, 1)
    lengths = [1, 2, 5, 11, 12]
    mask = torch.tensor([[p < n for p in range(12)] for n in lengths])
    expected = [
        reference_kl(s[:n], t[:n], temperature, teacher_temperature)
        for s, t, n in zip(scores.tolist(), teacher.tolist(), lengths, strict=True)
    ]
    value = listwise_distillation(
        scores.masked_fill(~mask, -garbage),
        teacher.masked_fill(~mask, garbage),
        mask,
        temperature,
        teacher_temperature,
    )
    assert value.dtype == torch.float32
    assert_close(value, expected)


def test_distillation_masks_entries_that_do_not_stand_last():
    mask = torch.tensor([[False, True, False, True]])
    value = listwise_distillation(
        torch.tensor([[9.0, 0.5, -9.0, 0.25]]), torch.tensor([[7.0, 0.125, 0.0, 0.75]]), mask, STUDENT, TEACHER
    )
    assert_close(value, [reference_kl([0.5, 0.25], [0.125, 0.75], STUDENT, TEACHER)])


def test_distillation_goes_from_the_teacher_to_the_student():
    # the teacher is sure and the student is not: log 2; the other way round it would be huge
    every = torch.ones(1, 2, dtype=torch.bool)
    assert_close(
        listwise_distillation(torch.zeros(1, 2), torch.tensor([[1.0, -1.0]]), every, 0.05, 0.01), [math.log(2)]
    )


@pytest.mark.parametrize("garbage", GARBAGE)
def test_distillation_of_one_entry_is_zero_with_zero_gradient(garbage):
    scores = torch.tensor([[0.3, -garbage]], requires_grad=True)
    mask = torch.tensor([[True, False]])
    value = listwise_distillation(scores, torch.tensor([[0.7, garbage]]), mask, STUDENT, TEACHER)
    assert value.tolist() == [0.0]
    value.sum().backward()
    assert scores.grad.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_distillation_gradient_is_the_difference_of_the_distributions_and_zero_where_masked(garbage):
    scores = torch.tensor([[1.0, -1.0, 0.5, garbage]], requires_grad=True)
    teacher = torch.tensor([[0.25, 1.0, 0.5, garbage]])
    mask = torch.tensor([[True, True, True, False]])
    listwise_distillation(scores, teacher, mask, STUDENT, TEACHER).sum().backward()
    log_q = reference_log_softmax([1.0, -1.0, 0.5], STUDENT)
    log_p = reference_log_softmax([0.25, 1.0, 0.5], TEACHER)
    expected = [(math.exp(q) - math.exp(p)) / STUDENT for p, q in zip(log_p, log_q, strict=True)]
    assert_close(scores.grad[0], [*expected, 0.0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [TAU, STUDENT, TEACHER])
def test_masked_log_softmax_is_the_softmax_of_the_real_entries(kind, temperature):
    scores = score_table(kind, 3)
    rng = random.Random(0)
    mask = [[p == 7 or rng.random() < 0.5 for p in range(12)] for _ in range(5)]
    value = masked_log_softmax(scores, torch.tensor(mask), temperature)
    for got, row, real in zip(value.tolist(), scores.tolist(), mask, strict=True):
        assert_close(
            [v for v, m in zip(got, real, strict=True) if m],
            reference_log_softmax([s for s, m in zip(row, real, strict=True) if m], temperature),
        )
        assert {v for v, m in zip(got, real, strict=True) if not m} <= {-math.inf}


@pytest.mark.parametrize("garbage", GARBAGE)
def test_masked_log_softmax_keeps_differences_that_vanish_in_large_scores(garbage):
    scores = [-1000.0, -1000.0 + 2**-13]  # neighbours in float32 are 2^-14 apart here
    value = masked_log_softmax(torch.tensor([[*scores, garbage]]), torch.tensor([[True, True, False]]), TAU)
    assert_close(value[0, :2], reference_log_softmax(scores, TAU))


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("threshold", [0.0, 0.6, 1.0])
def test_likely_false_negatives_are_strictly_above_a_share_of_the_lists_top(threshold, garbage):
    for seed in range(5):
        teacher = score_table("cosines", seed).abs()
        mask = torch.tensor([[p < n for p in range(12)] for n in (1, 2, 5, 11, 12)])
        expected = []
        for row, real in zip(teacher.tolist(), mask.tolist(), strict=True):
            top = max(s for s, m in zip(row, real, strict=True) if m)
            expected.append([m and s > threshold * top for s, m in zip(row, real, strict=True)])
        value = likely_false_negatives(teacher.masked_fill(~mask, garbage), mask, threshold)
        assert value.tolist() == expected


def test_likely_false_negatives_at_ties_with_the_threshold_and_with_the_top():
    teacher = torch.tensor([[0.75, 0.75, 0.376, 0.375, 0.25], [0.0, 0.0, 0.0, 0.0, 0.0]])
    value = likely_false_negatives(teacher, torch.ones(2, 5, dtype=torch.bool), 0.5)
    assert value.tolist() == [[True, True, True, False, False], [False] * 5]


def test_matches_finds_all_columns_of_the_chosen_keys():
    for seed in range(20):
        rng = random.Random(seed)
        keys = [rng.randrange(9) * 2**33 for _ in range(rng.randint(1, 12))]  # repeated, in no order
        chosen = [[rng.choice([-1, 5, 2**40, *keys]) for _ in range(4)] for _ in range(5)]
        expected = [[key in own for key in keys] for own in chosen]
        assert membership_mask(torch.tensor(keys), torch.tensor(chosen)).tolist() == expected


# ------------------------------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize("temperature", [TAU, 0.05])
def test_infonce_gradients_in_float64(temperature):
    torch.manual_seed(0)
    # within some temperatures of each other, or most gradients would be 0
    scores = (torch.randn(4, 7, dtype=torch.float64) * 2 * temperature).requires_grad_()
    tau = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    positive = torch.tensor([0, 3, 6, 3])
    counts = torch.tensor([1, 2, 0, 5, 1, 3, 1])
    excluded = torch.rand(4, 7) < 0.3
    assert gradcheck(lambda s, t: infonce(s, positive, t, counts, excluded), (scores, tau))
    assert gradcheck(lambda s, t: infonce(s, positive, t), (scores, tau))


@pytest.mark.parametrize("lengths", [[6, 6, 6, 6], [6, 4, 2, 1]], ids=["full", "short"])
def test_distillation_gradients_in_float64(lengths):
    torch.manual_seed(0)
    scores = (torch.randn(4, 6, dtype=torch.float64) * 2 * STUDENT).requires_grad_()
    teacher = torch.rand(4, 6, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[p < n for p in range(6)] for n in lengths])
    assert gradcheck(lambda s, t: listwise_distillation(s, t, mask, STUDENT, TEACHER), (scores, teacher))


@pytest.mark.parametrize("lengths", [[6, 6, 6, 6], [6, 4, 2, 1]], ids=["full", "short"])
def test_distillation_gradients_of_the_temperatures_in_float64(lengths):
    torch.manual_seed(0)
    scores = torch.randn(4, 6, dtype=torch.float64) * 2 * STUDENT
    teacher = torch.rand(4, 6, dtype=torch.float64)
    mask = torch.tensor([[p < n for p in range(6)] for n in lengths])
    temperatures = [torch.tensor(t, dtype=torch.float64, requires_grad=True) for t in (STUDENT, TEACHER)]
    assert gradcheck(lambda s, t: listwise_distillation(scores, teacher, mask, s, t), temperatures)


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("vectors", ["signs", "large"])
@pytest.mark.parametrize("objective", CLASSES)
def test_extreme_scores_and_what_stands_where_masked_leave_loss_and_gradients_finite(objective, vectors, garbage):
    batch = encoded(random_example(2, vectors), garbage=garbage)
    inputs = (batch.queries.requires_grad_(), batch.passages.requires_grad_())
    chosen = module(objective, **learnable(objective))
    loss = chosen.objective(batch)["loss"]
    learned = [p for part in learned_temperatures(chosen).values() for p in part.parameters()]
    gradients = torch.autograd.grad(loss, [*inputs, *learned])
    assert torch.isfinite(loss) and all(torch.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("objective", OF_THE_PAPER)
@pytest.mark.parametrize("positive", ["teacher", "labelled"])
def test_objectives_reach_queries_and_passages_with_the_right_gradients(objective, positive):
    if objective is ListwiseDistillation:
        arguments = {}
    else:
        arguments = {"positive": positive, **({"temperature": 0.05} if objective is InfoNCE else {})}
    batch = encoded(random_example(0, "normal", queries=3, passages=7, length=4), dtype=torch.float64)
    chosen = module(objective, **arguments)

    def loss(queries, passages):
        return chosen.objective(replace(batch, queries=queries, passages=passages))["loss"]

    inputs = (batch.queries.clone().requires_grad_(), batch.passages.clone().requires_grad_())
    assert gradcheck(loss, inputs)
    gradients = torch.autograd.grad(loss(*inputs), inputs)
    assert all(gradient.abs().max() > 1e-3 for gradient in gradients)


# ----------------------------------------------------------------------------------------------------- objectives


@pytest.mark.parametrize("positive", ["teacher", "labelled"])
@pytest.mark.parametrize("threshold", ["0.6", "0.3", None])
@pytest.mark.parametrize("multiset", [True, False])
@pytest.mark.parametrize("vectors", ["grid", "signs", "large"])
@pytest.mark.parametrize("copies", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_infonce_objective_equals_the_enumeration_of_the_pool(positive, threshold, multiset, vectors, copies):
    arguments = {
        "positive": positive,
        "false_negative_threshold": None if threshold is None else float(threshold),
        "multiset": multiset,
    }
    for seed in range(12):
        example = random_example(seed, vectors, short=seed % 3 > 0)
        expected = reference_infonce_objective(example, positive, threshold, multiset)
        batch = encoded(example, garbage=GARBAGE[seed % 3], seed=seed, copies=copies)
        assert_close(loss_of(InfoNCE, batch, **arguments), expected)


def test_infonce_objective_follows_the_paper_by_default():
    example = random_example(1, passages=10)
    expected = reference_infonce_objective(example, "teacher", "0.6", True, 0.01)
    assert_close(loss_of(InfoNCE, encoded(example, labels=False)), expected)
    # every choice shows on this batch
    for other in [("labelled", "0.6", True), ("teacher", None, True), ("teacher", "0.6", False)]:
        assert abs(reference_infonce_objective(example, *other) - expected) > 1e-2


@pytest.mark.parametrize("scorer", ["teacher", "student"])
@pytest.mark.parametrize(("share", "margin"), [("0.931", "0"), ("1", "0.0031"), ("0.931", "0.0031"), ("1", "0")])
@pytest.mark.parametrize("positive", ["teacher", "labelled"])
@pytest.mark.parametrize("vectors", ["grid", "signs", "large"])
@pytest.mark.parametrize("copies", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_positive_aware_infonce_equals_the_enumeration_of_the_pool(scorer, share, margin, positive, vectors, copies):
    arguments = {"negative_share": float(share), "negative_margin": float(margin), "false_negative_threshold": None}
    for seed in range(6):
        example = random_example(seed, vectors, short=seed % 3 > 0)
        expected = reference_infonce_objective(
            example, positive, None, scorer=scorer, share=share, margin=margin, temperature=0.05
        )
        batch = encoded(example, garbage=GARBAGE[seed % 3], seed=seed, copies=copies)
        value = loss_of(InfoNCE, batch, positive=positive, positive_aware=scorer, temperature=0.05, **arguments)
        assert_close(value, expected)


def test_positive_aware_limits_are_a_share_of_the_positives_score_and_a_margin_below_it():
    scores = torch.tensor([[1.0, 0.951, 0.949, 0.0], [-0.5, -0.524, -0.526, 0.0]])
    positive = scores[:, :1]
    near = [[True, True, False, False], [True, True, False, True]]
    assert above_positive(scores, positive, 0.95, 0.0).tolist() == near
    assert above_positive(scores, positive, 1.0, 0.05).tolist() == [near[0], [True, True, True, True]]
    assert above_positive(scores, positive, 1.0, 0.0).tolist() == [[False] * 4, [False, False, False, True]]


def test_positive_aware_takes_more_out_of_the_pool_than_no_limit():
    example = random_example(1, passages=10)
    scorers = (None, "teacher", "student")
    losses = [reference_infonce_objective(example, "labelled", None, scorer=s, share="0.931") for s in scorers]
    assert losses[0] > losses[1] + 1e-2 and losses[0] > losses[2] + 1e-2
    arguments = {"positive": "labelled", "false_negative_threshold": None, "negative_share": 0.931}
    for scorer, expected in zip(scorers, losses, strict=True):
        assert_close(loss_of(InfoNCE, encoded(example), positive_aware=scorer, **arguments), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"positive_aware": "techer"}, r"module\.positive_aware is 'techer'.*Did you mean 'teacher'"),
        ({"negative_share": 95}, "negative_share is 95 "),
        ({"negative_share": 1.01}, r"negative_share is 1\.01 "),
        ({"negative_share": math.nan}, "negative_share is nan "),
        ({"negative_margin": -0.1}, "negative_margin -0.1;"),
    ],
)
def test_wrong_limits_of_negatives_are_errors_with_their_values(arguments, message):
    with pytest.raises(InputError, match=message):
        module(InfoNCE, **arguments)


@pytest.mark.parametrize("arguments", [{"threshold": "0"}, {"threshold": None, "scorer": "student", "share": "0"}])
def test_a_share_of_0_leaves_no_negative_above_0(arguments):
    names = {"threshold": "false_negative_threshold", "scorer": "positive_aware", "share": "negative_share"}
    given = {names[n]: float(value) if value in ("0", "1") else value for n, value in arguments.items()}
    for seed in range(3):
        example = random_example(seed)
        assert_close(loss_of(InfoNCE, encoded(example), **given), reference_infonce_objective(example, **arguments))


def test_limits_of_the_teacher_hold_below_0_and_take_out_none_but_the_near():
    scores = {1: 0.5, 2: 0.5, 3: 0.5, 4: 0.5}
    # 3 is near the first query's positive, and 1 is no passage of the second query
    example = example_with_two_queries([(1, -0.5), (3, -0.52), (4, -0.9)], [(2, -0.5), (4, -0.9)], scores)
    expected = reference_infonce_objective(example, threshold=None, scorer="teacher", share="0.95")
    assert_close(expected, (math.log(4) + math.log(5)) / 2)
    arguments = {"false_negative_threshold": None, "positive_aware": "teacher"}
    assert_close(loss_of(InfoNCE, encoded(example), **arguments), expected)


def test_a_passage_of_three_lists_is_three_negatives():
    scores = {1: 0.5, 2: 0.5, 3: 0.5, 4: 0.5}
    example = Example(
        queries=[[1.0]] * 4,
        passages={key: [score] for key, score in scores.items()},
        lists=[[(1, 1.0), (4, 0.1)], [(2, 1.0), (4, 0.1)], [(3, 1.0), (4, 0.1)], [(3, 1.0)]],
        labelled=[[1], [2], [3], [3]],
    )
    batch = encoded(example)
    # query 1: its positive, 2 once, 3 twice, 4 three times; query 3: 3 in the other list is its positive too
    sizes, distinct = [7, 7, 6, 6], [4, 4, 4, 4]
    assert_close(loss_of(InfoNCE, batch), math.fsum(map(math.log, sizes)) / 4)
    assert_close(loss_of(InfoNCE, batch, multiset=False), math.fsum(map(math.log, distinct)) / 4)


def test_likely_false_negatives_are_taken_out_wherever_they_stand():
    scores = {1: 0.5, 2: 0.5, 3: 0.5}
    # 3 is likely relevant to the first query (0.75 > 0.6) but not to the second (0.5), and stands in both lists
    example = example_with_two_queries([(1, 1.0), (3, 0.75)], [(2, 1.0), (3, 0.5)], scores)
    batch = encoded(example)
    assert_close(loss_of(InfoNCE, batch), (math.log(2) + math.log(4)) / 2)
    assert_close(loss_of(InfoNCE, batch, false_negative_threshold=None), math.log(4))


@pytest.mark.parametrize("positive", ["teacher", "labelled"])
@pytest.mark.parametrize("garbage", GARBAGE)
def test_a_query_without_negatives_has_no_loss_and_finite_gradients(positive, garbage):
    # all that the first query could be contrasted with is its own positive or likely relevant
    example = example_with_two_queries([(1, 1.0), (2, 0.9)], [(2, 1.0)], {1: -1.0, 2: 1.0})
    batch = encoded(example, garbage=garbage)
    queries = batch.queries.clone().requires_grad_()
    value = loss_of(InfoNCE, replace(batch, queries=queries), positive=positive)
    # the second query: passage 1, 200 logits below
    assert_close(value, 0.0)
    value.backward()
    assert torch.isfinite(queries.grad).all() and queries.grad[0] == 0


@pytest.mark.parametrize("objective", [o for o in CLASSES if o not in OF_CORPUS])
def test_a_batch_of_one_list_with_one_passage_has_no_loss(objective):
    example = Example(queries=[[1.0]], passages={7: [-1.0], 9: [1.0]}, lists=[[(7, 0.5)]], labelled=[[7]])
    batch = encoded(example)
    queries = batch.queries.clone().requires_grad_()
    value = loss_of(objective, replace(batch, queries=queries))
    assert value.item() == 0.0
    value.backward()
    assert queries.grad.tolist() == [[0.0]]


def test_the_first_of_tied_teacher_scores_is_the_positive():
    example = example_with_two_queries([(1, 1.0), (3, 1.0)], [(2, 1.0)], {1: 0.25, 2: 0.25, 3: 0.5})
    expected = reference_infonce_objective(example, "teacher", None)
    assert_close(loss_of(InfoNCE, encoded(example), false_negative_threshold=None), expected)


@pytest.mark.parametrize("multiset", [True, False])
def test_the_labelled_positive_joins_the_pool_where_its_list_lacks_it(multiset):
    # 5 is in no list: a negative of the second query, and the positive of the first
    example = example_with_two_queries([(1, 1.0)], [(1, 1.0)], {1: 0.5, 5: 0.5}, labelled=((5,), (1,)))
    value = loss_of(InfoNCE, encoded(example), positive="labelled", false_negative_threshold=None, multiset=multiset)
    sizes = [3, 2] if multiset else [2, 2]
    assert_close(value, math.fsum(map(math.log, sizes)) / 2)


def test_other_labelled_positives_are_no_negatives_with_labels_and_are_with_the_teacher():
    example = example_with_two_queries([(1, 1.0), (3, 0.1)], [(2, 1.0)], {1: 0.5, 2: 0.5, 3: 0.5}, ((1, 2), (2,)))
    assert_close(loss_of(InfoNCE, encoded(example), positive="labelled"), (math.log(2) + math.log(3)) / 2)
    assert_close(loss_of(InfoNCE, encoded(example), positive="teacher"), math.log(3))


@pytest.mark.parametrize("objective", [InfoNCE, CombinedObjective])
def test_a_missing_labelled_positive_is_an_error_that_says_so(objective):
    none, one = encoded(random_example(0), labels=False), encoded(random_example(0))
    one.positive_index[1] = -1
    for batch in (none, one):
        with pytest.raises(InputError, match="positive_ids"):
            loss_of(objective, batch, positive="labelled")


@pytest.mark.parametrize("vectors", ["grid", "signs", "large"])
@pytest.mark.parametrize("temperatures", [(STUDENT, TEACHER), (0.2, 0.05)])
def test_distillation_objective_equals_the_mean_divergence(vectors, temperatures):
    for seed in range(12):
        example = random_example(seed, vectors, short=seed % 3 > 0)
        batch = encoded(example, garbage=GARBAGE[seed % 3], seed=seed)
        arguments = dict(zip(("temperature", "teacher_temperature"), temperatures, strict=True))
        expected = reference_distillation_objective(example, *temperatures)
        assert_close(loss_of(ListwiseDistillation, batch, **arguments), expected)
        if temperatures == (STUDENT, TEACHER):
            assert_close(loss_of(ListwiseDistillation, batch), expected)


@pytest.mark.parametrize("weights", [None, (0.3, 1.0), (1.0, 1.0), (0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("positive", ["teacher", "labelled"])
def test_combined_objective_is_the_weighted_sum_and_returns_its_parts(weights, positive):
    arguments = {"positive": positive}
    if weights is not None:
        arguments |= {"distillation_weight": weights[0], "infonce_weight": weights[1]}
    distillation_weight, infonce_weight = weights or (1.0, 0.1)
    for seed in range(6):
        example = random_example(seed)
        divergence, contrast = reference_distillation_objective(example), reference_infonce_objective(example, positive)
        parts = module(CombinedObjective, **arguments).objective(encoded(example))
        assert set(parts) == {"loss", "distillation", "infonce"}
        assert_close(parts["distillation"], divergence)
        assert_close(parts["infonce"], contrast)
        assert_close(parts["loss"], distillation_weight * divergence + infonce_weight * contrast)


def test_combined_objective_hands_every_argument_to_its_part():
    example = random_example(2)
    arguments = {"temperature": 0.2, "teacher_temperature": 0.5, "infonce_temperature": 0.04}
    settings = {"positive": "labelled", "false_negative_threshold": 0.3, "multiset": False}
    parts = module(CombinedObjective, **arguments, **settings).objective(encoded(example))
    assert_close(parts["distillation"], reference_distillation_objective(example, 0.2, 0.5))
    assert_close(parts["infonce"], reference_infonce_objective(example, "labelled", "0.3", False, 0.04))


def test_only_labelled_positives_make_an_objective_need_labels():
    assert [module(o).needs for o in OF_THE_PAPER] == [BatchNeeds()] * 3
    frozen = {"positive": "labelled", "train_passage_encoder": False}
    needed = BatchNeeds(labels=True, frozen_passages=True)
    assert [module(o, **frozen).needs for o in (InfoNCE, CombinedObjective)] == [needed] * 2


def test_an_objective_that_says_uses_labels_still_gets_them():
    class Older(ListwiseDistillation):
        uses_labels = True

    with pytest.warns(FutureWarning, match="Older.uses_labels counts in this release alone"):
        assert module(Older).needs == BatchNeeds(labels=True)


@pytest.mark.parametrize("objective", CLASSES)
def test_the_order_of_passages_and_their_keys_do_not_matter(objective):
    example = random_example(4)
    value = loss_of(objective, encoded(example))
    renamed = {key: 1_000 - i for i, key in enumerate(example.passages)}
    other = Example(
        queries=example.queries,
        passages={renamed[key]: vector for key, vector in reversed(example.passages.items())},
        lists=[[(renamed[key], score) for key, score in pairs] for pairs in example.lists],
        labelled=[[renamed.get(key, 2_000) for key in keys] for keys in example.labelled],
    )
    assert_close(loss_of(objective, encoded(other)), value.item())


# ---------------------------------------------------------------------------------------------------- temperatures


@pytest.mark.parametrize("objective", OF_THE_PAPER)
@pytest.mark.parametrize("short", [False, True], ids=["full", "short"])
def test_a_learnable_temperature_gets_the_gradient_of_the_reference(objective, short):
    example = random_example(3, "normal", short=short)
    chosen = module(objective, learnable_temperature=True)
    chosen.objective(encoded(example, dtype=torch.float64))["loss"].backward()
    references = {
        "contrast": lambda t: reference_infonce_objective(example, temperature=t),
        "imitation": lambda t: reference_distillation_objective(example, temperature=t),
    }
    temperatures = learned_temperatures(chosen)
    assert (
        set(temperatures)
        == {
            InfoNCE: {"contrast"},
            ListwiseDistillation: {"imitation"},
            CombinedObjective: {"contrast", "imitation"},
        }[objective]
    )
    for name, temperature in temperatures.items():
        (parameter,) = temperature.parameters()
        value, step = temperature().item(), 1e-4
        assert_close(value, {"contrast": TAU, "imitation": STUDENT}[name])
        above, below = (references[name](value * math.exp(sign * step)) for sign in (1, -1))
        weight = 0.1 if (objective, name) == (CombinedObjective, "contrast") else 1.0
        slope = weight * (above - below) / (2 * step)  # by the logarithm, which is what is learned
        assert abs(slope) > 1e-3
        assert_close(parameter.grad, slope, tolerance=1e-4)


@pytest.mark.parametrize("objective", list(filter(learnable, CLASSES)))
@pytest.mark.parametrize("sign", [1, -1])
def test_a_learnable_temperature_stays_positive(objective, sign):
    batch = encoded(random_example(3, short=False))
    chosen = module(objective, **learnable(objective))
    temperatures = learned_temperatures(chosen)
    before = {name: part().item() for name, part in temperatures.items()}
    optimizer = torch.optim.Adam([p for part in temperatures.values() for p in part.parameters()], lr=0.5)
    for _ in range(15):
        optimizer.zero_grad()
        (sign * chosen.objective(batch)["loss"]).backward()
        optimizer.step()
    for name, part in temperatures.items():
        assert 0 < part().item() < math.inf and abs(math.log(part().item() / before[name])) > 0.1


@pytest.mark.parametrize("objective", CLASSES)
def test_a_fixed_temperature_is_no_parameter(objective):
    assert [name for name, _ in module(objective).named_parameters()] == ["encoder.weight", "encoder.bias"]


@pytest.mark.parametrize("value", [0.0, -0.05, math.nan, math.inf])
@pytest.mark.parametrize("learnable", [False, True])
@pytest.mark.parametrize(
    ("objective", "name"),
    [
        (InfoNCE, "temperature"),
        (ListwiseDistillation, "temperature"),
        (ListwiseDistillation, "teacher_temperature"),
        (CombinedObjective, "temperature"),
        (CombinedObjective, "teacher_temperature"),
        (CombinedObjective, "infonce_temperature"),
        (InBatchDistillation, "temperature"),
        (InBatchDistillation, "teacher_temperature"),
        (MarginMSE, "temperature"),
        (MarginMSE, "teacher_temperature"),
        (RankNet, "temperature"),
        (ApproxNDCG, "temperature"),
        (LambdaLoss, "temperature"),
    ],
)
def test_a_temperature_that_is_not_positive_is_an_error_with_its_value(objective, name, learnable, value):
    with pytest.raises(InputError, match=rf"temperature is {value};"):
        module(objective, learnable_temperature=learnable, **{name: value})


@pytest.mark.parametrize("objective", [InfoNCE, CombinedObjective])
@pytest.mark.parametrize("value", ["teachr", "Labelled", ""])
def test_a_wrong_positive_is_an_error_that_names_the_valid_ones(objective, value):
    with pytest.raises(InputError, match=rf"module\.positive is '{value}'.*'teacher', 'labelled'"):
        module(objective, positive=value)


@pytest.mark.parametrize("objective", [InfoNCE, CombinedObjective])
@pytest.mark.parametrize("value", [-0.1, 1.5, 60, math.nan])
def test_a_threshold_that_is_no_share_is_an_error_with_its_value(objective, value):
    with pytest.raises(InputError, match=f"false_negative_threshold is {value};"):
        module(objective, false_negative_threshold=value)


@pytest.mark.parametrize(
    "weights", [(-1.0, 0.1), (1.0, -0.1), (0.0, 0.0), (math.nan, 1.0), (1.0, math.nan), (math.inf, 1.0)]
)
def test_weights_that_are_negative_both_zero_or_not_finite_are_an_error_with_their_values(weights):
    with pytest.raises(InputError, match=f"distillation_weight is {weights[0]} .*infonce_weight {weights[1]};"):
        module(CombinedObjective, distillation_weight=weights[0], infonce_weight=weights[1])


# --------------------------------------------------------------------------------------------------------- blocks


@pytest.mark.parametrize("objective", COMPARING)
@pytest.mark.parametrize("numbers", [1, 14 * 4])  # a query at a time, and blocks that are not of one size
def test_blocks_of_queries_change_neither_loss_nor_gradients(objective, numbers, monkeypatch):
    example = random_example(3, "normal")

    def loss_and_gradients():
        batch = encoded(example, dtype=torch.float64)
        batch.queries.requires_grad_(), batch.passages.requires_grad_()
        chosen = module(objective, **learnable(objective)).double()
        loss = chosen.objective(batch)["loss"]
        learned = [p for part in learned_temperatures(chosen).values() for p in part.parameters()]
        return loss, *torch.autograd.grad(loss, [batch.queries, batch.passages, *learned])

    whole = loss_and_gradients()
    calls = []
    monkeypatch.setattr("retriever.losses.query_blocks.BLOCK_NUMBERS", numbers)
    monkeypatch.setattr(
        "retriever.losses.query_blocks.checkpoint", lambda *a, **k: calls.append(a) or checkpoint(*a, **k)
    )
    for got, expected in zip(loss_and_gradients(), whole, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
    assert len(calls) >= 2


# ------------------------------------------------------------------------------------------------------ precision


@pytest.mark.parametrize("objective", COMPARING)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast_does_not_reach_the_objective(objective, half):
    batch = encoded(random_example(5, "normal"))
    chosen = module(objective)
    expected = {name: value.item() for name, value in chosen.objective(replace(batch)).items()}
    with torch.autocast("cpu", dtype=half):
        # a batch keeps its list scores, so that each call gets a fresh one
        in_full = chosen._objective_in_full_precision(replace(batch))
        in_half = chosen.objective(replace(batch))["loss"].item()
    assert {value.dtype for value in in_full.values()} == {torch.float32}
    assert {name: value.item() for name, value in in_full.items()} == expected
    visible = 1e-4 if objective in OF_THE_PAPER else 1e-5  # of the loss; float32 would be within 1e-6
    assert abs(in_half - expected["loss"]) > visible * expected["loss"]  # otherwise nothing is shown
