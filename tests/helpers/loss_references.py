"""Losses and objectives as plain float64 enumerations of the paper's formulas.

They know nothing of counts, masks or matrices: they walk over the lists of a batch, put every passage into the pool as
often as it stands there, take out what the paper takes out, and add up.
"""

from __future__ import annotations

import math
from fractions import Fraction

from helpers.loss_examples import STUDENT, TEACHER

TAU = 0.01


def reference_log_softmax(scores, temperature):
    """Logarithms of e^{s/τ} / Σ e^{s/τ}."""
    top = max(scores)
    total = math.log(math.fsum(math.exp((s - top) / temperature) for s in scores))
    return [(s - top) / temperature - total for s in scores]


def reference_kl(student_scores, teacher_scores, temperature, teacher_temperature):
    """Σ p (log p − log q), p of the teacher and q of the student."""
    log_p = reference_log_softmax(teacher_scores, teacher_temperature)
    log_q = reference_log_softmax(student_scores, temperature)
    return math.fsum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True))


def reference_infonce(positive_score, negative_scores, temperature, hardness=0.0):
    """−log of the positive's share of e^{s/τ} over the positive and a literal list of negatives, each e^{αs} times."""
    logits = [0.0, *((s - positive_score) / temperature + hardness * s for s in negative_scores)]
    top = max(logits)
    return top + math.log(math.fsum(math.exp(logit - top) for logit in logits))


def reference_infonce_objective(
    example,
    positive="teacher",
    threshold="0.6",
    multiset=True,
    temperature=TAU,
    scorer=None,
    share="1",
    margin="0",
    limit=None,
    symmetric=False,
    hardness=0.0,
):
    """Mean InfoNCE of an Example: enumerate the pool of each query, passage by passage.

    With a ``scorer`` (``teacher``, ``student``, or another Example whose vectors score), what it scores above ``share``
    of the positive's score less ``margin`` is taken out, and so is what it scores above ``limit``. ``symmetric``: the
    mean with the same over queries, of which those that do not have the positive for a negative are taken out.
    """
    count = len(example.queries)
    if positive == "teacher":
        positives = [candidates[0][0] for candidates in example.lists]
    else:
        positives = [keys[0] for keys in example.labelled]
    pool = []
    for query in range(count):
        candidates = [key for key, _ in example.lists[query]]
        if positives[query] not in candidates:
            candidates.append(positives[query])
        pool.extend(candidates)
    if not multiset:
        pool = sorted(set(pool))
    losses, all_taken_out = [], []
    for query in range(count):
        taken_out = {positives[query]}
        if positive == "labelled":
            taken_out.update(example.labelled[query])
        if threshold is not None:
            top = Fraction(max(score for _, score in example.lists[query]))
            taken_out.update(k for k, score in example.lists[query] if Fraction(score) > Fraction(threshold) * top)
        if scorer is not None:
            if scorer == "teacher":
                scores = {key: Fraction(score) for key, score in example.lists[query]}
            else:
                by = example if scorer == "student" else scorer
                scores = {key: Fraction(by.score(query, key)) for key in [*pool, positives[query]]}
            if share is not None:
                near = scores.get(positives[query], max(scores.values()))
                near -= abs(near) * (1 - Fraction(share)) + Fraction(margin)
                taken_out.update(key for key, score in scores.items() if score > near)
            if limit is not None:
                taken_out.update(key for key, score in scores.items() if score > Fraction(limit))
        all_taken_out.append(taken_out)
        negatives = [example.score(query, key) for key in pool if key not in taken_out]
        losses.append(reference_infonce(example.score(query, positives[query]), negatives, temperature, hardness))
    if symmetric:
        for query, key in enumerate(positives):
            others = [example.score(other, key) for other in range(count) if key not in all_taken_out[other]]
            losses.append(reference_infonce(example.score(query, key), others, temperature, hardness))
    return math.fsum(losses) / len(losses)


def reference_distillation_objective(example, temperature=STUDENT, teacher_temperature=TEACHER):
    """Mean divergence of an Example's lists."""
    losses = [
        reference_kl(
            [example.score(q, key) for key, _ in pairs], [t for _, t in pairs], temperature, teacher_temperature
        )
        for q, pairs in enumerate(example.lists)
    ]
    return math.fsum(losses) / len(losses)
