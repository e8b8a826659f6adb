"""Lists of some types, seeded draws of them, and held-out lists as evaluation sets."""

import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from callbacks.evaluation.sets import Reading, open_sets
from datamodules import QueryListDataModule
from datamodules.corpus import load_corpus, load_qrels
from datamodules.list_choice import chosen_lists, held_out_set
from datamodules.query_lists import QueryList, open_query_lists, read_query_lists, write_query_lists
from datamodules.small_corpus import cut_data_set
from datamodules.specs import read_evaluation_specs
from experiments.lists import command as list_files
from retriever.errors import InputError


@pytest.fixture
def lists(small_lists, small_scifact, tmp_path):
    """40 lists: 16 of type a, 16 of b, 8 of c."""
    opened, _ = open_query_lists(small_lists, load_corpus(small_scifact), tmp_path / "cache")
    return replace(opened, query_types=pa.array(["a", "b", "a", "b", "c"] * 8))


def types_of(chosen):
    return dict(zip(*np.unique(chosen.query_types.to_pylist(), return_counts=True), strict=True))


def test_a_draw_holds_equal_numbers_of_each_type_and_changes_with_the_seed(lists):
    mix = chosen_lists(lists, "lists", ["a", "b", "c"], 11, seed=3)
    assert types_of(mix) == {"a": 4, "b": 4, "c": 3} and len(set(mix.query_ids.to_pylist())) == 11
    ids = mix.query_ids.to_pylist()
    assert ids == [q for q in lists.query_ids.to_pylist() if q in set(ids)], "in their order"
    assert ids == chosen_lists(lists, "lists", ["a", "b", "c"], 11, seed=3).query_ids.to_pylist()
    assert ids != chosen_lists(lists, "lists", ["a", "b", "c"], 11, seed=4).query_ids.to_pylist()
    single = chosen_lists(lists, "lists", ["a"], 11, seed=3).query_ids.to_pylist()
    of_mix = [q for q, t in zip(ids, mix.query_types.to_pylist(), strict=True) if t == "a"]
    assert set(of_mix) < set(single), "a smaller draw is part of a larger one, whatever stands beside it"


def test_draws_are_even_over_the_lists(lists):
    counts = np.zeros(40)
    for seed in range(400):
        counts[chosen_lists(lists, "lists", None, 10, seed).line - 1] += 1
    assert counts.sum() == 4000 and counts.min() > 65 and counts.max() < 135  # 100 expected, sd 8.7


def test_no_choice_takes_all_and_types_alone_take_all_of_them(lists):
    assert chosen_lists(lists, "lists") is lists
    assert types_of(chosen_lists(lists, "lists", ["c", "a"])) == {"a": 16, "c": 8}
    assert len(chosen_lists(lists, "lists", None, 40)) == 40


@pytest.mark.parametrize(
    ("types", "draw", "message"),
    [
        (["a", "c"], 18, "draw 18 asks for 9 lists of type 'c', and 8 are there"),
        (None, 41, "draw 41 asks for 41 lists, and 40 are there"),
        (["d"], None, "valid values are 'a', 'b', 'c'"),
    ],
)
def test_wrong_choices_are_named(lists, types, draw, message):
    with pytest.raises(InputError, match=message):
        chosen_lists(lists, "lists", types, draw)


@pytest.fixture
def typed_file(small_lists, tmp_path):
    path = tmp_path / "typed.parquet"
    typed = [
        QueryList(**{**vars(q), "query_type": "abc"[i % 3], "positive_ids": q.positive_ids[: i % 5]})
        for i, q in enumerate(read_query_lists(small_lists))
    ]
    write_query_lists(path, typed, {})
    return path, typed


def test_train_lists_are_drawn_behind_the_guard_and_dev_lists_are_not(
    typed_file, tiny_encoder, small_scifact, small_lists, tmp_path
):
    path, typed = typed_file
    spec = {"path": str(path), "corpus": str(small_scifact), "types": ["a", "b"], "draw": 8}
    dev = {"path": str(small_lists), "corpus": str(small_scifact)}

    def drawn(seed, guard="off", **options):
        options = {"dev": [dev], "cache_dir": tmp_path / "cache", "batch_size": 8, "leak_guard": guard} | options
        data = QueryListDataModule(tiny_encoder, [spec], seed=seed, **options)
        data.setup()
        assert data.report["dev_lists"] == len(data.dev_query_ids("small"))
        return data, [q for batch in data.train_dataloader() for q in batch.query_ids]

    data, ids = drawn(1)
    kinds = {q.query_id: q.query_type for q in typed}
    assert sorted(kinds[q] for q in ids) == ["a"] * 4 + ["b"] * 4 and data.report["dev_lists"] == 40
    assert ids and set(ids) != set(drawn(2)[1]) and ids == drawn(1)[1]
    with pytest.raises(InputError, match="no list is left to choose from"):
        drawn(1, "drop")  # every train query is a dev query, too
    with pytest.raises(InputError, match=r"data\.dev\[0\]: 'draw' is no setting here; there are path, corpus, weight"):
        drawn(1, dev=[dev | {"draw": 3}])


def opened_sets(folder, *datasets):
    reading = Reading(cache_dir=folder / "cache")
    return [opened.data for opened in open_sets(read_evaluation_specs(datasets), reading)]


def test_held_out_lists_are_judged_by_the_passages_they_were_written_from(typed_file, small_scifact, tmp_path):
    path, typed = typed_file
    corpus = load_corpus(small_scifact)
    lists, _ = open_query_lists(path, corpus, tmp_path / "cache")
    data = held_out_set("held-out", corpus, chosen_lists(lists, "lists", ["b"]))
    expected = {q.query_id: q for q in typed if q.query_type == "b" and q.positive_ids}
    assert data.queries == {i: q.query for i, q in expected.items()} and 0 < len(expected) < 13
    assert data.qrels == {i: dict.fromkeys(q.positive_ids, 1) for i, q in expected.items()}
    options = {"path": str(small_scifact), "lists": str(path)}
    [opened] = opened_sets(tmp_path, options | {"types": ["b"], "name": "b"})
    assert (opened.name, opened.qrels) == ("b", data.qrels)
    for wrong, message in [({"split": "test"}, "split and lists"), ({"lists": None, "types": ["b"]}, "no lists")]:
        with pytest.raises(InputError, match=message):
            opened_sets(tmp_path, options | wrong)


def test_held_out_queries_are_guarded(typed_file, tiny_encoder, small_scifact, tmp_path):
    path, typed = typed_file
    spec = {"path": str(path), "corpus": str(small_scifact)}
    held_out = {"path": str(small_scifact), "lists": str(path), "types": ["c"], "name": "c"}
    data = QueryListDataModule(
        tiny_encoder, [spec], evaluation=[held_out], cache_dir=tmp_path / "cache", batch_size=8, leak_jaccard=1.0
    )
    data.setup()
    left = {q for source in (*data._train, *data._dev) for q in source.lists.query_types.to_pylist()}
    assert left == {"a", "b"}, "but queries that share a passage with a synthetic one stay"
    assert data.report["train_lists"] + data.report["dev_lists"] == sum(q.query_type != "c" for q in typed)


def test_a_cut_keeps_the_judged_passages_of_its_queries(small_scifact, tmp_path, capsys):
    list_files.main(["cut", str(small_scifact), "--passages", "30", "--output", str(tmp_path / "small-30")])
    assert "30 passages" in capsys.readouterr().out
    small, whole = opened_sets(tmp_path, {"path": str(tmp_path / "small-30")}, {"path": str(small_scifact)})
    assert len(small.corpus) == 30 and 10 <= len(small.queries) < 20
    assert small.queries.items() < whole.queries.items()
    assert small.qrels == {query: whole.qrels[query] for query in small.queries}
    assert set(small.corpus.passages.to_pylist()) < set(whole.corpus.passages.to_pylist())
    again = cut_data_set(small_scifact, tmp_path / "again", 30)
    assert again["passages"] == 30 and again["test queries"] == len(small.queries)
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv", "qrels/train.tsv"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "small-30" / name).read_bytes()
    assert cut_data_set(small_scifact, tmp_path / "other", 30, seed=2) and (
        (tmp_path / "other" / "corpus.jsonl").read_bytes() != (tmp_path / "again" / "corpus.jsonl").read_bytes()
    )
    for passages, message in [(121, "has 120"), (1, "too few"), (30, "is there already")]:
        with pytest.raises(InputError, match=message):
            cut_data_set(small_scifact, tmp_path / ("again" if passages == 30 else "new"), passages)


def test_a_cut_leaves_out_queries_whose_judged_passages_the_corpus_lacks(small_scifact, tmp_path):
    folder = tmp_path / "whole"
    shutil.copytree(small_scifact, folder)
    lines = (folder / "qrels" / "test.tsv").read_text().splitlines()
    query = lines[1].split("\t")[0]
    (folder / "qrels" / "test.tsv").write_text("\n".join([*lines, f"{query}\tno-such-passage\t1"]) + "\n")
    counts = cut_data_set(folder, tmp_path / "cut", 60)
    _, kept = load_qrels(tmp_path / "cut", "test")
    assert counts["passages"] == len(load_corpus(tmp_path / "cut")) == 60
    assert query not in kept and len(kept) == counts["test queries"] == len(lines) - 2
