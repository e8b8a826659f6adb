"""What a killed process held keeps nobody waiting; a test that hangs ends with its stacks, and leaves no process."""

import gc
import os
import signal
import sys
import threading
import time
from multiprocessing.synchronize import SemLock
from pathlib import Path

import datasets.utils
import huggingface_hub.utils
import psutil
import pytest
import torch
import tqdm.auto
import tqdm.rich
import transformers.utils.logging

from datamodules.storage.progress import progress_bar
from experiments.training.train import run_experiment
from helpers.processes import PATIENCE, apart, end, start
from helpers.runs import config_of

pytestmark = pytest.mark.slow

BARS = {
    "ours": lambda: progress_bar("a title", 2, "items"),
    "transformers": lambda: transformers.utils.logging.tqdm(total=2),
    "datasets": lambda: datasets.utils.tqdm(total=2),
    "huggingface_hub": lambda: huggingface_hub.utils.tqdm(total=2),
    "tqdm.auto": lambda: tqdm.auto.tqdm(total=2),
    "tqdm": lambda: tqdm.tqdm(total=2),
}


def draw_behind_a_killed_child(name):
    """Draw a bar, so that its lock exists; have a forked child killed that holds it; draw another."""
    with BARS[name]():
        pass
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        for kind in (tqdm.tqdm, tqdm.auto.tqdm, datasets.utils.tqdm, huggingface_hub.utils.tqdm):
            kind.get_lock().acquire()
        os.write(writer, b"held")
        time.sleep(PATIENCE)
    os.read(reader, 4)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    signal.alarm(20)  # a wait for ever ends this process: there is no answer then
    with BARS[name]():
        return "drawn"


def test_no_bar_waits_for_a_process_that_was_killed_while_it_drew_one():
    assert {name: apart(draw_behind_a_killed_child, name) for name in BARS} == dict.fromkeys(BARS, "drawn")


def as_it_is_forked():
    locks = [repr(found) for found in gc.get_objects() if isinstance(found, SemLock)]
    deterministic = torch.are_deterministic_algorithms_enabled()
    return "helpers.warm" in sys.modules, threading.active_count(), locks, deterministic


def test_commands_are_forked_from_a_process_that_is_warm_and_shares_no_lock():
    assert apart(as_it_is_forked) == (True, 1, [], False)


def semaphores_of_a_run(options, folder):
    run_experiment(config_of(*options), folder)
    return [repr(found) for found in gc.get_objects() if isinstance(found, SemLock)], psutil.Process().children()


def test_a_run_shares_no_semaphore_and_has_no_process_beside_it(small_run, tmp_path):
    options = [*small_run, "data.num_workers=2", "trainer.max_epochs=1"]
    assert apart(semaphores_of_a_run, options, tmp_path / "run") == ([], [])


HANGING = """
import multiprocessing, subprocess, threading, time
import conftest

conftest.GRACE = 3.0

def sleeps():
    a_name_in_its_stack = [time.sleep(1000)]

def test_that_waits_for_a_lock():
    subprocess.Popen(["sleep", "SECONDS"], start_new_session=True)
    subprocess.Popen(["sh", "-c", "sleep SECONDS &"], start_new_session=True)
    other = threading.Thread(target=sleeps, daemon=True)
    other.start()
    multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,)).start()
    lock = threading.Lock()
    with lock, lock:
        pass

def test_that_goes_on():
    assert not multiprocessing.active_children()

def test_that_heeds_nothing():
    while IN_THE_LAST:
        try:
            time.sleep(1000)
        except BaseException:
            pass
"""


def hanging(folder, last):
    """What pytest says of tests that hang, and how many of the processes that they leave are left."""
    folder.mkdir()
    seconds = f"1234.{os.getpid()}"  # another suite on this machine has processes of its own
    (folder / "test_hanging.py").write_text(HANGING.replace("IN_THE_LAST", str(last)).replace("SECONDS", seconds))
    root = Path(__file__).parents[2]
    line = ["-c", f"{root}/pyproject.toml", "-p", "no:cacheprovider", "-p", "conftest", "-o", "timeout=1"]
    line += ["--tb=native", str(folder)]  # the other kinds look through all modules that are imported
    process = start(folder, *line, module="pytest")
    process.join(60)
    ended = process.exitcode is not None
    end(process, hang=True)
    left = [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", seconds]]
    for orphan in left:
        orphan.kill()
    [log] = folder.parent.glob(f"{folder.name}.*.log")
    return ended, log.read_text(), len(left)


def test_a_test_that_hangs_fails_with_stacks_and_leaves_no_process(tmp_path):
    ended, said, left = hanging(tmp_path / "lock", last=False)
    assert ended and left == 0 and "1 failed, 2 passed" in said
    assert "Failed: Timeout (>1.0s)" in said and "in sleeps" in said and "with lock, lock:" in said


def test_a_test_that_heeds_no_signal_ends_its_process_with_stacks(tmp_path):
    ended, said, _ = hanging(tmp_path / "deaf", last=True)
    assert ended and "in test_that_heeds_nothing" in said and "in sleeps" in said and "passed" not in said
