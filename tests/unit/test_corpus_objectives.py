"""Distillation and InfoNCE over the whole corpus: losses, gradients, the draw of a large corpus, the teacher."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import lightning as L
import numpy as np
import pyarrow as pa
import pytest
import torch

from datamodules import QueryListDataModule
from datamodules import corpus_scores as scores_module
from datamodules.batch_sampler import Draw
from datamodules.batches import ListBatches, ListSource
from datamodules.corpus import Corpus
from datamodules.corpus_scores import CorpusScores, corpus_scores
from datamodules.hits import Hits, bm25_search
from datamodules.query_lists import QueryLists
from datamodules.specs import CorpusScoring
from helpers.corpus_batch import corpus_batch
from retriever.agreement import agreement_with_teacher
from retriever.batch import BatchNeeds
from retriever.encoder.text_encoder import TextEncoder
from retriever.encoder.tokens import TokenizedTexts
from retriever.errors import InputError
from retriever.losses import corpus as losses
from retriever.losses.listwise import listwise_distillation
from retriever.objectives import CorpusDistillation, CorpusInfoNCE

DOUBLE = torch.float64


def reference_kl(scores, teacher, log_weights, student_temperature, teacher_temperature):
    """Plain sums in Python, of passages that stand for several each."""
    found = []
    for s, t in zip(scores.tolist(), teacher.tolist(), strict=True):
        weights = [math.exp(w) for w in log_weights.tolist()]
        p = [w * math.exp((x - max(t)) / teacher_temperature) for w, x in zip(weights, t, strict=True)]
        q = [w * math.exp((x - max(s)) / student_temperature) for w, x in zip(weights, s, strict=True)]
        p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
        found.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a))
    return torch.tensor(found, dtype=DOUBLE)


def example(seed=0, queries=4, passages=9, weights=True):
    torch.manual_seed(seed)
    scores, teacher = (torch.rand(queries, passages, dtype=DOUBLE) for _ in range(2))
    scores[0, 1], teacher[0, 1] = scores[0, 0], teacher[0, 0]  # ties
    log_weights = torch.rand(passages, dtype=DOUBLE) * 3 if weights else torch.zeros(passages, dtype=DOUBLE)
    return scores, teacher, log_weights


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("weights", [False, True])
def test_the_divergence_is_that_of_plain_sums(seed, weights):
    scores, teacher, log_weights = example(seed, weights=weights)
    found = losses.corpus_distillation(scores, teacher, log_weights, 0.05, 0.07)
    torch.testing.assert_close(found, reference_kl(scores, teacher, log_weights, 0.05, 0.07), rtol=1e-9, atol=1e-12)
    single = losses.corpus_distillation(scores.float(), teacher.float(), log_weights.float(), 0.05, 0.07)
    torch.testing.assert_close(single.double(), found, rtol=1e-4, atol=1e-5)


def test_where_the_list_is_the_corpus_it_is_listwise_distillation():
    scores, teacher, none = example(weights=False)
    listed = listwise_distillation(scores, teacher, torch.ones_like(scores, dtype=torch.bool), 0.05, 0.3)
    torch.testing.assert_close(losses.corpus_distillation(scores, teacher, none, 0.05, 0.3), listed)


def test_a_passage_that_counts_twice_is_two_passages():
    scores, teacher, none = example(weights=False)
    twice = none.clone()
    twice[3] = math.log(2)
    double = [torch.cat([x, x[:, 3:4]], 1) for x in (scores, teacher)]
    expected = losses.corpus_distillation(*double, torch.zeros(10, dtype=DOUBLE), 0.05, 0.3)
    torch.testing.assert_close(losses.corpus_distillation(scores, teacher, twice, 0.05, 0.3), expected)


def test_gradients_are_right():
    scores, teacher, log_weights = example(queries=2, passages=5)
    scores.requires_grad_()
    temperature = torch.tensor(0.3, dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda s, t: losses.corpus_distillation(s, teacher, log_weights, t, 0.3), (scores, temperature)
    )
    excluded = torch.zeros(2, 5, dtype=torch.bool)
    excluded[0, 2] = excluded[1, 3] = True
    positive = torch.tensor([2, 0])
    assert torch.autograd.gradcheck(
        lambda s, t: losses.corpus_infonce(s, positive, excluded, log_weights, t), (scores, temperature)
    )


def test_extreme_scores_stay_finite():
    scores = torch.tensor([[1.0, -1.0, 1e4], [1.0, 1.0, 1.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 1e4, -1e4], [1.0, 1.0, 1.0]])
    none = torch.zeros(3)
    found = losses.corpus_distillation(scores, teacher, none, 0.01, 0.01)
    other = losses.corpus_infonce(scores, torch.tensor([0, 1]), torch.zeros(2, 3, dtype=torch.bool), none, 0.01)
    (found.sum() + other.sum()).backward()
    assert torch.isfinite(found).all() and torch.isfinite(other).all() and torch.isfinite(scores.grad).all()
    assert found[1] == 0 and other[1].item() == pytest.approx(math.log(3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_of_half_precision_are_computed_with_in_float32(dtype):
    scores, teacher = (torch.rand(3, 9, generator=torch.manual_seed(n)).to(dtype) for n in (1, 2))
    positive, excluded, none = torch.tensor([0, 4, 8]), torch.zeros(3, 9, dtype=torch.bool), torch.zeros(9)
    found = losses.corpus_infonce(scores, positive, excluded, none, 0.01)
    torch.testing.assert_close(found, losses.corpus_infonce(scores.float(), positive, excluded, none, 0.01))
    found = losses.corpus_distillation(scores, teacher, none, 0.05, 0.05)
    torch.testing.assert_close(found, losses.corpus_distillation(scores.float(), teacher.float(), none, 0.05, 0.05))


def test_infonce_counts_negatives_as_they_weigh_and_leaves_other_positives_out():
    scores = torch.tensor([[0.5, 0.4, 0.9, 0.1]], dtype=DOUBLE)
    excluded = torch.tensor([[True, False, True, False]])  # the positive itself, and another positive
    weights = torch.tensor([7.0, 0.0, 3.0, math.log(5)], dtype=DOUBLE)
    found = losses.corpus_infonce(scores, torch.tensor([0]), excluded, weights, 0.1)
    total = math.exp(5) + math.exp(4) + 5 * math.exp(1)
    assert found.item() == pytest.approx(-math.log(math.exp(5) / total))


def test_the_objectives_are_the_losses_of_inner_products(monkeypatch):
    scores, none = torch.rand(3, 6), torch.zeros(6)
    encoder = torch.nn.Linear(2, 2)
    of = corpus_batch(scores, none)
    found = CorpusDistillation(encoder, train_passage_encoder=False, temperature=0.05).objective(of)["loss"]
    products = (of.queries @ of.passages.T).double()
    torch.testing.assert_close(found.double(), reference_kl(products, scores, none, 0.05, 0.05).mean())
    contrast = CorpusInfoNCE(encoder, temperature=0.1).objective(of)["loss"]
    expected = []
    for query, (positive, others) in enumerate([(0, {0, 5}), (3, {3}), (5, {5, 2})]):
        row = products[query] / 0.1
        kept = [n for n in range(6) if n == positive or n not in others]
        expected.append(row[kept].logsumexp(0) - row[positive])
    torch.testing.assert_close(contrast.double(), torch.stack(expected).mean())
    by_teacher = CorpusInfoNCE(encoder, temperature=0.1, positive="teacher")
    assert not by_teacher.needs.labels and CorpusInfoNCE(encoder).needs.labels
    assert by_teacher.objective(of)["loss"] != contrast
    monkeypatch.setattr("retriever.losses.query_blocks.BLOCK_NUMBERS", 6)  # a query a block
    gradients = []
    for loss in (found, CorpusDistillation(encoder, temperature=0.05).objective(of)["loss"]):
        of.queries.grad = None
        loss.backward()
        gradients.append(of.queries.grad)
    torch.testing.assert_close(*gradients)


def test_dev_lists_give_the_divergence_over_the_corpus_whatever_the_objective():
    scores, weights = torch.rand(3, 6), torch.rand(6)
    of = corpus_batch(scores, weights)
    found = agreement_with_teacher(of, over_corpus=True)
    products = (of.queries @ of.passages.T).double()
    expected = reference_kl(products, scores.double(), weights.double(), 0.05, 0.05).mean()
    torch.testing.assert_close(found["corpus_kl"].double(), expected, rtol=1e-4, atol=1e-5)
    listed = [products[[n], of.list_index[n]] for n in range(3)]  # [1, 2] each
    none = torch.zeros(2, dtype=DOUBLE)
    kl = [
        reference_kl(s[None], t[None].double(), none, 0.05, 0.3) for s, t in zip(listed, of.teacher_scores, strict=True)
    ]
    torch.testing.assert_close(found["kl"].double(), torch.cat(kl).mean(), rtol=1e-4, atol=1e-5)
    same = [int(s.argmax()) == int(t.argmax()) for s, t in zip(listed, of.teacher_scores, strict=True)]
    assert 0 < sum(same) < 3 and found["top1_agreement"].item() == pytest.approx(sum(same) / 3)
    order = torch.stack(
        [s.argsort() for s in listed]
    )  # the student's best stands second, and the teacher ranks both first
    tied = replace(of, list_index=of.list_index.gather(1, order), teacher_scores=torch.ones(3, 2))
    assert agreement_with_teacher(tied, over_corpus=False)["top1_agreement"] == 1
    assert set(agreement_with_teacher(of, over_corpus=False)) == {"kl", "top1_agreement"}
    assert set(agreement_with_teacher(corpus_batch(None, None), over_corpus=True)) == {"kl", "top1_agreement"}
    encoder = torch.nn.Linear(2, 2)
    assert "corpus_kl" in CorpusDistillation(encoder, train_passage_encoder=False).dev_metrics()
    assert "corpus_kl" not in CorpusDistillation(encoder).dev_metrics()


def test_only_what_is_needed_is_asked_for():
    frozen = {"train_passage_encoder": False}
    encoder = torch.nn.Linear(2, 2)
    assert CorpusDistillation(encoder, **frozen).needs == replace(NEEDS, labels=False)
    assert CorpusInfoNCE(encoder, **frozen).needs == replace(NEEDS, all_scores=False)
    assert CorpusInfoNCE(encoder, positive="teacher").needs == BatchNeeds(whole_corpus=True, all_scores=True)


def test_what_a_batch_lacks_is_said():
    with pytest.raises(InputError, match=r"data\.needs = module\.needs"):
        CorpusDistillation(torch.nn.Linear(2, 2)).objective(corpus_batch(None, None))
    for lacking in (corpus_batch(None, None), corpus_batch(None, torch.zeros(6))):
        with pytest.raises(InputError, match=r"data\.needs = module\.needs"):
            CorpusInfoNCE(torch.nn.Linear(2, 2), positive="teacher").objective(lacking)
    with pytest.raises(InputError, match=r"data\.needs = module\.needs"):
        CorpusInfoNCE(torch.nn.Linear(2, 2)).objective(corpus_batch(None, None))
    without = replace(corpus_batch(torch.rand(3, 6), torch.zeros(6)), positive_index=torch.tensor([0, -1, 5]))
    with pytest.raises(InputError, match=r"take module\.positive=teacher"):
        CorpusInfoNCE(torch.nn.Linear(2, 2)).objective(without)


def test_a_draw_estimates_the_sum_over_the_corpus():
    """All draws of 2 of the 5 others, each as likely as the next: their mean is the whole sum, exactly."""
    terms = torch.rand(8, dtype=DOUBLE)
    known, others = [0, 3, 6], [1, 2, 4, 5, 7]
    estimates = [
        (terms[known].sum() + math.exp(math.log(5 / 2)) * terms[list(drawn)].sum()).item()
        for drawn in itertools.combinations(others, 2)
    ]
    assert np.mean(estimates) == pytest.approx(terms.sum().item())


TEXTS = ["red apples and pears", "green apples", "pears in rain", "cars drive on roads", "roads in rain", "a tree"]
QUERIES = ["apples and pears", "rain on roads", "unseen"]


def corpus_of(texts):
    return Corpus("fruit", pa.array(map(str, range(len(texts)))), pa.array([""] * len(texts)), pa.array(texts))


@pytest.mark.parametrize("depth", [2, 3, 100])
@pytest.mark.parametrize("weights", [(0.5, 0.5), (1.0, 0.0), (0.0, 2.0), (0.3, 0.9)])
def test_the_teacher_is_the_fusion_of_each_retrievers_best(depth, weights, tmp_path):
    random = np.random.default_rng(3)
    queries, passages = (random.standard_normal((n, 4)).astype(np.float32) for n in (3, 6))
    known = (queries, passages) if weights[1] else None
    scoring = CorpusScoring(bm25=weights[0], encoder=weights[1], depth=depth)
    [teacher] = corpus_scores(scoring, corpus_of(TEXTS), [pa.array(QUERIES)], known, "", tmp_path)
    found = teacher(np.array([0, 1, 2]), np.arange(6))
    bm25 = scaled(bm25_scores(depth), depth, bm25_scores(depth) > 0)
    products = queries @ passages.T
    expected = weights[0] * bm25 + weights[1] * scaled(products, depth, np.ones_like(products, bool))
    np.testing.assert_allclose(found, expected / sum(weights), atol=1e-6)


def bm25_scores(depth):
    hits, scores = bm25_search(TEXTS, QUERIES, 6), np.zeros((3, 6))
    for query in range(3):
        there = hits.rows[query] >= 0
        scores[query, hits.rows[query][there]] = hits.scores[query][there]
    return scores


def scaled(scores, depth, hit):
    """Each row's best ``depth`` hits from 0 to 1, and all others 0, by plain loops."""
    found = np.zeros(scores.shape)
    for query, row in enumerate(scores):
        best = sorted((row[p] for p in range(len(row)) if hit[query, p]), reverse=True)[:depth]
        for p in range(len(row)):
            if hit[query, p] and len(best) > 1 and best[0] > best[-1]:
                found[query, p] = max(0.0, (row[p] - best[-1]) / (best[0] - best[-1]))
    return found


def test_one_search_serves_the_queries_of_all_files(tmp_path, monkeypatch):
    scoring = CorpusScoring(bm25=1, encoder=0)
    files = [pa.array(QUERIES[:1]), pa.array(QUERIES[1:])]
    [whole] = corpus_scores(scoring, corpus_of(TEXTS), [pa.array(QUERIES)], None, "", tmp_path / "a")
    monkeypatch.setattr("datamodules.corpus_scores._BLOCK", 2)
    first, second = corpus_scores(scoring, corpus_of(TEXTS), files, None, "", tmp_path / "b")
    columns = np.array([0, 2, 5])
    expected = whole(np.array([0, 2, 1]), columns)
    assert expected.any()
    np.testing.assert_array_equal(first(np.array([0]), columns), expected[:1])
    np.testing.assert_array_equal(second(np.array([1, 0]), columns), expected[1:])
    monkeypatch.setattr("datamodules.corpus_scores.Bm25Index", None)  # what is in the cache is not searched again
    [again] = corpus_scores(scoring, corpus_of(TEXTS), [pa.array(QUERIES)], None, "", tmp_path / "b")
    np.testing.assert_array_equal(again(np.array([0, 2, 1]), columns), expected)
    with pytest.raises(TypeError):
        corpus_scores(replace(scoring, depth=2), corpus_of(TEXTS), files, None, "", tmp_path / "b")


def test_wrong_weights_are_refused():
    with pytest.raises(InputError, match="nor both 0"):
        CorpusScoring(bm25=0, encoder=0)


def source_of(size, cache_dir):
    """One list of two candidates and two positives for each of three queries, over a corpus of ``size`` passages."""
    corpus = corpus_of([f"{word} {n}" for n, word in zip(range(size), itertools.cycle(QUERIES), strict=False)])
    lists = QueryLists(
        source=Path("lists.parquet"),
        line=np.arange(1, 4),
        metadata={},
        query_ids=pa.array(["a", "b", "c"]),
        query_types=pa.array(["x"] * 3),
        queries=pa.array(QUERIES),
        rows=np.array([0, 1, 2, 3, 4, 5], np.int32),
        scores=np.ones(6, np.float32),
        offsets=np.arange(0, 7, 2),
        positive_rows=np.array([0, 7, 8], np.int32),
        positive_offsets=np.arange(4),
    )
    tokens = TokenizedTexts.from_lists([[1, 2]] * size)
    embeddings = np.random.default_rng(0).standard_normal((size, 4)).astype(np.float32)
    scoring = CorpusScoring(bm25=1, encoder=0, depth=3)
    [scores] = corpus_scores(scoring, corpus, [lists.queries], None, "", cache_dir)
    return ListSource(corpus, lists, np.ones(3), tokens.select(np.arange(3)), tokens, embeddings, scores)


NEEDS = BatchNeeds(labels=True, frozen_passages=True, whole_corpus=True, all_scores=True)


def batches(source, columns, **options):
    return ListBatches([source], 2, "top", NEEDS, columns, **options)


PLACES = np.stack([np.zeros(3, int), np.arange(3)], 1)


def test_a_batch_holds_a_small_corpus_whole(tmp_path):
    source = source_of(40, tmp_path)
    made = batches(source, 40)[Draw(PLACES, (1, 0, 0, 0))]
    assert made.passage_keys.tolist() == list(range(40)) and not made.log_weights.any()
    np.testing.assert_array_equal(made.passage_embeddings, source.passage_embeddings)
    np.testing.assert_array_equal(made.all_scores, source.corpus_scores(np.arange(3), np.arange(40)))
    assert made.passage_keys[made.positive_index].tolist() == [0, 7, 8]
    assert made.passage_keys[made.list_index].tolist() == [[0, 1], [2, 3], [4, 5]]


def test_of_a_large_corpus_a_batch_holds_its_lists_and_a_weighted_draw(tmp_path):
    hits = Hits(np.array([[0.9, 0.4]] * 3, np.float32), np.array([[30, 1], [31, 2], [1, -1]]))
    source = replace(source_of(40, tmp_path), corpus_scores=CorpusScores(hits))
    made = [batches(source, 18)[Draw(PLACES, (1, epoch, 0, 0))] for epoch in (0, 0, 1)]
    wanted = {0, 1, 2, 3, 4, 5, 7, 8, 30, 31}  # candidates, labels, the best by the teacher
    for one in made:
        keys = one.passage_keys.tolist()
        assert len(keys) == 18 and keys == sorted(set(keys)) and wanted < set(keys)
        drawn = [weight for key, weight in zip(keys, one.log_weights.exp().tolist(), strict=True) if key not in wanted]
        assert drawn == pytest.approx([30 / 8] * 8)
        assert sum(one.log_weights.exp().tolist()) == pytest.approx(40)
        assert one.passage_keys[one.positive_index].tolist() == [0, 7, 8]
        np.testing.assert_array_equal(one.all_scores, source.corpus_scores(np.arange(3), np.array(keys)))
    assert made[0].passage_keys.tolist() == made[1].passage_keys.tolist() != made[2].passage_keys.tolist()
    dev = [batches(source, 18, drawn_anew=False)[Draw(PLACES, (seed, epoch, 0, 0))] for seed, epoch in ((1, 0), (2, 1))]
    assert dev[0].passage_keys.tolist() == dev[1].passage_keys.tolist()


def test_where_passages_learn_every_pair_of_the_batch_has_a_score(tmp_path):
    source = replace(source_of(40, tmp_path), passage_embeddings=None)
    needs = BatchNeeds(whole_corpus=True, all_scores=True)
    made = ListBatches([source], 2, "top", needs)[Draw(PLACES, (1, 0, 0, 0))]
    assert made.passage_keys.tolist() == [0, 1, 2, 3, 4, 5] and len(made.passages) == 6
    np.testing.assert_array_equal(made.all_scores, source.corpus_scores(np.arange(3), np.arange(6)))


@pytest.mark.slow
def test_the_teacher_that_is_kept_is_that_of_the_encoder_in_all_its_settings(
    tiny_model, small_scifact, small_lists, tmp_path
):
    """Prompts and lengths change what the encoder scores, though not its weights."""

    def teacher(cache, **spec):
        encoder = TextEncoder.from_pretrained(str(tiny_model), pooling="mean", **spec)
        files = [{"path": str(small_lists), "corpus": str(small_scifact)}]
        data = QueryListDataModule(encoder, files, files, leak_guard="off", cache_dir=tmp_path / cache)
        data.trainer, data.needs = L.Trainer(accelerator="cpu", logger=False), NEEDS
        data.setup()
        source = data._train[0]
        return source.corpus_scores(np.arange(len(source.lists)), np.arange(len(source.corpus)))

    plain = teacher("shared", passage_max_length=64)
    for spec in ({"passage_max_length": 8}, {"passage_max_length": 64, "query_prompt": "what is known of "}):
        found = teacher("shared", **spec)
        np.testing.assert_array_equal(found, teacher(f"own {len(spec)}", **spec))
        assert not np.allclose(found, plain)
    np.testing.assert_array_equal(teacher("shared", passage_max_length=64), plain)


@pytest.mark.slow
def test_dev_batches_alone_may_hold_the_corpus(tiny_encoder, small_scifact, small_lists, tmp_path):
    files = [{"path": str(small_lists), "corpus": str(small_scifact)}]
    options = {"leak_guard": "off", "cache_dir": tmp_path, "dev_over_corpus": True}
    data = QueryListDataModule(tiny_encoder, files, files, **options)
    data.trainer, data.needs = L.Trainer(accelerator="cpu", logger=False), BatchNeeds(frozen_passages=True)
    data.setup()
    train, dev = next(iter(data.train_dataloader())), next(iter(data.val_dataloader()))
    assert train.all_scores is None and train.log_weights is None
    assert dev.all_scores.shape == (len(dev), len(data.train_lists[0].corpus)) == (len(dev), len(dev.passage_keys))
    learning = QueryListDataModule(tiny_encoder, files, files, **options)
    learning.trainer = data.trainer
    with pytest.raises(InputError, match=r"module\.train_passage_encoder=false"):
        learning.setup()


def test_a_corpus_is_indexed_once_for_train_and_dev(tiny_encoder, small_scifact, small_lists, tmp_path, monkeypatch):
    made, index = [], scores_module.Bm25Index
    monkeypatch.setattr(scores_module, "Bm25Index", lambda *a, **k: made.append(1) or index(*a, **k))
    files = [{"path": str(small_lists), "corpus": str(small_scifact)}]
    data = QueryListDataModule(tiny_encoder, files, files, leak_guard="off", cache_dir=tmp_path)
    data.trainer = L.Trainer(accelerator="cpu", logger=False)
    data.needs = CorpusDistillation(tiny_encoder, train_passage_encoder=False).needs
    data.setup()
    train, dev = next(iter(data.train_dataloader())), next(iter(data.val_dataloader()))
    assert len(made) == 1 and train.all_scores.shape[1] == dev.all_scores.shape[1] == 120
