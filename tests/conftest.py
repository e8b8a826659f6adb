"""How the tests run: what ends what is left, the time limits, the order of files. Fixtures: ``helpers/fixtures.py``."""

from __future__ import annotations

import atexit
import ctypes
import faulthandler
import importlib
import multiprocessing
import os
import sys

import pytest

from helpers.processes import end, end_everything

os.environ.setdefault("WANDB_MODE", "offline")
# two processes share the files out in this order: a long one that came last would run alone
LONG_FILES = (
    *("readme", "dead_settings", "faults", "ray", "adapt", "cross_encoder", "launchers", "sweeps", "teacher_presets"),
    *("run", "configuration", "start", "experiments", "dead_settings_of_prepare", "prepare", "bench", "killed_runs"),
    *("vllm", "evaluation_at_scale", "evaluate", "chosen_precision", "second_round", "dead_settings_of_rerankers"),
    *("advice", "batch_files", "scifact", "wandb", "compare", "base_is_kept", "repeat", "cadet", "encoder"),
    *("fitted_temperatures", "stages", "security", "leakage", "bad_input", "ranks", "examples", "documented_commands"),
    *("compare_files", "config_groups", "trainer_settings", "mutants", "list_layouts", "streams", "datamodule"),
)

STDERR = os.dup(2)  # replaced by the terminal's below
GRACE = 60.0  # seconds from a test's time limit to the end of a process that does not heed it


def pytest_configure(config):
    """Have what tests start end with them: what outlives its parent becomes a child of this process, and ends with it.

    An orphan that holds the output of ``make test`` open would keep whoever reads it waiting.
    """
    os.dup2(2, STDERR)  # pytest had another one when it imported this
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    atexit.register(end_everything)  # before multiprocessing's, which waits for what still runs
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        # the process that shares files out to others uses no fixtures, and their imports take seconds
        config.pluginmanager.import_plugin("helpers.fixtures")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Write the stacks of all threads and end the process where pytest-timeout cannot end the test.

    Its signal is heeded where Python runs or waits for a lock, and the other tests go on; but not inside of a library
    that waits, such as a collective of torch. xdist then counts the test as failed, and starts another process.
    """
    marker = item.get_closest_marker("timeout")
    limit = float(marker.args[0] if marker else item.config.getini("timeout"))
    faulthandler.dump_traceback_later(limit + GRACE, exit=True, file=STDERR)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture(autouse=True)
def nothing_is_left_running():
    """End what a test that failed has left; not what a fixture of a module keeps for the tests that follow."""
    before = set(multiprocessing.active_children())
    yield
    end(*set(multiprocessing.active_children()) - before)


def pytest_collection_modifyitems(items):
    """Long files first."""
    names = [f"test_{name}.py" for name in LONG_FILES]
    items.sort(key=lambda item: names.index(item.path.name) if item.path.name in names else len(names))


def pytest_collection_finish():
    """Keep what imports have made out of garbage collection, which goes through it again and again: a tenth of all."""
    importlib.import_module("helpers.out_of_collection")
