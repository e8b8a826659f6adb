"""Fitted temperatures: against plain sums in Python, known answers, and teachers that allow none."""

import math

import numpy as np
import pytest
from scipy.special import softmax

from retriever.errors import InputError
from retriever.temperature_fit import FLAT, ONE_HOT, ScoredQueries, fit_temperatures


def scored(teacher, student=None, labelled=None, log_weights=None):
    """Queries of which nothing but the teacher need be stated."""
    teacher = np.asarray(teacher, float)
    return ScoredQueries(
        teacher,
        teacher.copy() if student is None else np.asarray(student, float),
        np.zeros_like(teacher) if log_weights is None else np.broadcast_to(log_weights, teacher.shape).astype(float),
        np.zeros(teacher.shape, bool) if labelled is None else np.asarray(labelled, bool),
    )


def made_up(seed=0, queries=60, passages=7):
    """Queries of lists of different lengths, most with a label or two."""
    random = np.random.default_rng(seed)
    shape = queries, passages
    log_weights = np.where(np.arange(passages) < random.integers(2, passages + 1, (queries, 1)), 0.0, -np.inf)
    teacher = random.random(shape)
    labelled = (random.random(shape) < teacher**3) & np.isfinite(log_weights)
    return scored(teacher, (teacher + random.random(shape)) * 0.2, labelled, log_weights)


def plain(part):
    """Of each query, what is there: teacher, student, labelled."""
    for row in zip(part.teacher, part.student, part.labelled, part.log_weights, strict=True):
        inside = [k for k in range(len(row[0])) if row[3][k] > -math.inf]
        yield [row[0][k] for k in inside], [row[1][k] for k in inside], [bool(row[2][k]) for k in inside]


def plain_softmax(scores, temperature):
    powers = [math.exp((score - max(scores)) / temperature) for score in scores]
    return [power / sum(powers) for power in powers]


def plain_surprise(part, temperature):
    found = []
    for teacher, _, labelled in plain(part):
        logs = [-math.log(p) for p, label in zip(plain_softmax(teacher, temperature), labelled, strict=True) if label]
        found += [sum(logs) / len(logs)] if logs else []
    return sum(found) / len(found)


def plain_divergence(part, teacher_temperature, student_temperature):
    found = []
    for teacher, student, _ in plain(part):
        p, q = plain_softmax(teacher, teacher_temperature), plain_softmax(student, student_temperature)
        found.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    return sum(found) / len(found)


def plain_entropies(part, temperature):
    of = [plain_softmax(teacher, temperature) for teacher, *_ in plain(part)]
    return [-sum(p * math.log(p) for p in row if p) for row in of]


def least(value, near):
    """The best of a grid around a temperature, a thousandth apart."""
    return min((near * (1 + step / 1000) for step in range(-40, 41)), key=value)


@pytest.mark.parametrize("seed", range(3))
def test_both_are_the_best_by_plain_sums(seed):
    part = made_up(seed)
    part = part.select(np.arange(60) < 50)
    fitted = fit_temperatures([part.select(slice(0, 20)), part.select(slice(20, 50))])
    teacher, student = fitted.teacher.temperature, fitted.student.temperature
    assert fitted.rule == "labels" and fitted.queries == 50
    assert fitted.labelled == sum(any(labelled) for *_, labelled in plain(part))
    assert least(lambda t: plain_surprise(part, t), teacher) == pytest.approx(teacher, rel=2e-3)
    assert least(lambda t: plain_divergence(part, teacher, t), student) == pytest.approx(student, rel=2e-3)
    assert fitted.divergence == pytest.approx(plain_divergence(part, teacher, student), abs=1e-9)
    lengths = [len(row) for row, *_ in plain(part)]
    entropies = plain_entropies(part, teacher)
    assert fitted.passages == pytest.approx(np.mean(lengths))
    assert fitted.teacher.entropy == pytest.approx(np.mean(entropies))
    shares = [h / math.log(n) for h, n in zip(entropies, lengths, strict=True)]
    assert fitted.teacher.entropy_share == pytest.approx(np.mean(shares))
    firsts = [max(plain_softmax(row, student)) for _, row, _ in plain(part)]
    assert fitted.student.first == pytest.approx(np.mean(firsts))
    assert fitted.student.spread == pytest.approx(np.mean([np.std(row) for _, row, _ in plain(part)]))


@pytest.mark.parametrize("temperature", [0.02, 0.05, 0.3])
def test_a_teacher_as_sure_as_its_labels_is_recovered(temperature):
    random = np.random.default_rng(1)
    teacher = random.normal(size=(4000, 12)) * 3 * temperature
    drawn = [random.choice(12, p=softmax(row / temperature)) for row in teacher]
    student = 0.2 * teacher / temperature + random.normal(size=(4000, 1))  # what all passages share does not count
    fitted = fit_temperatures([scored(teacher, student, np.arange(12) == np.array(drawn)[:, None])])
    assert fitted.teacher.temperature == pytest.approx(temperature, rel=0.06) and not fitted.warnings
    # softmax(teacher / τ_t) = softmax(student / τ_s) for one τ_s
    assert fitted.student.temperature == pytest.approx(0.2 * fitted.teacher.temperature / temperature, rel=1e-3)
    assert fitted.divergence == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("passages", "looked_at"), [(50, 10), (20, 10), (8, 4), (2, 1.5)])
def test_without_labels_the_teacher_looks_at_ten_passages(passages, looked_at):
    teacher = np.random.default_rng(2).random((100, passages))
    for rule in ("labels", "entropy"):
        fitted = fit_temperatures([scored(teacher)], rule)
        assert fitted.rule == "entropy" and fitted.labelled == 0
        assert fitted.teacher.entropy == pytest.approx(math.log(looked_at), abs=1e-4) and not fitted.warnings


def test_the_rule_counts_where_there_are_labels():
    part = made_up()
    assert fit_temperatures([part], "entropy").rule == "entropy"
    assert fit_temperatures([part]).teacher.temperature != fit_temperatures([part], "entropy").teacher.temperature


def test_a_teacher_that_always_finds_the_label_is_one_hot_and_said_to_be():
    teacher = np.tile([1.0, 0.6, 0.2, 0.0], (30, 1))
    fitted = fit_temperatures([scored(teacher, labelled=teacher == 1)])
    assert fitted.teacher.first > 0.99 >= ONE_HOT
    assert "nearly one-hot" in fitted.warnings[0] and "temperatures.fitted=entropy" in fitted.warnings[0]
    assert not fit_temperatures([scored(teacher, labelled=teacher == 1)], "entropy").warnings


def test_a_teacher_whose_order_is_not_the_labels_is_flat_and_said_to_be():
    random = np.random.default_rng(3)
    teacher = random.random((200, 10))
    fitted = fit_temperatures([scored(teacher, labelled=np.arange(10) == teacher.argmin(1)[:, None])])
    assert fitted.teacher.entropy_share > FLAT and "nearly flat" in fitted.warnings[0]


def test_ties_leave_no_temperature_that_is_sharp_enough():
    fitted = fit_temperatures([scored(np.tile([1.0] * 15 + [0.0] * 5, (5, 1)))])
    assert any("at the end of the range" in warning for warning in fitted.warnings)


def test_a_student_that_no_temperature_brings_near_is_said_to_be_one():
    teacher = np.random.default_rng(5).random((100, 8))
    fitted = fit_temperatures([scored(teacher, -teacher)])
    [warning] = fitted.warnings
    assert "The student's temperature" in warning and "at the end of the range" in warning


def test_a_one_hot_teacher_by_entropy_is_not_advised_to_take_that_rule():
    pairs, ties = np.tile([1.0, 0.0], (96, 1)), np.zeros((4, 1000))
    [said] = fit_temperatures([scored(pairs), scored(ties)]).warnings
    assert "nearly one-hot" in said and "temperatures.fitted" not in said


def test_a_passage_that_counts_twice_is_two_passages():
    random = np.random.default_rng(4)
    teacher, student = random.random((20, 9)), random.random((20, 9))
    labelled = np.arange(9) == random.integers(0, 8, (20, 1))  # not the last, which counts twice
    weights = np.where(np.arange(9) == 8, math.log(2), 0.0)
    double = [np.concatenate([x, x[:, 8:]], 1) for x in (teacher, student, labelled)]
    for rule in ("labels", "entropy"):
        once = fit_temperatures([scored(teacher, student, labelled, weights)], rule)
        twice = fit_temperatures([scored(*double)], rule)
        assert vars(once.teacher) == pytest.approx(vars(twice.teacher), rel=1e-4)
        assert vars(once.student) == pytest.approx(vars(twice.student), rel=1e-4)
        assert once.divergence == pytest.approx(twice.divergence, rel=1e-4) and once.passages == 10


def test_scores_of_any_size_are_fitted():
    part = made_up()
    plain_fit = fit_temperatures([part])
    large = ScoredQueries(part.teacher * 1e4 - 5e3, part.student * 1e-6, part.log_weights, part.labelled)
    fitted = fit_temperatures([large])
    assert fitted.teacher.temperature == pytest.approx(plain_fit.teacher.temperature * 1e4, rel=1e-3)
    assert fitted.student.temperature == pytest.approx(plain_fit.student.temperature * 1e-6, rel=1e-3)


def test_what_allows_no_fit_is_refused():
    one = np.array([[0.0, -np.inf]])
    with pytest.raises(InputError, match="No query has two scored passages"):
        fit_temperatures([scored([[1.0, 0.5]], log_weights=one)])
    with pytest.raises(InputError, match="The teacher's scores of each query are all alike"):
        fit_temperatures([scored([[1.0, 1.0]])])
    with pytest.raises(InputError, match="The student's scores of each query are all alike"):
        fit_temperatures([scored([[1.0, 0.0]], [[0.5, 0.5]])])
    both = scored([[1.0, 0.2, 0.0], [1.0, 0.5, 0.0]], log_weights=np.array([[0.0, 0.0, 0.0], [0.0, -np.inf, -np.inf]]))
    assert fit_temperatures([both]).queries == 1
