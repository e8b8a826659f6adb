"""InfoNCE's options beside the paper's: a guide, limits, the other direction, weights of hard negatives."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.autograd import gradcheck

from helpers.loss_examples import (
    GARBAGE,
    Example,
    assert_close,
    encoded,
    loss_of,
    module,
    random_example,
    random_guide,
    with_guide,
)
from helpers.loss_references import reference_infonce_objective
from helpers.two_ranks import on_two_threads
from retriever.batch import BatchNeeds
from retriever.errors import InputError
from retriever.losses.infonce import infonce
from retriever.objectives import InfoNCE

LIMITS = [
    {"share": "1", "margin": "0"},
    {"share": "0.931", "margin": "0"},
    {"share": "1", "margin": "0.0031"},
    {"share": None, "limit": "0.171"},
    {"share": "0.931", "limit": "0.051"},
]


def arguments_of(limits):
    """A reference's arguments as those of the objective."""
    given = {f"negative_{name}": None if value is None else float(value) for name, value in limits.items()}
    return {"false_negative_threshold": None, **given}


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("positive", ["teacher", "labelled"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("copies", [1, 2])
def test_guided_infonce_equals_the_enumeration_of_the_pool(limits, positive, symmetric, copies):
    for seed in range(6):
        example = random_example(seed, ("grid", "signs", "large")[seed % 3], short=seed % 2 > 0)
        guide = random_guide(example, seed)
        expected = reference_infonce_objective(
            example, positive, None, temperature=0.05, scorer=guide, symmetric=symmetric, **limits
        )
        batch = with_guide(encoded(example, garbage=GARBAGE[seed % 3], seed=seed, copies=copies), guide)
        asked = {"positive": positive, "positive_aware": "guide", "symmetric": symmetric, **arguments_of(limits)}
        assert_close(loss_of(InfoNCE, batch, temperature=0.05, **asked), expected)


@pytest.mark.parametrize("scorer", [None, "teacher", "student"])
@pytest.mark.parametrize("vectors", ["grid", "signs", "large"])
@pytest.mark.parametrize("positive", ["teacher", "labelled"])
@pytest.mark.parametrize(("symmetric", "hardness"), [(True, 0.0), (False, 5.0), (True, 9.0)])
def test_symmetric_and_hard_infonce_equal_their_enumeration(scorer, vectors, positive, symmetric, hardness):
    for seed in range(4):
        example = random_example(seed, vectors, short=seed % 3 > 0)
        expected = reference_infonce_objective(
            example, positive, scorer=scorer, share="0.931", symmetric=symmetric, hardness=hardness, temperature=0.05
        )
        asked = {"positive": positive, "positive_aware": scorer, "symmetric": symmetric, "hardness": hardness}
        batch = encoded(example, garbage=GARBAGE[seed % 3], seed=seed)
        assert_close(loss_of(InfoNCE, batch, temperature=0.05, negative_share=0.931, **asked), expected)


def test_each_option_shows():
    example = random_example(1, passages=10)
    guide = random_guide(example, 1)
    plain = reference_infonce_objective(example, "labelled", None, temperature=0.05)
    for changed in ({"scorer": guide}, {"symmetric": True}, {"hardness": 9.0}, {"scorer": guide, "limit": "0.3"}):
        assert abs(reference_infonce_objective(example, "labelled", None, temperature=0.05, **changed) - plain) > 1e-3


def test_a_tie_with_the_positive_is_a_negative_and_what_is_above_is_none():
    """A passage of the positive's text under another id has the guide's score of it; it stays, as in GISTEmbed."""
    example = Example(
        queries=[[1.0], [1.0]],
        passages={1: [0.5], 2: [0.5], 3: [0.5], 4: [0.5]},
        lists=[[(1, 1.0), (3, 0.1)], [(2, 1.0), (4, 0.1)]],
        labelled=[[1], [2]],
    )
    # of the first query 3 is a copy of its positive, and 4 scores higher; of the second, nothing scores above
    guide = replace(example, queries=[[1.0], [-1.0]], passages={1: [0.5], 2: [0.5], 3: [0.5], 4: [0.75]})
    batch = with_guide(encoded(example), guide)
    asked = {"false_negative_threshold": None, "positive_aware": "guide", "negative_share": 1.0, "positive": "labelled"}
    assert_close(loss_of(InfoNCE, batch, **asked), (math.log(3) + math.log(4)) / 2)
    # nor is what has a score of the limit above it
    asked_by_number = asked | {"negative_share": None, "negative_limit": 0.5}
    assert_close(loss_of(InfoNCE, batch, **asked_by_number), (math.log(3) + math.log(4)) / 2)
    # the other direction: 1 and 2 are negatives of the other's query
    assert_close(loss_of(InfoNCE, batch, symmetric=True, **asked), (math.log(3) + math.log(4) + 2 * math.log(2)) / 4)


def test_queries_with_one_positive_are_none_of_its_negatives():
    example = Example(
        queries=[[1.0], [1.0], [1.0]],
        passages={1: [0.5], 2: [0.5]},
        lists=[[(1, 1.0)], [(1, 1.0)], [(2, 1.0)]],
        labelled=[[1], [1], [2]],
    )
    # 1 has the third query alone for a negative, 2 has both others; each query has the other passage, twice or once
    passages = [math.log(2), math.log(2), math.log(3)]
    queries = [math.log(2), math.log(2), math.log(3)]
    value = loss_of(InfoNCE, encoded(example), symmetric=True, false_negative_threshold=None)
    assert_close(value, sum(passages + queries) / 6)


def test_hardness_is_a_weight_without_gradient():
    torch.manual_seed(0)
    scores = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    positive = torch.tensor([0, 3, 6, 2, 2])
    excluded = torch.rand(5, 7) < 0.3
    weights = (9.0 * scores.detach()).exp()
    by_counts = infonce(scores, positive, 0.3, counts=weights, excluded=excluded)
    hard = infonce(scores, positive, 0.3, excluded=excluded, hardness=9.0)
    assert torch.allclose(hard, by_counts, rtol=1e-12)
    given = torch.autograd.grad(hard.sum(), scores)[0]
    assert torch.allclose(given, torch.autograd.grad(by_counts.sum(), scores)[0], rtol=1e-10)


@pytest.mark.parametrize("scorer", ["teacher", "student", "guide"])
@pytest.mark.parametrize("positive", ["teacher", "labelled"])
def test_queries_of_two_ranks_have_the_losses_of_one(scorer, positive, monkeypatch):
    """Passages that both hold, and lists of the one that are the pool of the other; ranks with four and two queries."""
    asked = {"positive": positive, "positive_aware": scorer, "negative_share": 0.931, "symmetric": True}
    contrast = module(InfoNCE, temperature=0.05, **asked).contrast
    whole, parts = [], []
    for seed in range(3):
        example = random_example(seed)
        guide = random_guide(example, seed)
        whole.append(with_guide(encoded(example), guide))
        parts.append([])
        for own in (slice(4), slice(4, None)):
            lists, labelled = example.lists[own], example.labelled[own]
            named = {key for pairs in lists for key, _ in pairs} | {key for keys in labelled for key in keys}
            held = {key: vector for key, vector in example.passages.items() if key in named}
            part = Example(example.queries[own], held, lists, labelled)
            parts[-1].append(with_guide(encoded(part), replace(guide, queries=guide.queries[own])))
    alone = [[contrast(batch), contrast.masked_share(batch)] for batch in whole]
    for expected, of_ranks in zip(alone, parts, strict=True):
        found = on_two_threads(lambda batch: (contrast(batch), contrast.masked_share(batch)), of_ranks, monkeypatch)
        for both, together in zip(zip(*found, strict=True), expected, strict=True):
            assert_close(torch.cat(both), together.tolist())


@pytest.mark.parametrize("options", [{"symmetric": True}, {"symmetric": True, "positive_aware": "guide"}])
def test_gradients_are_those_of_finite_differences(options):
    example = random_example(3, "normal", queries=4, passages=8, length=4)
    batch = with_guide(encoded(example, dtype=torch.float64), random_guide(example, 3))
    objective = module(InfoNCE, temperature=0.3, positive="labelled", **options)

    def loss(queries, passages):
        return objective.objective(replace(batch, queries=queries, passages=passages))["loss"]

    ends = (batch.queries.clone().requires_grad_(), batch.passages.clone().requires_grad_())
    assert gradcheck(loss, ends)


def test_the_guide_gets_no_gradient_and_is_asked_for():
    assert module(InfoNCE, positive_aware="guide").needs == BatchNeeds(guide=True)
    assert not module(InfoNCE, positive_aware="student").needs.guide
    batch = replace(encoded(random_example(1)), guide_queries=None, guide_passages=None)
    with pytest.raises(InputError, match=r"batches hold no embeddings of one.*data\.needs = module\.needs"):
        loss_of(InfoNCE, batch, positive_aware="guide")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hardness": -1.0}, r"module\.hardness is -1\.0; it must be a finite number that is not negative"),
        ({"hardness": math.inf}, r"module\.hardness is inf"),
        ({"positive_aware": "guide", "negative_share": None}, "neither negative_share nor negative_limit says from"),
        ({"orthogonal_weight": -1.0}, r"module\.orthogonal_weight is -1\.0; it must be a finite number"),
        ({"orthogonal_weight": math.nan}, r"module\.orthogonal_weight is nan"),
    ],
)
def test_wrong_options_are_errors_with_their_values(arguments, message):
    with pytest.raises(InputError, match=message):
        module(InfoNCE, **arguments)
