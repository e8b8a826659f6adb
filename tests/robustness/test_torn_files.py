"""A torn checkpoint is told on resume, and the one before it is used; a full disk tears none; torn run folders."""

import json
import logging
import os
import random
import resource
import shutil
import sys
from pathlib import Path

import pytest
import torch

from callbacks import AtomicCSVLogger
from callbacks.reliability.atomic_checkpoints import AtomicCheckpoints, find_checkpoint
from callbacks.reliability.checkpoint_files import LAST, PREVIOUS
from datamodules.storage.files import atomic_path, is_disk_full
from experiments.comparison.runs import reason
from experiments.comparison.tables import compare
from experiments.training.train import _checkpoint, run_experiment
from helpers.kills import killed_at
from helpers.processes import free_port, on_two_ranks
from helpers.run_folders import make_run
from helpers.runs import config_of, weights
from retriever.errors import InputError

pytestmark = pytest.mark.slow


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
        run_experiment(config_of(*options), tmp_path / "cut")
    return options, tmp_path / "cut"


def test_a_torn_checkpoint_gives_way_to_the_one_before(cut, tmp_path, caplog):
    options, folder = cut
    checkpoints = folder / "checkpoints"
    with caplog.at_level(logging.INFO):
        assert find_checkpoint(folder) == checkpoints / LAST
    assert caplog.messages[-1] == f"Going on from {checkpoints / LAST} (epoch 0, step 4)"
    for number, tear in enumerate((truncate, empty, flip_bit)):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(folder, copy)
        tear(copy / "checkpoints" / LAST)
        with caplog.at_level(logging.WARNING):
            assert find_checkpoint(copy) == copy / "checkpoints" / PREVIOUS
        before = f"going on from the checkpoint before it, {copy / 'checkpoints' / PREVIOUS} (epoch 0, step 2)"
        assert caplog.messages[-1] == f"{copy / 'checkpoints' / LAST} is incomplete; {before}"
    (checkpoints / LAST).unlink()
    assert find_checkpoint(folder) == checkpoints / PREVIOUS
    assert caplog.messages[-1].startswith(f"{checkpoints / LAST} is missing; going on from the checkpoint before it")
    flip_bit(checkpoints / PREVIOUS)
    with pytest.raises(
        InputError, match=r"no whole checkpoint is left: .*previous\.ckpt is incomplete\. Put a copy back"
    ):
        find_checkpoint(folder)

    whole = run_experiment(config_of(*options), tmp_path / "whole")
    resumed = run_experiment(config_of(*options, f"resume={tmp_path}/copy2"), tmp_path / "copy2")
    expected, got = weights(tmp_path / "whole"), weights(tmp_path / "copy2")
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    assert resumed["datasets"] == whole["datasets"] and resumed["steps"] == whole["steps"]
    names = [sorted(p.name for p in (tmp_path / run / "checkpoints").iterdir()) for run in ("whole", "copy2")]
    assert names[0] == names[1] == [LAST, f"step-{whole['steps']['best']:06d}.ckpt"], "a finished run keeps no others"
    last, best = (torch.load(tmp_path / "copy2" / "checkpoints" / n, weights_only=True) for n in names[0])
    assert "optimizer_states" in last and "optimizer_states" not in best
    # and a finished run is trained further from them
    longer = [f"resume={tmp_path}/copy2", "trainer.max_epochs=3"]
    assert run_experiment(config_of(*options, *longer), tmp_path / "copy2")["steps"]["last"] == 12


def test_a_torn_best_checkpoint_is_told_before_the_run_goes_on(cut):
    _, folder = cut
    for best in (folder / "checkpoints").glob("step-*.ckpt"):
        truncate(best)
    with pytest.raises(InputError, match=r"the best checkpoint that last\.ckpt names, is incomplete or missing"):
        find_checkpoint(folder)


def ask_first_rank(number, port, folder, out):
    """One of two processes that torchrun started: what it is told to resume from, and which files it opened."""
    os.environ |= {"TORCHELASTIC_RUN_ID": "test", "RANK": str(number), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    opened, told = [], []
    sys.addaudithook(lambda event, arguments: event == "open" and opened.append(str(arguments[0])))
    for run in ("cut", "torn"):
        try:
            told.append(str(_checkpoint(config_of(f"resume={folder}/{run}"))))
        except InputError as error:
            told.append(str(error))
    Path(f"{out}.{number}").write_text(json.dumps([told, sorted(p for p in set(opened) if p.endswith(".ckpt"))]))


def test_one_rank_checks_and_all_resume_from_the_same_or_are_told_the_same(cut, tmp_path):
    _, folder = cut
    shutil.copytree(folder, tmp_path / "torn")
    for path in (tmp_path / "torn" / "checkpoints").iterdir():
        empty(path)
    truncate(folder / "checkpoints" / LAST)
    on_two_ranks(ask_first_rank, free_port(), tmp_path, tmp_path / "out")
    (told, opened), (others, none) = (json.loads((tmp_path / f"out.{number}").read_text()) for number in (0, 1))
    assert told == others and told[0] == str(folder / "checkpoints" / PREVIOUS)
    assert told[1].startswith("resume: no whole checkpoint is left")
    assert len(opened) >= 4 and none == []


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
    assert [run.seed for runs in comparison.groups.values() for run in runs] == [1]
    assert comparison.unfinished == [tmp_path / "b"] and "not a whole results file" in reason(tmp_path / "b")


def test_torn_figures_of_a_finished_run_are_one_sentence_and_a_torn_curve_is_read_as_far_as_it_goes(tmp_path):
    make_run(tmp_path / "a", "infonce", 1, (0.3, 0.3))
    (tmp_path / "a" / "metrics.csv").write_text("step,val/d/ndcg@10\n0,0.3\n5,0.3\n9,")
    [[run]] = compare([tmp_path]).groups.values()
    assert run.curve("d") == {0: 0.3, 5: 0.3}
    truncate(tmp_path / "a" / "per_query" / "d" / "step-000005.json")
    with pytest.raises(InputError, match=r"step-000005\.json: not JSON"):
        compare([tmp_path])


def test_a_new_column_rewrites_no_metrics_in_place(tmp_path):
    logger = AtomicCSVLogger(tmp_path, name="", version="")
    logger.log_metrics({"a": 1.0}, 0)
    logger.save()
    before = (tmp_path / "metrics.csv").stat().st_ino
    logger.log_metrics({"b": 2.0}, 1)
    logger.save()
    assert (tmp_path / "metrics.csv").read_text().split() == ["a,b,step", "1.0,,0", ",2.0,1"]
    assert (tmp_path / "metrics.csv").stat().st_ino != before
