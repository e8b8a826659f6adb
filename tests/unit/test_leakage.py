"""The leak guard, the split, and the proof that no shipped list gives away a test query."""

import re

import numpy as np
import pyarrow as pa
import pytest

from datamodules import QueryListDataModule
from datamodules.corpus import SHIPPED, load_evaluation_set
from datamodules.leakage.queries import find_leaks
from datamodules.query_lists import read_metadata, read_query_lists
from datamodules.splits import dev_and_test, rows_in_dev
from retriever.errors import InputError

LISTS = sorted((SHIPPED / "scifact" / "lists").glob("*.parquet"))


def jaccard(a, b):
    a, b = set(re.findall(r"\w+", a.lower())), set(re.findall(r"\w+", b.lower()))
    return len(a & b) / len(a | b) if a | b else 0.0


def test_guard_finds_shared_passages_and_near_equal_queries():
    queries = ["cats lack tails", "Dogs SHOW fur, often", "no relation at all", "", "cats have long tails here"]
    evaluation = {"t1": "Cats have tails", "t2": "dogs show fur"}
    leaks = find_leaks(queries, [("x",), (), (), (), ()], evaluation, {"t1": {"x"}, "t2": set()}, 0.6)
    assert [(leak.position, leak.evaluation_query) for leak in leaks] == [(0, "t1"), (1, "t2"), (4, "t1")]
    assert leaks[0].reason.startswith("shares") and leaks[1].similarity == pytest.approx(3 / 4)
    assert find_leaks(queries, None, evaluation, {"t1": {"x"}}, 1.1) == []


@pytest.mark.slow
def test_guard_equals_brute_force_on_scifact(scifact):
    _, queries, qrels = scifact
    test = load_evaluation_set("scifact")
    relevant = test.relevant()
    train = {q: queries[q] for q in qrels}
    leaks = find_leaks(list(train.values()), [set(qrels[q]) for q in train], test.queries, relevant, 0.6)
    owned = set().union(*relevant.values())
    brute = {
        i
        for i, (q, text) in enumerate(train.items())
        if set(qrels[q]) & owned or any(jaccard(text, other) >= 0.6 for other in test.queries.values())
    }
    assert {leak.position for leak in leaks} == brute
    assert (len(train), len(train) - len(brute)) == (809, 535)


@pytest.mark.parametrize("threshold", [0.1, 0.35, 0.5, 0.6, 0.7, 1.0, 1.1])
def test_guard_finds_the_nearest_of_all_similar_queries(threshold):
    random = np.random.default_rng(0)
    queries, others = (
        [" ".join(random.choice(list("abcdefghijkl"), k)) for k in random.integers(0, 12, n)] for n in (300, 40)
    )
    names = {f"t{i}": text for i, text in enumerate(others)}
    found = {leak.position: leak for leak in find_leaks(queries, None, names, {}, threshold)}
    for position, query in enumerate(queries):
        similarity = np.array([jaccard(query, other) for other in others])
        assert (position in found) == (similarity.max() >= threshold)
        if position in found:
            assert found[position].similarity == similarity.max()
            assert found[position].evaluation_query == f"t{similarity.argmax()}"


@pytest.mark.slow
@pytest.mark.parametrize("path", LISTS, ids=lambda p: p.name)
def test_no_shipped_list_holds_a_test_query_or_judgement(path):
    test = load_evaluation_set("scifact")
    train = load_evaluation_set("scifact", "train").qrels
    for query_list in read_query_lists(path):
        if query_list.query_type == "human":
            assert query_list.query_id not in test.queries
            # every label is a train judgement of that very query
            assert set(query_list.positive_ids) <= set(train[query_list.query_id])
        else:
            assert query_list.positive_ids == [query_list.query_id.split("-", 1)[1]]
    assert "not a cross-encoder" in str(read_metadata(path)["teacher"])


@pytest.mark.slow
@pytest.mark.parametrize(("guard", "total"), [("drop", 535), ("off", 809)])
def test_what_is_trained_on_gives_away_no_test_query(tiny_encoder, tmp_path, caplog, guard, total):
    files = {side: [{"path": f"scifact/lists/human.{side}.parquet", "corpus": "scifact"}] for side in ("train", "dev")}
    data = QueryListDataModule(
        tiny_encoder, **files, leak_guard=guard, evaluation=[{"path": "scifact"}], cache_dir=tmp_path
    )
    data.setup()
    test = load_evaluation_set("scifact")
    owned = set().union(*test.relevant().values())
    twins, kept = 0, 0
    for source in data._train + data._dev:
        kept += len(source.lists)
        labels = {source.corpus.ids[int(row)].as_py() for row in source.lists.positive_rows}
        twins += len(labels & owned)
        twins += sum(jaccard(a, b) >= 0.6 for a in source.lists.queries.to_pylist() for b in test.queries.values())
    assert kept == total
    assert (twins == 0) == (guard == "drop")
    assert ("The leak guard is OFF" in caplog.text) == (guard == "off")


@pytest.mark.slow
def test_guard_can_refuse(tiny_encoder, tmp_path):
    lists = [{"path": "scifact/lists/human.train.parquet", "corpus": "scifact"}]
    data = QueryListDataModule(
        tiny_encoder, lists, leak_guard="fail", evaluation=[{"path": "scifact"}], cache_dir=tmp_path
    )
    with pytest.raises(InputError, match=r"human\.train\.parquet:\d+: .* a relevant passage with the query '\d+'"):
        data.setup()


def test_lists_are_shipped():
    assert {"human.train.parquet", "human.dev.parquet"} <= {p.name for p in LISTS}


def test_split_keeps_sources_together_and_keeps_to_the_fraction():
    random = np.random.default_rng(0)
    sources = [[f"p{i}" for i in random.choice(5000, random.integers(1, 3))] for _ in range(4000)]
    dev = dev_and_test(sources, 0.2)[0]
    sides: dict[str, set] = {}
    for ids, side in zip(sources, dev, strict=True):
        for passage in ids:
            sides.setdefault(passage, set()).add(bool(side))
    assert all(len(side) == 1 for side in sides.values())
    singles = dev_and_test([[f"s{i}"] for i in range(4000)], 0.2)[0]
    assert abs(singles.mean() - 0.2) < 0.03
    # the side of a passage does not depend on what else is there
    assert dev_and_test([["s5"], ["s6"]], 0.2)[0].tolist() == singles[5:7].tolist()
    assert dev_and_test([[], []], 0.5)[0].tolist() == [False, False]
    # and another part, from the other end of the hashes, is kept for a test
    same, test = dev_and_test(sources, 0.2, 0.3)
    assert (same == dev).all() and not (same & test).any() and abs(test.mean() - 0.3) < 0.03
    assert not {p for ids, side in zip(sources, test, strict=True) if side for p in ids} & {
        p for ids, side in zip(sources, test, strict=True) if not side for p in ids
    }
    assert np.add(*dev_and_test([["s5"], ["s6"], []], 0.5, 0.5)).tolist() == [True, True, False]
    # and passages may be named by their rows
    ids = [f"p{i}" for i in range(5000)]
    rows = np.array([int(p[1:]) for passages in sources for p in passages], np.int32)
    offsets = np.concatenate([[0], np.cumsum([len(passages) for passages in sources])])
    assert rows_in_dev(rows, offsets, pa.array(ids), 0.2).tolist() == dev.tolist()


def test_shipped_synthetic_queries_are_none_of_the_test_queries(scifact):
    test = load_evaluation_set(str(SHIPPED / "scifact"), "test", corpus=scifact[0])
    lists = [
        x for part in ("train", "dev") for x in read_query_lists(SHIPPED / f"scifact/lists/synthetic.{part}.parquet")
    ]
    assert len(lists) == 1289 and len({x.query_type for x in lists}) == 6
    assert not find_leaks([x.query for x in lists], None, test.queries, test.relevant(), 0.6)
    assert all(x.passage_ids[0] in x.positive_ids for x in lists)  # the teacher puts the source first
