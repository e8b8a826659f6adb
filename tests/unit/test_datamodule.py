"""Batches: distinct passages, order, weights, ranks, normalisation, caches."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from threading import Barrier

import numpy as np
import pytest
from transformers import ByT5Tokenizer

from datamodules import QueryListDataModule
from datamodules.batch_sampler import BatchSampler, fitting_batch_size, gathered
from datamodules.batches import ListBatches
from datamodules.caches import cached_embeddings, cached_tokens, embed
from datamodules.normalization import confident, normalize_scores
from datamodules.query_lists import QueryList, read_query_lists, write_query_lists
from retriever.batch import BatchNeeds
from retriever.encoder.text_encoder import TextEncoder
from retriever.encoder.tokens import TokenizedTexts
from retriever.errors import InputError
from retriever.objectives import ListwiseDistillation


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


def test_batches_hold_what_the_objective_needs(make_data, tiny_encoder):
    data = make_data(dev_fraction=0.5)

    def batch(**needs):
        data.needs = BatchNeeds(**needs)
        return next(iter(data.val_dataloader()))

    assert data.needs == BatchNeeds(labels=True)  # where nobody says
    assert (batch().positive_index == -1).all() and (batch(labels=True).positive_index >= 0).all()
    everything = batch(labels=True, all_labels=True)
    labelled = set(everything.labelled_keys.unique().tolist()) - {-1}
    assert labelled <= set(everything.passage_keys.tolist())
    frozen = ListwiseDistillation(tiny_encoder, train_passage_encoder=False)
    with pytest.raises(InputError, match=r"batches hold no passage embeddings.*data.needs = module.needs"):
        frozen.encode_batch(everything)
    data.needs = frozen.needs
    with pytest.raises(InputError, match="open this data module by a trainer"):
        data._source_maker().source(data.train_lists[0])


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
    batch = ListBatches(data._dev, 20, "top", BatchNeeds(labels=True))[next(iter(sampler))]
    row = data._dev[0].corpus.rows(first.positive_ids)[0]
    assert batch.passage_keys[batch.positive_index[0]] == row and batch.positive_index[1] == -1
    without = ListBatches(data._dev, 20, "top", BatchNeeds())[next(iter(sampler))]
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
    with pytest.raises(InputError, match="less than one for each of 2 ranks"):
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


@pytest.mark.slow
def test_stratified_candidates_are_one_of_each_group_of_like_scores(make_data, small_lists):
    length, stored = 4, {q.query_id: q.passage_ids for q in read_query_lists(small_lists)}
    data = make_data(candidates="stratified", list_length=length, normalization="none")
    loader, drawn, seen = data.train_dataloader(), [], {}
    for epoch in range(60):
        loader.sampler.set_epoch(epoch)
        lists = {}
        for batch in loader:
            for i, query_id in enumerate(batch.query_ids):
                rows = batch.passage_keys[batch.list_index[i][batch.list_mask[i]]].tolist()
                ids = data.train_lists[0].corpus.ids.take(rows).to_pylist()
                places = [stored[query_id].index(passage) for passage in ids]
                others = len(stored[query_id]) - 1
                assert places[0] == 0 and places == sorted(set(places)) and len(places) == min(length, others + 1)
                if others > length - 1:
                    edges = [1 + group * others // (length - 1) for group in range(length)]
                    assert all(
                        low <= place < high for place, (low, high) in zip(places[1:], pairwise(edges), strict=True)
                    )
                seen.setdefault(query_id, set()).update(places)
                lists[query_id] = places
        drawn.append(lists)
    assert drawn[0] != drawn[1]
    assert all(seen[query_id] == set(range(len(stored[query_id]))) for query_id in seen), "each candidate has its turn"
    assert next(iter(data.val_dataloader())).list_index.shape[1] == length


@pytest.mark.slow
def test_percentiles_that_lists_bring_count(make_data, small_lists, tmp_path, small_scifact):
    """Lists that were cut since are normalised by the percentiles of all their candidates."""
    path = tmp_path / "cut.parquet"
    lists = [replace(q, query_type="question") for q in read_query_lists(small_lists)]
    write_query_lists(path, lists, {"scale": {"question": [0.5, 0.9], "claim": [0, 1]}})
    data = make_data(train=[{"path": str(path), "corpus": str(small_scifact)}], normalization="percentile")
    for part in (data.train_lists[0], data.dev_lists[0]):
        raw = {q.query_id: q.teacher_scores for q in lists}
        for number, query_id in enumerate(part.lists.query_ids.to_pylist()):
            found = part.lists.scores[part.lists.offsets[number] : part.lists.offsets[number + 1]]
            expected = np.clip((np.array(raw[query_id], np.float32) - 0.5) / 0.4, 0, 1)
            np.testing.assert_allclose(found, expected, atol=1e-6)


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

    from retriever.encoder.encoding import encode

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
    [folder] = (tmp_path / "embeddings").iterdir()
    assert not (folder / "blocks").exists()
    (folder / "blocks").mkdir()  # as one leaves it that is killed between merging and tidying
    cached_embeddings(tokens, tiny_encoder, tmp_path, 100, "encode")
    assert not (folder / "blocks").exists()


@pytest.mark.slow
def test_a_kill_loses_a_part_of_a_small_corpus_too(tiny_encoder, tmp_path, monkeypatch):
    from retriever.encoder.encoding import encode

    sizes = []
    monkeypatch.setattr(
        "datamodules.caches.encode", lambda e, part, *a, **k: sizes.append(len(part)) or encode(e, part, *a, **k)
    )
    for number, most, largest in [(600, 2_048, 256), (5_200, 2_048, 260), (600, 99, 99)]:
        sizes.clear()
        monkeypatch.setattr("datamodules.caches._EMBEDDING_BLOCK", most)
        texts = tiny_encoder.tokenize(["a"] * number, "passage")
        cached_embeddings(texts, tiny_encoder, tmp_path / str(most), 4_096, "encode")
        assert sum(sizes) == number and max(sizes) == largest


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


@pytest.mark.slow
def test_guard_compares_passages_of_one_corpus_alone(make_data, small_scifact, small_lists, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(small_scifact, other)
    (other / "qrels" / "test.tsv").write_text((other / "qrels" / "train.tsv").read_text())
    queries = [json.loads(line) for line in (other / "queries.jsonl").read_text().splitlines()]
    different = "".join(json.dumps({"_id": q["_id"], "text": f"unlike {i}"}) + "\n" for i, q in enumerate(queries))
    (other / "queries.jsonl").write_text(different)
    passages = [json.loads(line) for line in (other / "corpus.jsonl").read_text().splitlines()]
    unlike = "".join(json.dumps({"_id": p["_id"], "text": f"text {i}"}) + "\n" for i, p in enumerate(passages))
    (other / "corpus.jsonl").write_text(unlike)
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


@pytest.mark.parametrize("kind", ["fast", "slow"])
def test_tokens_are_those_of_the_tokenizers_call(tiny_encoder, kind):
    tokenizer = tiny_encoder.tokenizer if kind == "fast" else ByT5Tokenizer()
    assert tokenizer.is_fast == (kind == "fast")
    texts = ["Aspirin lowers risk.", "", "cells divide " * 100, "é 漢字 🙂 [SEP] </s>"]
    expected = tokenizer(texts, truncation=True, max_length=20, padding=False)["input_ids"]
    for _ in range(2):
        got = TokenizedTexts.from_texts(tokenizer, texts, 20)
        assert [got.ids[a:b].tolist() for a, b in pairwise(got.offsets)] == expected
        tokenizer(texts, padding=True)  # what another call leaves behind changes nothing
    assert got.ids.dtype == np.int32 and len(TokenizedTexts.from_texts(tokenizer, [], 20)) == 0


@pytest.mark.slow
def test_token_ids_take_two_bytes_where_the_vocabulary_allows(tiny_encoder, tmp_path):
    small = cached_tokens(["cells divide"], tiny_encoder, "passage", tmp_path)
    tiny_encoder.tokenizer.add_tokens([f"token{i}" for i in range(2**16 - len(tiny_encoder.tokenizer))])
    full = cached_tokens(["cells divide token3"], tiny_encoder, "passage", tmp_path)
    tiny_encoder.tokenizer.add_tokens(["onemore"])
    large = cached_tokens(["cells onemore"], tiny_encoder, "passage", tmp_path)
    assert (small.ids.dtype, full.ids.dtype, large.ids.dtype) == (np.uint16, np.uint16, np.int32)
    assert all(isinstance(t.offsets, np.memmap) and t.offsets.dtype == np.int64 for t in (small, full, large))
    assert 2**16 in large.ids and large.ids.tolist() == tiny_encoder.tokenize(["cells onemore"], "passage").ids.tolist()
    ids, _ = TokenizedTexts.concatenate([small, large]).padded(np.array([0, 1]), 0)
    assert ids[1, : len(large.ids)].tolist() == large.ids.tolist()


def test_token_cache_resumes_after_a_kill_with_the_same_bytes(tiny_encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("datamodules.caches._TEXT_BLOCK", 4)
    texts = [f"text {'word ' * (i % 7)} {i}" for i in range(11)]
    cached_tokens(texts, tiny_encoder, "passage", tmp_path / "whole")
    tokenize, calls = tiny_encoder.tokenize, []

    def counted(part, kind):
        calls.append(len(part))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return tokenize(part, kind)

    monkeypatch.setattr(tiny_encoder, "tokenize", counted)
    with pytest.raises(KeyboardInterrupt):
        cached_tokens(texts, tiny_encoder, "passage", tmp_path / "killed")
    for _ in range(2):
        cached_tokens(texts, tiny_encoder, "passage", tmp_path / "killed")
        assert calls == [4, 4, 3, 3], "only the unfinished block is tokenised again"
    whole, killed = (
        {p.name: p.read_bytes() for p in (tmp_path / side / "tokens").glob("*/*.*")} for side in ("whole", "killed")
    )
    assert whole == killed and sorted(whole) == ["ids.bin", "offsets.npy"]
    ids = next((tmp_path / "killed" / "tokens").glob("*/ids.bin"))
    (ids.parent / "blocks").mkdir()  # as one leaves it that is killed between merging and tidying
    cached_tokens(texts, tiny_encoder, "passage", tmp_path / "killed")
    assert not (ids.parent / "blocks").exists()
    ids.write_bytes(whole["ids.bin"][:-2])
    cached_tokens(texts, tiny_encoder, "passage", tmp_path / "killed")
    assert ids.read_bytes() == whole["ids.bin"], "a torn file is made again"


def test_processes_share_the_tokenising(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("datamodules.caches._TEXT_BLOCK", 2)
    texts = [f"text {i}" for i in range(12)]
    encoders = [
        TextEncoder.from_pretrained(str(tiny_model), pooling="mean", passage_max_length=64, query_max_length=64)
        for _ in range(2)
    ]
    calls, both = ([], []), Barrier(2)
    for encoder, own in zip(encoders, calls, strict=True):

        def tokenize(part, kind, encoder=encoder, own=own):
            own.append(part[0])
            if len(own) == 1:
                both.wait(60)  # each holds a block at the same time
            return TextEncoder.tokenize(encoder, part, kind)

        monkeypatch.setattr(encoder, "tokenize", tokenize)
    with ThreadPoolExecutor(2) as pool:
        got = list(pool.map(lambda e: cached_tokens(texts, e, "passage", tmp_path), encoders))
    assert sorted(calls[0] + calls[1]) == sorted(texts[::2]) and min(map(len, calls)) > 0
    monkeypatch.undo()
    for tokens in got:
        np.testing.assert_array_equal(tokens.ids, encoders[0].tokenize(texts, "passage").ids)


def test_normalisation_in_blocks_is_exact(monkeypatch):
    monkeypatch.setattr("datamodules.normalization._BLOCK", 3)
    random = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(random.integers(2, 9, 40))])
    scores, groups = random.normal(size=offsets[-1]).astype(np.float32) * 5, random.integers(0, 3, 40)
    number = np.repeat(np.arange(40), np.diff(offsets))
    low, high = np.empty_like(scores), np.empty_like(scores)
    for group in range(3):
        inside = groups[number] == group
        low[inside], high[inside] = np.percentile(scores[inside].astype(np.float64), [1, 99])
    expected = np.clip((scores - low) / (high - low), 0, 1)
    got = normalize_scores(scores, offsets, groups, "percentile")
    assert got.dtype == expected.dtype == np.float32 and (got == expected).all()


@pytest.mark.parametrize("parts", [4, 13, 32])
def test_gathered_lists_share_passages(parts):
    random = np.random.default_rng(0)
    neighbourhood = random.permutation(np.repeat(np.arange(32), 25))
    rows = neighbourhood[:, None] * 40 + random.integers(0, 40, (800, 10))
    offsets = np.arange(0, 8001, 10)
    order = gathered(rows.ravel(), offsets, parts, np.random.default_rng(1))
    assert sorted(order) == list(range(800))

    def distinct(order):
        return sum(len(np.unique(rows[part])) for part in np.array_split(order, parts))

    assert distinct(order) < 0.75 * distinct(random.permutation(800))
    assert order.tolist() == gathered(rows.ravel(), offsets, parts, np.random.default_rng(1)).tolist()
    assert order.tolist() != gathered(rows.ravel(), offsets, parts, np.random.default_rng(2)).tolist()


@pytest.mark.parametrize("order", ["shuffle", "rotate"])
def test_gathering_keeps_counts_ranks_and_resumption(make_data, small_scifact, small_lists, order):
    files = [{"path": str(small_lists), "corpus": str(small_scifact), "weight": 2.0}]
    data = make_data(train=files, dev=files, group_overlapping_lists=True, order=order)

    def draws(epoch, seed=3, **options):
        sampler = BatchSampler(data._train, 8, seed, order, group_overlapping_lists=True, **options)
        sampler.set_epoch(epoch)
        return [draw.places.tolist() for draw in sampler]

    whole = draws(1)
    counts = np.bincount([place for batch in whole for _, place in batch])
    assert counts.tolist() == [2] * 40 and {len(batch) for batch in whole} == {8}
    assert all(len({place for _, place in batch}) == 8 for batch in whole), "no batch holds a list twice"
    assert whole == draws(1) and whole != draws(2) and whole != draws(1, seed=4)
    together = [{frozenset(p for _, p in batch) for batch in draws(epoch)} for epoch in (1, 2)]
    assert together[0] != together[1], "another epoch has other neighbours"
    parts = [draws(1, rank=rank, world_size=2) for rank in (0, 1)]
    assert [sorted(a + b) for a, b in zip(*parts, strict=True)] == [sorted(batch) for batch in whole]
    loader = data.train_dataloader()
    loader.sampler.set_epoch(1)
    every = [draw.places.tolist() for draw in loader.sampler]
    data.load_state_dict({"epoch": 1, "batches": 3})
    resumed = data.train_dataloader()
    resumed.sampler.set_epoch(1)
    assert [draw.places.tolist() for draw in resumed.sampler] == every[3:]


@pytest.mark.parametrize(
    ("lists", "expected"),
    [(1, 16), (100, 16), (1000, 32), (5000, 64), (10_000, 128), (1_000_000, 1024), (10**8, 4096)],
)
def test_the_batch_follows_the_number_of_lists(lists, expected):
    assert fitting_batch_size(lists) == expected


def test_a_batch_size_is_found_once_lists_are_open(tiny_encoder, small_scifact, small_lists, tmp_path):
    files = [{"path": str(small_lists), "corpus": str(small_scifact)}]
    data = QueryListDataModule(tiny_encoder, files, files, leak_guard="off", cache_dir=tmp_path)
    data.open()
    lists = sum(len(part.lists) for part in data.train_lists)
    assert fitting_batch_size(lists) == 16 and data.lists_of_step == min(lists, 16)
    assert {len(draw.places) for draw in data.sampler(train=True)} <= set(range(lists // len(data.sampler(True)), 17))
    for asked in (5, 1000):  # no more than there are, for the learning rate follows this number
        data = QueryListDataModule(tiny_encoder, files, files, leak_guard="off", cache_dir=tmp_path, batch_size=asked)
        data.open()
        assert data.lists_of_step == min(lists, asked)


def test_the_learning_rate_follows_the_batch(tiny_encoder):
    module = ListwiseDistillation(tiny_encoder)
    assert module.peak_learning_rate(4096) == 2e-4  # the paper's
    assert module.peak_learning_rate(64) == pytest.approx(2.5e-5)
    assert ListwiseDistillation(tiny_encoder, learning_rate=1e-5).peak_learning_rate(64) == 1e-5
