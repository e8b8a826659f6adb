"""Queries that are not compared with the passage that they were cut from: lists, batches, objectives."""

from dataclasses import replace
from pathlib import Path

import lightning as L
import numpy as np
import pyarrow as pa
import pytest
import torch

from datamodules import QueryListDataModule
from datamodules.batch_sampler import Draw
from datamodules.query_lists import QueryLists, read_query_lists, write_query_lists
from datamodules.sources import without_sources
from helpers.corpus_batch import corpus_batch
from retriever.batch import EncodedBatch
from retriever.encoder.text_encoder import TextEncoder
from retriever.errors import InputError
from retriever.objectives import CorpusDistillation, CorpusInfoNCE, InfoNCE


def made_up(seed=0, count=40):
    random = np.random.default_rng(seed)
    rows = [random.permutation(12)[: random.integers(2, 7)] for _ in range(count)]
    positives = [random.permutation(12)[: random.integers(0, 3)] for _ in range(count)]
    return QueryLists(
        source=Path("lists.parquet"),
        line=np.arange(1, count + 1),
        metadata={},
        query_ids=pa.array(map(str, range(count))),
        queries=pa.array(["x"] * count),
        query_types=pa.array(["human" if n % 3 == 0 else "sentence" for n in range(count)]),
        rows=np.concatenate(rows).astype(np.int32),
        scores=random.random(sum(map(len, rows))).astype(np.float32),
        offsets=np.concatenate([[0], np.cumsum([len(row) for row in rows])]),
        positive_rows=np.concatenate(positives).astype(np.int32),
        positive_offsets=np.concatenate([[0], np.cumsum([len(row) for row in positives])]),
    )


def content(lists):
    """Id → candidates with their scores, and labels."""
    found = {}
    for n, name in enumerate(lists.query_ids.to_pylist()):
        part = slice(lists.offsets[n], lists.offsets[n + 1])
        labels = lists.positive_rows[lists.positive_offsets[n] : lists.positive_offsets[n + 1]].tolist()
        found[name] = list(zip(lists.rows[part].tolist(), lists.scores[part].tolist(), strict=True)), labels
    return found


@pytest.mark.parametrize("seed", range(3))
def test_candidates_are_left_without_their_source(seed):
    lists = made_up(seed)
    expected = {}
    for number, (name, (candidates, labels)) in enumerate(content(lists).items()):
        left = [pair for pair in candidates if number % 3 == 0 or pair[0] not in labels]
        if len(left) > 1:
            expected[name] = left, labels
    assert content(without_sources(lists, ["human"])) == expected
    assert content(without_sources(lists, ["human", "sentence"])) == content(lists)


def test_where_no_list_is_left_is_said():
    lists = made_up()
    pairs = replace(  # a source and one other passage
        lists,
        rows=np.tile(np.int32([0, 1]), 40),
        scores=np.ones(80, np.float32),
        offsets=np.arange(0, 81, 2),
        positive_rows=np.zeros(40, np.int32),
        positive_offsets=np.arange(41),
    )
    with pytest.raises(InputError, match=r"lists.parquet: .* no list of 40 has two candidates"):
        without_sources(pairs, [])
    assert len(without_sources(pairs, ["human"])) == 14


def batch(hidden):
    made = corpus_batch(None, torch.tensor([0.0, 0, 0, 1, 0, 0], dtype=torch.float64), hidden, torch.float64)
    return replace(made, all_scores=torch.rand(3, 6, dtype=torch.float64))


@pytest.mark.parametrize("block", [6, 2**22])
def test_a_hidden_passage_is_as_one_that_is_not_there(block, monkeypatch):
    monkeypatch.setattr("retriever.losses.query_blocks.BLOCK_NUMBERS", block)
    hidden = torch.tensor([[0, 50], [-1, -1], [50, 20]])
    objective = CorpusDistillation(torch.nn.Linear(2, 2), train_passage_encoder=False)
    of = batch(hidden)
    found = objective.objective(of)["loss"]
    found.backward()
    losses, queries = [], of.queries.detach().clone().requires_grad_()
    for query, gone in enumerate([{0, 5}, set(), {5, 2}]):
        kept = [n for n in range(6) if n not in gone]
        student = torch.log_softmax(queries[query] @ of.passages[kept].T / 0.05 + of.log_weights[kept], 0)
        teacher = torch.log_softmax(of.all_scores[query, kept] / 0.05 + of.log_weights[kept], 0)
        losses.append((teacher.exp() * (teacher - student)).sum())
    expected = torch.stack(losses).mean()
    expected.backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(of.queries.grad, queries.grad)
    assert objective.objective(batch(None))["loss"] != found


def test_the_teachers_first_is_one_that_is_not_hidden():
    of = replace(batch(None), all_scores=torch.tensor([[9.0, -1, -2, -2, -2, -2]] * 3))
    by_teacher = CorpusInfoNCE(torch.nn.Linear(2, 2), temperature=0.1, positive="teacher")
    hidden = replace(of, hidden_keys=torch.tensor([[0], [0], [0]]), labelled_keys=torch.tensor([[0], [0], [0]]))
    products = hidden.queries @ hidden.passages.T / 0.1 + hidden.log_weights
    expected = (products[:, 1:].logsumexp(1) - products[:, 1]).mean()  # what is labelled is no negative
    torch.testing.assert_close(by_teacher.objective(hidden)["loss"], expected)


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_hidden_source_in_anothers_list_is_no_negative(symmetric):
    own, other = torch.eye(4)[0], torch.eye(4)[1]
    of = EncodedBatch(
        queries=torch.stack([own, other]).requires_grad_(),
        passages=torch.stack([other + 0.1 * own, own, other, torch.eye(4)[2]]),  # 1: what the first was cut from
        passage_keys=torch.arange(4) + 10,
        list_index=torch.tensor([[0, 3], [1, 2]]),
        list_mask=torch.ones(2, 2, dtype=torch.bool),
        teacher_scores=torch.tensor([[0.9, 0.1], [0.9, 0.1]]),
        positive_index=torch.tensor([-1, -1]),
        labelled_keys=torch.tensor([[11], [12]]),
        hidden_keys=torch.tensor([[11], [-1]]),
    )
    contrast = InfoNCE(torch.nn.Linear(2, 2), temperature=0.05, symmetric=symmetric).contrast
    losses = []
    for source in (own, -own):  # where the first query's source lies
        passages = of.passages.clone()
        passages[1] = source
        losses.append(contrast(replace(of, passages=passages))[0])
    torch.testing.assert_close(losses[0], losses[1])
    assert contrast(replace(of, hidden_keys=None))[0] > losses[0] + 3


@pytest.mark.slow
@pytest.mark.parametrize("objective", [CorpusDistillation, InfoNCE])
@pytest.mark.parametrize("sources", ["keep", "hide"])
def test_the_data_module_hides_sources_of_made_up_queries(
    sources, objective, tiny_model, small_scifact, small_lists, tmp_path
):
    lists = [
        replace(q, query_type="sentence" if n % 2 else "human") for n, q in enumerate(read_query_lists(small_lists))
    ]
    write_query_lists(tmp_path / "lists.parquet", lists, {"teacher": "made for tests"})
    files = [{"path": str(tmp_path / "lists.parquet"), "corpus": str(small_scifact)}]
    encoder = TextEncoder.from_pretrained(str(tiny_model), pooling="mean")
    data = QueryListDataModule(encoder, files, files, leak_guard="off", cache_dir=tmp_path, sources=sources)
    data.trainer = L.Trainer(accelerator="cpu", logger=False)
    data.needs = objective(encoder, train_passage_encoder=False).needs
    data.setup()
    places = np.stack([np.zeros(40, int), np.arange(40)], 1)
    made = data._loader(data._train, train=True).dataset[Draw(places, (1, 0, 0, 0))]
    of_made_up = torch.arange(40) % 2 == 1
    inside = ((made.passage_keys[made.list_index] == made.labelled_keys[:, :1]) & made.list_mask).any(1)
    if sources == "keep":
        assert inside.all() and made.hidden_keys is None
    else:
        assert (inside == ~of_made_up).all()
        assert (made.hidden_keys[of_made_up] == made.labelled_keys[of_made_up]).all()
        assert (made.hidden_keys[~of_made_up] == -1).all()


def test_lists_that_are_too_short_without_their_source_are_counted(
    tiny_encoder, small_scifact, small_lists, tmp_path, caplog
):
    lists = [replace(q, query_type="sentence") for q in read_query_lists(small_lists)]
    lists[:3] = [replace(q, passage_ids=q.passage_ids[:2], teacher_scores=q.teacher_scores[:2]) for q in lists[:3]]
    path = str(tmp_path / "lists.parquet")
    write_query_lists(path, lists, {"teacher": "made for tests"})
    files = [{"path": path, "corpus": str(small_scifact)}]
    data = QueryListDataModule(tiny_encoder, files, files, leak_guard="off", cache_dir=tmp_path, sources="hide")
    data.open()
    assert data.report["bad_lists"] == {path: {"fewer than two candidates beside its source": 3}}
    assert "left out 3 lists: fewer than two candidates" in caplog.text and data.report["train_lists"] == 37
