"""Lists that prepare has split already: their dev file is found, or the lowest hashes that are left are dev."""

import json
import shlex

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra.utils import instantiate

from datamodules import QueryListDataModule
from datamodules.query_lists import QueryList, read_metadata, read_query_lists, write_query_lists
from datamodules.splits import dev_and_test
from experiments.settings.inputs import input_hashes
from helpers.runs import config_of, prepare
from retriever.errors import InputError

COUNT = 60


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A corpus of as many passages as there are lists."""
    folder = tmp_path_factory.mktemp("corpora") / "c"
    folder.mkdir()
    lines = (json.dumps({"_id": f"d{n}", "text": f"passage number {n} of words"}) for n in range(COUNT))
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    return folder


def made(group, labelled=True):
    return [
        QueryList(
            f"{group}{n}",
            f"{group} word{n} other{n}",
            "web",
            "c",
            [f"d{n}"] * labelled,
            [f"d{n}", f"d{n - 1}"],
            [2.0, 1.0],
        )
        for n in range(1, COUNT)
    ]


def write(folder, group="human", fraction=0.1, about=True, names="{}.{}.parquet", parts=("train", "dev")):
    """The files that stage split writes; without ``about``, as it wrote them once."""
    lists = made(group)
    inside = dev_and_test([q.positive_ids for q in lists], fraction)[0]
    for part in parts:
        metadata = {"corpus": "c", "group": group, "split": part, "dev_fraction": fraction} if about else {}
        mine = [q for q, dev in zip(lists, inside, strict=True) if dev == (part == "dev")]
        write_query_lists(folder / names.format(group, part), mine, metadata)
    return int(inside.sum())


@pytest.fixture
def setup(tiny_encoder, corpus, tmp_path):
    """A data module on some files, ready: its train and dev query ids."""

    def ready(*paths, **options):
        files = [{"path": str(path), "corpus": str(corpus)} for path in paths]
        options = {"cache_dir": tmp_path / "cache", "batch_size": 4, **options}
        data = QueryListDataModule(tiny_encoder, files, **options)
        data.setup()
        return tuple([q for s in part for q in s.lists.query_ids.to_pylist()] for part in (data._train, data._dev))

    return ready


def ids_of(path):
    return [q.query_id for q in read_query_lists(path)]


@pytest.mark.parametrize("fraction", [None, 0.1])
@pytest.mark.parametrize("about", [True, False])
@pytest.mark.parametrize("names", ["{}.{}.parquet", "{}-{}.jsonl", "{1}.parquet"])
def test_the_dev_file_beside_is_taken_and_named(tmp_path, setup, caplog, fraction, about, names):
    dev = write(tmp_path, about=about, names=names)
    caplog.set_level("INFO")
    train = tmp_path / names.format("human", "train")
    beside = tmp_path / names.format("human", "dev")
    found = setup(train, dev_fraction=fraction)
    assert [sorted(part) for part in found] == [sorted(ids_of(train)), sorted(ids_of(beside))]
    assert f"{train} is split already, and data.dev is null: its dev lists are the {dev} of {beside}" in caplog.text


def test_a_renamed_pair_is_found_by_what_the_files_say(tmp_path, setup):
    write(tmp_path)
    write(tmp_path, group="other")
    (tmp_path / "human.train.parquet").rename(tmp_path / "a.parquet")
    (tmp_path / "human.dev.parquet").rename(tmp_path / "z.parquet")
    found = setup(tmp_path / "a.parquet")
    assert sorted(found[1]) == sorted(ids_of(tmp_path / "z.parquet"))


def test_each_of_several_groups_has_its_own(tmp_path, setup):
    for group in ("human", "synthetic"):
        write(tmp_path, group)
    found = setup(*(tmp_path / f"{group}.train.parquet" for group in ("human", "synthetic")))
    wanted = ids_of(tmp_path / "human.dev.parquet") + ids_of(tmp_path / "synthetic.dev.parquet")
    assert sorted(found[1]) == sorted(wanted) and not set(found[0]) & set(found[1])


def test_one_dev_file_is_taken_once_for_two_draws_of_a_train_file(tmp_path, setup):
    write(tmp_path)
    path = tmp_path / "human.train.parquet"
    assert sorted(setup(path, path)[1]) == sorted(ids_of(tmp_path / "human.dev.parquet"))


def test_a_dev_file_that_is_trained_on_is_not_taken(tmp_path, setup, caplog):
    write(tmp_path)
    train, dev = setup(*(tmp_path / f"human.{part}.parquet" for part in ("train", "dev")))
    assert len(train + dev) == COUNT - 1 and not set(train) & set(dev)
    assert "data.dev_fraction=null takes them" not in caplog.text


def sources(ids):
    return {query.lstrip("abcdefghijklmnopqrstuvwxyz") for query in ids}


@pytest.mark.parametrize("way", ["alone", "merged by pandas", "an empty dev file", "another corpus' dev file"])
def test_without_a_dev_file_the_lowest_hashes_are_dev(tmp_path, setup, caplog, way):
    for group in ("human", "synthetic"):
        write(tmp_path, group, parts=("train",))
    paths = [tmp_path / f"{group}.train.parquet" for group in ("human", "synthetic")]
    if way == "merged by pandas":
        pd.concat(map(pd.read_parquet, paths)).to_parquet(tmp_path / "merged.parquet")
        paths = [tmp_path / "merged.parquet"]
    elif way == "an empty dev file":
        write_query_lists(tmp_path / "human.dev.parquet", [], {**read_metadata(paths[0]), "split": "dev"})
    elif way == "another corpus' dev file":
        write_query_lists(
            tmp_path / "human.dev.parquet", made("x"), {**read_metadata(paths[0]), "corpus": "d", "split": "dev"}
        )
    train, dev = setup(*paths)
    assert len(dev) == pytest.approx(0.1 * len(train + dev), abs=2) and not sources(train) & sources(dev)
    assert "is split already, or short: 0.1 of its" in caplog.text and "name their file in data.dev" in caplog.text


def test_another_share_that_is_asked_for_is_split_off_and_the_dev_file_named(tmp_path, setup, caplog):
    write(tmp_path)
    train, dev = setup(tmp_path / "human.train.parquet", dev_fraction=0.3)
    whole = ids_of(tmp_path / "human.train.parquet")
    assert sorted(train + dev) == sorted(whole) and len(dev) == pytest.approx(0.3 * len(whole), abs=1)
    assert f"{tmp_path / 'human.dev.parquet'} has dev lists, and data.dev_fraction=null takes them" in caplog.text
    assert sorted(setup(tmp_path / "human.train.parquet", dev_fraction=None)[1]) == sorted(
        ids_of(tmp_path / "human.dev.parquet")
    )


def test_train_and_dev_put_together_are_split_as_they_were(tmp_path, setup):
    write(tmp_path)
    tables = [pq.read_table(tmp_path / f"human.{part}.parquet") for part in ("train", "dev")]
    pq.write_table(pa.concat_tables(tables), tmp_path / "all.parquet")  # with the metadata of the first
    assert sorted(setup(tmp_path / "all.parquet")[1]) == sorted(ids_of(tmp_path / "human.dev.parquet"))


def test_lists_of_ones_own_are_not_taken_for_split_ones(tmp_path, setup):
    write_query_lists(tmp_path / "train.parquet", made("human"), {})
    write_query_lists(tmp_path / "dev.parquet", made("other"), {})
    train, dev = setup(tmp_path / "train.parquet")
    assert dev and all(query.startswith("human") for query in train + dev)


def test_what_cannot_be_split_says_why(tmp_path, setup):
    write_query_lists(tmp_path / "a.parquet", made("human", labelled=False), {})
    with pytest.raises(InputError, match=r"No list has positive_ids.*name a file of dev lists in data\.dev"):
        setup(tmp_path / "a.parquet")
    write_query_lists(tmp_path / "b.parquet", made("human")[:4], {})
    with pytest.raises(InputError, match=r"0\.1 of 4 lists with positive_ids is none.*data\.dev_fraction=0\.25"):
        setup(tmp_path / "b.parquet")
    assert len(setup(tmp_path / "b.parquet", dev_fraction=0.25)[1]) == 1


@pytest.mark.slow
def test_readmes_commands_lead_from_prepare_to_a_run(small_prepare, small_run, small_scifact, tmp_path, caplog):
    """``prepare``, then README's own ``data.train=… data.dev_fraction=0.1``, word for word but for the paths."""
    groups = "queries={human: {source: judged, filter: false}, titles: {source: titles, filter: false}}"
    own = [o for o in small_prepare if not o.startswith(("split.", "queries="))]
    prepare([*own, groups, "split.dev_fraction=0.1"])
    lists = tmp_path / "lists"
    for group in ("human", "titles"):
        name = lists / f"{group}.train.parquet"
        words = shlex.split(
            f"data=lists data.train='[{{path: {name}, corpus: {small_scifact}}}]' data.dev_fraction=0.1"
        )
        config = config_of(*(o for o in small_run if not o.startswith("data.")), *words)
        caplog.clear(), caplog.set_level("INFO")
        data = instantiate(config.data, encoder=instantiate(config.encoder))
        data.setup()
        assert data.report["train_lists"] == len(ids_of(name)) and data.report["dev_lists"] > 0
        assert "is split already" in caplog.text
        assert any("dev.parquet" in path for path in input_hashes(config))
