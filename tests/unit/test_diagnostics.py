"""Diagnostics against scipy and float64 enumerations; a run that is watched stays what it is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau
from torch.utils.checkpoint import checkpoint

from callbacks.reporting.diagnostics import measure
from experiments.training.train import run_experiment
from helpers.loss_examples import Example, encoded, module, random_example
from helpers.loss_references import reference_distillation_objective, reference_infonce_objective
from helpers.runs import config_of, metrics, weights
from retriever.diagnostics import (
    alignment,
    anisotropy,
    duplicate_share,
    kendall_tau_b,
    norms_and_cosines,
    teacher_entropy,
    top1_agreement,
    uniformity,
)
from retriever.encoder.encoding import encode
from retriever.module import RetrieverModule
from retriever.objectives import CombinedObjective, InfoNCE, ListwiseDistillation
from retriever.objectives.infonce import InfoNCELoss

GARBAGE = [0.0, 1e30, float("nan")]


# ---------------------------------------------------------------------------------------------------------- lists


def lists_of_all_lengths(seed, values, longest=12):
    """Scores and teacher scores out of few ``values``, hence with ties, and the mask of lists of 1 to ``longest``."""
    draw = np.random.default_rng(seed)
    scores, teacher = (torch.tensor(draw.integers(0, values, (longest, longest)) / 8).float() for _ in range(2))
    return scores, teacher, torch.arange(longest) < torch.arange(1, longest + 1).unsqueeze(1)


@pytest.mark.parametrize("values", [2, 4, 10_000])
@pytest.mark.parametrize("garbage", GARBAGE)
def test_kendall_tau_is_scipys(values, garbage, monkeypatch):
    monkeypatch.setattr("retriever.losses.query_blocks.BLOCK_NUMBERS", 5 * 12**2)  # several blocks of queries
    for seed in range(5):
        scores, teacher, mask = lists_of_all_lengths(seed, values)
        found = kendall_tau_b(scores.masked_fill(~mask, -garbage), teacher.masked_fill(~mask, garbage), mask)
        assert found[0].isnan()
        rows = list(zip(scores, teacher, mask, strict=True))[1:]
        expected = [kendalltau(s[real], t[real]).statistic for s, t, real in rows]
        np.testing.assert_allclose(found[1:], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("garbage", GARBAGE)
def test_top1_agrees_with_any_that_the_teacher_ties_at_the_top(garbage):
    scores = torch.tensor([[0.1, 0.9, 0.2], [0.1, 0.9, 0.2], [0.8, 0.1, -garbage], [-0.5, garbage, garbage]])
    teacher = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.9, 1.0], [0.3, 0.4, garbage], [-2.0, garbage, garbage]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 0, 0]]).bool()
    assert top1_agreement(scores, teacher, mask).tolist() == [True, False, False, True]


@pytest.mark.parametrize("temperature", [0.01, 0.3, 5.0])
@pytest.mark.parametrize("garbage", GARBAGE)
def test_teacher_entropy_is_its_enumeration(temperature, garbage):
    _, teacher, mask = lists_of_all_lengths(3, 9)
    teacher[4] = 0.25
    found = teacher_entropy(teacher.masked_fill(~mask, garbage), mask, temperature)
    for value, scores, real in zip(found.tolist(), teacher.double(), mask, strict=True):
        shares = [math.exp((s - scores[real].max()) / temperature) for s in scores[real].tolist()]
        shares = [share / math.fsum(shares) for share in shares]
        assert value == pytest.approx(-math.fsum(p * math.log(p) for p in shares if p), abs=1e-6)
    assert found[4].item() == pytest.approx(math.log(5), abs=1e-6)


def test_duplicate_share_counts_all_that_share():
    assert duplicate_share(torch.tensor([7, 3, 7, 9, 3, 7, 1, 2])).item() == 5 / 8
    assert duplicate_share(torch.tensor([4])).item() == 0


# ----------------------------------------------------------------------------------------------------- embeddings


def cosine(x, y):
    return math.fsum(a * b for a, b in zip(x, y, strict=True)) / math.hypot(*x) / math.hypot(*y)


@pytest.mark.parametrize("offset", [0.0, 3.0])  # spread around the origin, and in a narrow cone
@pytest.mark.parametrize("n", [2, 3, 40])
def test_anisotropy_uniformity_and_alignment_are_their_enumerations(offset, n):
    rows = torch.randn(n, 6, generator=torch.Generator().manual_seed(n)) * 7 + offset * 7
    pairs = [cosine(a, b) for i, a in enumerate(rows.tolist()) for j, b in enumerate(rows.tolist()) if i != j]
    assert anisotropy(rows).item() == pytest.approx(math.fsum(pairs) / len(pairs), abs=1e-6)
    mean = math.fsum(math.exp(-2 * (2 - 2 * c)) for c in pairs) / len(pairs)
    assert uniformity(rows).item() == pytest.approx(math.log(mean), abs=1e-5)
    others = rows.flip(1)
    distances = [2 - 2 * cosine(a, b) for a, b in zip(rows.tolist(), others.tolist(), strict=True)]
    np.testing.assert_allclose(alignment(rows, others), distances, atol=1e-5)


def test_one_row_has_no_pairs():
    assert anisotropy(torch.ones(1, 4)).isnan() and uniformity(torch.ones(1, 4)).isnan()


def test_uniformity_of_many_rows_is_that_of_a_fixed_draw_of_them():
    rows = torch.randn(900, 8, generator=torch.Generator().manual_seed(0)) + 0.5
    state = torch.get_rng_state()
    drawn = uniformity(rows, most=300)
    assert drawn == uniformity(rows, most=300) != uniformity(rows)
    assert drawn.item() == pytest.approx(uniformity(rows).item(), abs=0.1)
    assert torch.equal(torch.get_rng_state(), state)


# ------------------------------------------------------------------------------------------------------ objectives


def numeric_gradient(value, example):
    """Central differences of a function of an Example, float64: queries [Q, D] and passages [P, D]."""

    def slope(vector, axis, step=1e-6):
        before, found = vector[axis], []
        for sign in (1, -1):
            vector[axis] = before + sign * step
            found.append(value(example))
        vector[axis] = before
        return (found[0] - found[1]) / (2 * step)

    sides = example.queries, example.passages.values()
    return [torch.tensor([[slope(v, i) for i in range(len(v))] for v in side], dtype=torch.float64) for side in sides]


def measured(objective, batch, frozen=False, **arguments):
    """Figures of a batch, and the parts with their graph."""
    batch.queries.requires_grad_(), batch.passages.requires_grad_(not frozen)
    chosen = module(objective, **arguments)
    parts = chosen.objective(batch)
    return measure(chosen, batch, parts, 0.3), parts


@pytest.mark.parametrize("blocks", [False, True])
def test_gradient_norms_and_cosines_are_those_of_the_references(blocks, monkeypatch):
    calls = []
    monkeypatch.setattr("retriever.losses.query_blocks.BLOCK_NUMBERS", 14 if blocks else 2**22)
    monkeypatch.setattr(
        "retriever.losses.query_blocks.checkpoint", lambda *a, **k: calls.append(a) or checkpoint(*a, **k)
    )
    example = random_example(3, "normal")
    figures, _ = measured(CombinedObjective, encoded(example, dtype=torch.float64))
    assert bool(calls) == blocks
    references = {"distillation": reference_distillation_objective, "infonce": reference_infonce_objective}
    by_part = {name: numeric_gradient(reference, example) for name, reference in references.items()}
    by_part["loss"] = [a + 0.1 * b for a, b in zip(by_part["distillation"], by_part["infonce"], strict=True)]
    for number, side in enumerate(("query", "passage")):
        flat = {part: gradients[number].flatten() for part, gradients in by_part.items()}
        for part, gradient in flat.items():
            assert figures[f"{side}_gradient_norm/{part}"] == pytest.approx(gradient.norm().item(), rel=1e-5)
        for a, b in (("loss", "distillation"), ("loss", "infonce"), ("distillation", "infonce")):
            expected = torch.cosine_similarity(flat[a], flat[b], dim=0).item()
            assert abs(expected) < 0.999
            assert figures[f"{side}_gradient_cosine/{a}-{b}"] == pytest.approx(expected, abs=1e-5)


def test_opposite_gradients_have_cosine_minus_one_and_zero_has_none():
    gradients = {"a": torch.tensor([[3.0, 0.0], [0.0, 4.0]]), "b": torch.zeros(2, 2)}
    norms, cosines = norms_and_cosines(gradients | {"c": -2 * gradients["a"]})
    assert norms == {"a": 5.0, "b": 0.0, "c": 10.0}
    assert cosines.keys() == {("a", "c")} and cosines["a", "c"] == pytest.approx(-1)


@pytest.mark.parametrize("objective", [InfoNCE, ListwiseDistillation, CombinedObjective])
@pytest.mark.parametrize("numbers", [14, 2**22])
def test_measuring_leaves_the_backward_pass_as_it_is(objective, numbers, monkeypatch):
    monkeypatch.setattr("retriever.losses.query_blocks.BLOCK_NUMBERS", numbers)
    plain = encoded(random_example(4, "normal"))
    plain.queries.requires_grad_(), plain.passages.requires_grad_()
    module(objective).objective(plain)["loss"].backward()
    watched = encoded(random_example(4, "normal"))
    _, parts = measured(objective, watched)
    assert watched.queries.grad is None and watched.passages.grad is None
    parts["loss"].backward()
    assert torch.equal(watched.queries.grad, plain.queries.grad)
    assert torch.equal(watched.passages.grad, plain.passages.grad)


class Unusual(RetrieverModule):
    """Parts of every kind that a user's objective may return."""

    def __init__(self, encoder, **common):
        super().__init__(encoder, **common)
        self.scale = torch.nn.Parameter(torch.tensor(2.0))

    def objective(self, batch):
        margins = batch.list_scores[:, 0] - batch.list_scores[:, -1]
        fit = (margins - self.scale).square().mean()
        return {
            "loss": fit + 0.1 * self.scale.square(),
            "fit": fit,
            "penalty": self.scale.square(),  # shares nothing with the embeddings
            "mean_margin": margins.detach().mean(),  # needs no gradient
            "of_queries": batch.queries.square().sum(),  # knows no passages
        }


@pytest.mark.parametrize("frozen", [False, True])
def test_parts_of_every_kind_are_measured_or_left_out(frozen):
    figures, parts = measured(Unusual, encoded(random_example(5, "normal", short=False)), frozen)
    norms = {name: value for name, value in figures.items() if "_gradient_norm/" in name}
    sides = ["query"] if frozen else ["query", "passage"]
    assert norms.keys() == {f"{s}_gradient_norm/{p}" for s in sides for p in ("loss", "fit", "penalty", "of_queries")}
    assert figures["query_gradient_norm/penalty"] == 0 < figures["query_gradient_norm/of_queries"]
    assert figures["query_gradient_cosine/loss-fit"] == pytest.approx(1, abs=1e-6)
    assert frozen or figures["passage_gradient_norm/of_queries"] == 0
    assert not any("penalty" in name for name in figures if "_cosine/" in name)
    assert "masked_negatives" not in figures and "kendall_tau" in figures
    parts["loss"].backward()


def test_a_batch_of_one_list_with_one_passage_has_what_is_defined():
    example = random_example(6, passages=6, queries=1, length=1)
    figures, _ = measured(CombinedObjective, encoded(example))
    assert figures["teacher_entropy"] == 0 and figures["top1_agreement"] == 1 and figures["masked_negatives"] == 0
    assert not {"kendall_tau", "teacher_entropy_share", "query_anisotropy", "query_uniformity"} & figures.keys()


@pytest.mark.parametrize("positive", ["teacher", "labelled"])
@pytest.mark.parametrize("threshold", [None, 0.6])
@pytest.mark.parametrize("multiset", [True, False])
@pytest.mark.parametrize("copies", [1, 2])
def test_masked_share_is_the_enumeration_of_the_pool(positive, threshold, multiset, copies):
    contrast = InfoNCELoss(0.01, False, positive, threshold, multiset)
    for seed in range(8):
        example = random_example(seed)
        chosen = [pairs[0][0] for pairs in example.lists] if positive == "teacher" else [k[0] for k in example.labelled]
        pool = []
        for query, pairs in enumerate(example.lists):
            pool += list(dict.fromkeys([*(key for key, _ in pairs), chosen[query]]))
        if not multiset:
            pool = sorted(set(pool))
        expected = []
        for query, pairs in enumerate(example.lists):
            masked = {chosen[query], *(example.labelled[query] if positive == "labelled" else ())}
            if threshold is not None:
                masked |= {key for key, score in pairs if score > threshold * pairs[0][1]}
            rest = [*pool]
            rest.remove(chosen[query])
            expected.append(sum(key in masked for key in rest) / len(rest))
        found = contrast.masked_share(encoded(example, garbage=1e30, seed=seed, copies=copies))
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(("pairs", "share"), [([(5, 1.0)], 0), ([(5, 1.0), (8, 0.9)], 1), ([(5, 1.0), (8, 0.5)], 0)])
def test_masked_share_of_a_small_pool(pairs, share):
    example = Example(queries=[[1.0]], passages={5: [0.2], 8: [0.1]}, lists=[pairs], labelled=[[5]])
    found = InfoNCELoss(0.01, False, "teacher", 0.6, True).masked_share(encoded(example))
    assert found.dtype == torch.float32 and found.tolist() == [share]


# ----------------------------------------------------------------------------------------------------------- runs


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True])
def test_watched_run_is_the_unwatched_one_to_the_bit_and_counts_what_it_encodes(
    small_run, tmp_path, monkeypatch, frozen
):
    encoded_texts, queries = [], []
    step = RetrieverModule.training_step

    def counted(encoder, texts, *rest, **options):
        if torch.is_grad_enabled():
            encoded_texts.extend(texts.lengths.tolist())
        return encode(encoder, texts, *rest, **options)

    def stepped(self, batch, batch_idx):
        queries.append(len(batch))
        return step(self, batch, batch_idx)

    monkeypatch.setattr("retriever.module.encode", counted)
    monkeypatch.setattr(RetrieverModule, "training_step", stepped)
    options = [*small_run, "encoder.dropout=0.1", "export=false", f"module.train_passage_encoder={not frozen}"]
    results = {}
    for every in ("null", "1"):
        encoded_texts.clear(), queries.clear()
        results[every] = run_experiment(config_of(*options, f"diagnostics.every_n_steps={every}"), tmp_path / every)
        counts = [results[every][f"{what}_encoded"] for what in ("passages", "texts", "tokens")]
        assert counts == [len(encoded_texts) - sum(queries), len(encoded_texts), sum(encoded_texts)]
        assert (counts[0] == 0) == frozen and sum(queries) == 2 * results[every]["data"]["train_lists"]
    plain, watched = (weights(tmp_path / every) for every in ("null", "1"))
    assert all(torch.equal(plain[key], watched[key]) for key in plain)
    assert results["1"]["datasets"] == results["null"]["datasets"]
    assert not any(name.startswith("diagnostics/") for row in metrics(tmp_path / "null") for name in row)
    rows = [row for row in metrics(tmp_path / "1") if row["diagnostics/kendall_tau"]]
    assert [int(row["step"]) for row in rows] == list(range(8))
    logged = {name.removeprefix("diagnostics/") for name, value in rows[0].items() if value and "diagnostics/" in name}
    parts, sides = ("loss", "distillation", "infonce"), ("query",) if frozen else ("query", "passage")
    pairs = ("loss-distillation", "loss-infonce", "distillation-infonce")
    assert logged == {
        *(f"{side}_gradient_norm/{part}" for side in sides for part in parts),
        *(f"{side}_gradient_cosine/{pair}" for side in sides for pair in pairs),
        *(f"{side}_{what}" for side in ("query", "passage") for what in ("anisotropy", "uniformity")),
        *("masked_negatives", "duplicate_positives", "teacher_entropy", "teacher_entropy_share"),
        *("kendall_tau", "top1_agreement", "alignment", "tokens_per_second"),
    }
    assert all(float(row["diagnostics/tokens_per_second"]) > 0 for row in rows)


@pytest.mark.slow
def test_every_nth_step_is_measured_once_also_where_gradients_are_accumulated(small_run, tmp_path):
    options = [*small_run, "module=distillation", "trainer.accumulate_grad_batches=2", "diagnostics.every_n_steps=3"]
    options += ["trainer.max_epochs=4", "export=false", "save_checkpoints=false"]
    assert run_experiment(config_of(*options), tmp_path / "run")["optimiser_steps"] == 8
    rows = [row for row in metrics(tmp_path / "run") if row["diagnostics/kendall_tau"]]
    assert [int(row["step"]) for row in rows] == [0, 3, 6]
    assert not any("cosine" in name or "masked" in name for name in rows[0])
