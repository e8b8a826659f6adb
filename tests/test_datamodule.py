"""Batches: distinct passages, order, weights, ranks, normalisation, caches."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from datamodules import QueryListDataModule
from datamodules.batches import BatchSampler, ListBatches
from datamodules.caches import cached_embeddings, cached_tokens, embed
from datamodules.normalization import confident, normalize_scores
from datamodules.query_lists import QueryList, read_query_lists, write_query_lists
from retriever.errors import InputError


@pytest.fixture
def make_data(tiny_encoder, small_scifact, small_lists, tmp_path):
    def make(**options):
        train = options.pop("train", [{"path": str(small_lists), "corpus": str(small_scifact)}])
        data = QueryListDataModule(
            tiny_encoder,
            train,
            **{"dev_fraction": 0.25, "batch_size": 8, "cache_dir": tmp_path / "cache", "leak_guard": "off"} | options,
        )
        data.setup()
        return data

    return make


def test_batch_holds_each_distinct_passage_once_and_rebuilds_every_list(make_data, small_lists):
    data = make_data(normalization="none", list_length=6)
    expected = {q.query_id: q for q in read_query_lists(small_lists)}
    seen = []
    for batch in data.train_dataloader():
        keys = batch.passage_keys.tolist()
        assert len(set(keys)) == len(keys) == len(batch.passages) < batch.list_mask.sum()
        ids = data._train[0].corpus.ids.take(keys).to_pylist()
        texts = data._train[0].corpus.passages.take(keys).to_pylist()
        tokens = data.encoder.tokenize(texts, "passage")
        np.testing.assert_array_equal(batch.passages.ids, tokens.ids)
        for i, query_id in enumerate(batch.query_ids):
            original = expected[query_id]
            mask = batch.list_mask[i]
            got = [ids[j] for j in batch.list_index[i][mask].tolist()]
            assert got == original.passage_ids[:6]
            np.testing.assert_allclose(batch.teacher_scores[i][mask], original.teacher_scores[:6], rtol=1e-6)
            assert batch.teacher_scores[i][~mask].tolist() == [0] * int((~mask).sum())
            assert ids[batch.positive_index[i]] in original.positive_ids
            assert set(batch.labelled_keys[i].tolist()) - {-1} == {keys[batch.positive_index[i]]}
        seen += batch.query_ids
    dev = [q for batch in data.val_dataloader() for q in batch.query_ids]
    assert sorted(seen + dev) == sorted(expected) and not set(seen) & set(dev)


def test_label_outside_the_list_joins_the_batch(make_data, small_scifact, small_lists, tmp_path):
    first = next(read_query_lists(small_lists))
    outside = QueryList(
        "q", first.query, "human", "small", first.positive_ids, first.passage_ids[1:3], first.teacher_scores[1:3]
    )
    other = QueryList("r", "other", "human", "small", [], first.passage_ids[:3], first.teacher_scores[:3])
    write_query_lists(tmp_path / "l.parquet", [outside, other], {})
    spec = [{"path": str(tmp_path / "l.parquet"), "corpus": str(small_scifact)}]
    data = make_data(train=spec, dev=spec)
    sampler = BatchSampler(data._dev, 8, 0, None)
    batch = ListBatches(data._dev, 20, "top", with_labels=True)[next(iter(sampler))]
    row = data._dev[0].corpus.rows(first.positive_ids)[0]
    assert batch.passage_keys[batch.positive_index[0]] == row and batch.positive_index[1] == -1
    without = ListBatches(data._dev, 20, "top", with_labels=False)[next(iter(sampler))]
    assert without.positive_index.tolist() == [-1, -1] and len(without.passages) == 3


def test_order_is_seeded_differs_by_epoch_and_loses_nothing(make_data):
    data = make_data()
    sampler = BatchSampler(data._train, 7, seed=3)
    n = len(data._train[0].lists)

    def epoch(number, seed=3):
        other = BatchSampler(data._train, 7, seed)
        other.set_epoch(number)
        return [tuple(map(tuple, draw.places.tolist())) for draw in other]

    assert epoch(0) == epoch(0) != epoch(1)
    assert epoch(0) != epoch(0, seed=4)
    assert sorted(p for batch in epoch(5) for p in batch) == [(0, i) for i in range(n)]
    sizes = [len(batch) for batch in epoch(0)]
    assert len(sampler) == len(sizes) == -(-n // 7) and max(sizes) - min(sizes) <= 1
    assert [len(draw.places) for draw in BatchSampler(data._train, 4096, 3)] == [n]


def test_ranks_share_every_batch(make_data):
    data = make_data()
    whole = [draw.places.tolist() for draw in BatchSampler(data._train, 7, 3)]
    parts = [[draw.places.tolist() for draw in BatchSampler(data._train, 7, 3, rank=r, world_size=2)] for r in (0, 1)]
    assert len(parts[0]) == len(parts[1]) == len(whole)
    for batch, left, right in zip(whole, *parts, strict=True):
        assert sorted(batch) == sorted(left + right) and abs(len(left) - len(right)) <= 1
    with pytest.raises(InputError, match="batch_size is 1"):
        BatchSampler(data._train, 1, 3, world_size=2)


def test_weights_are_passes_per_epoch(make_data, small_scifact, small_lists):
    files = [{"path": str(small_lists), "corpus": str(small_scifact), "weight": {"human": 2.5}}]
    data = make_data(train=files, dev=files)
    counts = np.zeros(40)
    for epoch in range(20):
        sampler = BatchSampler(data._train, 8, 3)
        sampler.set_epoch(epoch)
        drawn = np.concatenate([draw.places[:, 1] for draw in sampler])
        assert len(drawn) == 100 and len(sampler) == 13
        per_list = np.bincount(drawn, minlength=40)
        assert set(per_list) == {2, 3}
        counts += per_list
    assert 40 <= counts.min() < 50 < counts.max() <= 60
    with pytest.raises(InputError, match="'humen'"):
        make_data(train=[{**files[0], "weight": {"humen": 1}}])


def test_batches_are_of_one_corpus_and_rotate(make_data, small_scifact, small_lists, tmp_path, scifact):
    link = tmp_path / "second"
    link.symlink_to(small_scifact)
    lists = [QueryList(**{**vars(q), "corpus": "second"}) for q in read_query_lists(small_lists)][:20]
    write_query_lists(tmp_path / "second.parquet", lists, {})
    files = [
        {"path": str(small_lists), "corpus": str(small_scifact)},
        {"path": str(tmp_path / "second.parquet"), "corpus": str(link)},
    ]
    data = make_data(train=files, dev=files, order="rotate")
    corpora = [batch.corpus for batch in data.train_dataloader()]
    assert corpora[:6] == ["small", "second"] * 3 and corpora.count("small") == 5
    shuffled = make_data(train=files, dev=files)
    assert sorted(b.corpus for b in shuffled.train_dataloader()) == sorted(corpora)


def test_sampled_candidates_keep_the_first_and_change_by_epoch(make_data):
    data = make_data(candidates="sample", list_length=3, normalization="none")
    loader = data.train_dataloader()
    drawn = []
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        lists = {}
        for batch in loader:
            for i, query_id in enumerate(batch.query_ids):
                scores = batch.teacher_scores[i][batch.list_mask[i]]
                assert len(scores) <= 3 and (scores.diff() <= 0).all()
                assert scores[0] > 0.95
                lists[query_id] = batch.passage_keys[batch.list_index[i]].tolist()
        drawn.append(lists)
    assert drawn[0] != drawn[1] != drawn[2]
    assert next(iter(data.val_dataloader())).list_index.shape[1] == 3


def test_percentile_normalisation_is_the_papers():
    random = np.random.default_rng(0)
    scores = random.normal(size=400).astype(np.float32) * 5 + 2
    offsets, groups = np.arange(0, 401, 20), np.repeat([0, 1], 10)
    got = normalize_scores(scores, offsets, groups, "percentile")
    for half in (slice(0, 200), slice(200, 400)):
        low, high = np.percentile(scores[half].astype(np.float64), [1, 99])
        np.testing.assert_allclose(got[half], np.clip((scores[half] - low) / (high - low), 0, 1), atol=1e-6)
    lists = normalize_scores(scores, offsets, groups, "list_minmax").reshape(20, 20)
    assert (lists.min(1) == 0).all() and (lists.max(1) == 1).all()
    assert normalize_scores(scores, offsets, groups, "none") is scores
    with pytest.raises(InputError, match="'percentile'"):
        normalize_scores(scores, offsets, groups, "percentiles")
    best = scores.reshape(20, 20).max(1)
    keep = confident(scores, offsets, groups, 0.97)
    floors = np.repeat(
        [np.quantile(scores[:200].astype(np.float64), 0.97), np.quantile(scores[200:].astype(np.float64), 0.97)], 10
    )
    assert keep.tolist() == (best >= floors).tolist() and 0 < keep.sum() < 20


def test_token_cache_is_written_once_and_follows_prompt_and_text(tiny_encoder, tmp_path):
    texts = ["Aspirin lowers risk.", "", "cells divide " * 100]
    first = cached_tokens(texts, tiny_encoder, "passage", tmp_path)
    expected = tiny_encoder.tokenize(texts, "passage")
    np.testing.assert_array_equal(first.ids, expected.ids)
    np.testing.assert_array_equal(first.offsets, expected.offsets)
    assert isinstance(first.ids, np.memmap)
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "tokens").glob("*/ids.bin")}
    cached_tokens(texts, tiny_encoder, "passage", tmp_path)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "tokens").glob("*/ids.bin")} == stamps
    tiny_encoder.spec = replace(tiny_encoder.spec, query_prompt="query: ")
    cached_tokens(texts, tiny_encoder, "query", tmp_path)
    cached_tokens([*texts[:2], "other"], tiny_encoder, "passage", tmp_path)
    assert len(list((tmp_path / "tokens").iterdir())) == 3


def test_embedding_cache_resumes_after_a_kill_with_the_same_result(tiny_encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("datamodules.caches._EMBEDDING_BLOCK", 4)
    tokens = tiny_encoder.tokenize([f"text {'word ' * (i % 7)} {i}" for i in range(11)], "passage")
    expected = embed(tokens, tiny_encoder, 100)
    calls = []

    def killed(encoder, part, *args, **kwargs):
        calls.append(len(part))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(encoder, part, *args, **kwargs)

    from retriever.encoding import encode

    with monkeypatch.context() as patch:
        patch.setattr("datamodules.caches.encode", killed)
        with pytest.raises(KeyboardInterrupt):
            cached_embeddings(tokens, tiny_encoder, tmp_path, 100, "encode")
        calls[:] = [0] * 5  # from here on nothing is killed
        got = cached_embeddings(tokens, tiny_encoder, tmp_path, 100, "encode")
        assert calls[5:] == [3], "only the unfinished block is encoded again"
        calls[:] = [0] * 5
        cached_embeddings(tokens, tiny_encoder, tmp_path, 100, "encode")
        assert calls[5:] == []
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert len(list((tmp_path / "embeddings").glob("*/block-*"))) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dev_fraction": 0.0}, "dev_fraction is 0.0"),
        ({"train": []}, "names no file"),
        ({"train": [{"path": "x.parquet"}]}, "must have path and corpus"),
        ({"list_length": 1}, "list_length is 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"leak_guard": "on"}, "'drop', 'fail', 'off'"),
        ({"min_top_quantile": 1.0}, "min_top_quantile"),
        ({"dev_fraction": 1e-9}, "No query list is left"),
    ],
)
def test_wrong_options_are_named(make_data, options, message):
    with pytest.raises(InputError, match=message):
        data = make_data(**options)
        next(iter(data.train_dataloader()))


def test_guard_compares_passages_of_one_corpus_alone(make_data, small_scifact, small_lists, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(small_scifact, other)
    (other / "qrels" / "test.tsv").write_text((other / "qrels" / "train.tsv").read_text())
    queries = [json.loads(line) for line in (other / "queries.jsonl").read_text().splitlines()]
    different = "".join(json.dumps({"_id": q["_id"], "text": f"unlike {i}"}) + "\n" for i, q in enumerate(queries))
    (other / "queries.jsonl").write_text(different)
    data = make_data(leak_guard="drop", evaluation=[{"path": str(other)}])
    assert data.report["train_lists"] + data.report["dev_lists"] == 40
    assert make_data(leak_guard="drop", evaluation=[{"path": str(small_scifact)}]).report["train_lists"] > 0
    with pytest.raises(InputError, match="No query list is left"):
        make_data(leak_guard="drop", evaluation=[{"path": str(small_scifact), "split": "train"}])


def test_two_corpora_of_one_name_are_refused(make_data, small_scifact, small_lists, tmp_path):
    twin = tmp_path / small_scifact.name
    shutil.copytree(small_scifact, twin)
    files = [{"path": str(small_lists), "corpus": str(folder)} for folder in (small_scifact, twin)]
    with pytest.raises(InputError, match="Two corpora are named 'small'"):
        make_data(train=files)
