"""A torn checkpoint is told on resume, and the one before it is used; a full disk tears none; torn run folders."""

import json
import logging
import random
import resource
import shutil

import pytest
import torch
from kills import killed_at
from test_evaluation import make_run
from test_run import config_of, weights

from callbacks import WholeCsvLogger
from callbacks.atomic_checkpoints import LAST, PREVIOUS, AtomicCheckpoints, find_checkpoint
from datamodules.files import atomic_path, is_disk_full
from experiments.comparison.runs import reason
from experiments.comparison.tables import compare
from experiments.run import train
from retriever.errors import InputError


def truncate(path):
    with open(path, "rb+") as file:
        file.truncate(path.stat().st_size // 2)


def empty(path):
    path.write_bytes(b"")


def flip_bit(path):
    place = random.Random(0).randrange(path.stat().st_size // 4, path.stat().st_size // 2)  # in a weight
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.fixture
def cut(small_run, tmp_path):
    """The overrides and the folder of a run that was cut off at step 6, with checkpoints at 2 and 4 (the best at 2)."""
    options = [*small_run, "trainer.val_check_interval=2", "export=false"]
    with killed_at(5):
        train(config_of(*options), tmp_path / "cut")
    return options, tmp_path / "cut"


def test_a_torn_checkpoint_gives_way_to_the_one_before(cut, tmp_path, caplog):
    options, folder = cut
    checkpoints = folder / "checkpoints"
    assert find_checkpoint(folder) == checkpoints / LAST
    for number, tear in enumerate((truncate, empty, flip_bit)):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(folder, copy)
        tear(copy / "checkpoints" / LAST)
        with caplog.at_level(logging.WARNING):
            assert find_checkpoint(copy) == copy / "checkpoints" / PREVIOUS
        assert f"{LAST} is torn; going on from the checkpoint before it" in caplog.text
    (checkpoints / LAST).unlink()
    assert find_checkpoint(folder) == checkpoints / PREVIOUS
    flip_bit(checkpoints / PREVIOUS)
    with pytest.raises(InputError, match=r"no whole checkpoint is left: .*previous\.ckpt is torn\. Put a copy back"):
        find_checkpoint(folder)

    whole = train(config_of(*options), tmp_path / "whole")
    resumed = train(config_of(*options, f"resume={tmp_path}/copy2"), tmp_path / "copy2")
    expected, got = weights(tmp_path / "whole"), weights(tmp_path / "copy2")
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    assert resumed["datasets"] == whole["datasets"] and resumed["steps"] == whole["steps"]
    names = [sorted(p.name for p in (tmp_path / run / "checkpoints").iterdir()) for run in ("whole", "copy2")]
    assert names[0] == names[1] and 3 <= len(names[0]) <= 4, "no more than two to resume from, and the best of each"


def test_a_torn_best_checkpoint_is_told_before_the_run_goes_on(cut):
    _, folder = cut
    for best in (folder / "checkpoints").glob("step-*.ckpt"):
        truncate(best)
    with pytest.raises(InputError, match=r"the best checkpoint that last\.ckpt names, is torn or missing"):
        find_checkpoint(folder)


@pytest.fixture
def no_room():
    """No file may grow beyond 100,000 bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_that_finds_no_room_leaves_the_others(no_room, tmp_path):
    plugin, path = AtomicCheckpoints(), tmp_path / LAST
    small = {"callbacks": {}, "weights": torch.zeros(100)}
    plugin.save_checkpoint(small, path)
    plugin.save_checkpoint(small, path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert before.keys() == {LAST, PREVIOUS}
    with pytest.raises(Exception, match=r"writ|unexpected"):  # torch does not say why
        plugin.save_checkpoint(small | {"weights": torch.zeros(10**6)}, path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    told = r"results.json: cannot be written, for the disk is full.*Make room and go on"
    with pytest.raises(InputError, match=told), atomic_path(tmp_path / "results.json") as temporary:
        temporary.write_text(json.dumps("x" * 10**6))
    assert {p.name for p in tmp_path.iterdir()} == before.keys()
    assert not is_disk_full(ValueError("no"), tmp_path)


@pytest.mark.parametrize("torn", ["", "{", "[]", '{"name": "a", "seed": 2}'])
def test_a_run_with_torn_results_is_listed_as_unfinished(tmp_path, torn):
    make_run(tmp_path / "a", "infonce", 1, (0.3, 0.3))
    make_run(tmp_path / "b", "infonce", 2, (0.3, 0.3))
    (tmp_path / "b" / "results.json").write_text(torn)
    comparison = compare([tmp_path])
    assert [run.seed for group in comparison.groups for run in group.runs] == [1]
    assert comparison.unfinished == [tmp_path / "b"] and "not a whole results file" in reason(tmp_path / "b")


def test_torn_figures_of_a_finished_run_are_one_sentence_and_a_torn_curve_is_read_as_far_as_it_goes(tmp_path):
    make_run(tmp_path / "a", "infonce", 1, (0.3, 0.3))
    (tmp_path / "a" / "metrics.csv").write_text("step,val/d/ndcg@10\n0,0.3\n5,0.3\n9,")
    [group] = compare([tmp_path]).groups
    assert group.runs[0].curve("d") == {0: 0.3, 5: 0.3}
    truncate(tmp_path / "a" / "per_query" / "d" / "step-000005.json")
    with pytest.raises(InputError, match=r"step-000005\.json: not JSON"):
        compare([tmp_path])


def test_a_new_column_rewrites_no_metrics_in_place(tmp_path):
    logger = WholeCsvLogger(tmp_path, name="", version="")
    logger.log_metrics({"a": 1.0}, 0)
    logger.save()
    before = (tmp_path / "metrics.csv").stat().st_ino
    logger.log_metrics({"b": 2.0}, 1)
    logger.save()
    assert (tmp_path / "metrics.csv").read_text().split() == ["a,b,step", "1.0,,0", ",2.0,1"]
    assert (tmp_path / "metrics.csv").stat().st_ino != before
