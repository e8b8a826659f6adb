"""Commands that are killed at random moments, and started again until they end: nothing is lost, torn or different.

``FAULT_KILLS=200 pytest tests/robustness/test_faults.py -s`` strikes so often per command, and prints the counts.
"""

import csv
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml

from helpers import faults

KILLS = int(os.environ.get("FAULT_KILLS", 1))
pytestmark = [pytest.mark.slow, pytest.mark.timeout(420 * KILLS)]
KINDS = ("kill", "kill", "kill_within", "term", "full", "memory")
TIMES = ("wall_time_s", "peak_memory_bytes", "seconds_of_work", "started", "finished")
SPEED = "diagnostics/tokens_per_second"
STATUS = {"kill": {-9}, "kill_within": {-9, 0}, "term": {143}, "full": {0, 1, 2}, "memory": {1, 2}}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where all commands of this module write, below ``now``: what they leave holds its name."""
    return tmp_path_factory.mktemp("faults")


def struck(command, place, kind=None, at=None):
    """Run one command, with a fault or without; what became of it, and what it said."""
    log = place / "log"
    log.unlink(missing_ok=True)
    module, arguments = command
    return faults.run(module, arguments, str(log), place / "now", kind, at), log.read_text()


def digest(value):
    """A hash of nested tensors and numbers, to the bit."""
    found = hashlib.sha256()

    def add(item):
        if isinstance(item, torch.Tensor):
            found.update(item.numpy().tobytes())
        elif isinstance(item, dict):
            for key in sorted(item, key=str):
                found.update(str(key).encode())
                add(item[key])
        elif isinstance(item, list | tuple):
            for inner in item:
                add(inner)
        else:
            found.update(repr(item).encode())

    add(value)
    return found.hexdigest()


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(inner) for key, inner in value.items() if key not in TIMES}
    return value


def rows(folder):
    """(step, columns) → row of metrics.csv, over all parts of a run."""
    found = {}
    parts = sorted(folder.glob("metrics-part*.csv"), key=lambda p: int(p.stem[len("metrics-part") :]))
    for path in [*parts, folder / "metrics.csv"]:
        if path.is_file():
            for row in csv.DictReader(path.read_text().splitlines()):
                kept = {name: value for name, value in row.items() if value and name != SPEED}
                found[kept["step"], tuple(sorted(kept))] = kept
    return found


def outcome(folder):
    """File → content, without what depends on the clock."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if ".hydra" in name or path.suffix in (".log", ".lock") or path.name in ("environment.json", "multirun.yaml"):
            continue
        if path.name.startswith("metrics"):
            found[str(Path(name).with_name("metrics"))] = rows(path.parent)
        elif path.name == "config.yaml":
            found[name] = {k: v for k, v in yaml.safe_load(path.read_text()).items() if k != "resume"}
        elif path.suffix == ".ckpt":
            state = torch.load(path, weights_only=True)
            parts = ("state_dict", "optimizer_states", "lr_schedulers", "global_step")
            found[name] = digest([state.get(part) for part in parts])
        elif path.name in ("results.json", "manifest.json"):
            found[name] = without_times(json.loads(path.read_text()))
        elif path.name.startswith("comparison") and (folder / "sweep").is_dir():  # it shows minutes
            found[name] = path.stat().st_size > 0
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def finished(folder):
    """What a start must leave as it is: file → time of its last change."""
    whole = [p.parent for p in [*folder.rglob("manifest.json"), *folder.glob("sweep/*/results.json")]]
    files = {p for place in whole for p in place.rglob("*") if p.suffix in (".parquet", ".json", ".jsonl", ".trec")}
    for checkpoint in folder.rglob("last.ckpt"):
        step = torch.load(checkpoint, weights_only=True)["global_step"]
        run = checkpoint.parents[1]
        files |= {p for p in run.rglob("step-*.trec") if int(p.stem[len("step-") :]) <= step}
    return {p: p.stat().st_mtime_ns for p in files if p.parent != folder / "lists"}


@pytest.fixture
def commands(small_run, small_prepare, place):
    """Name → (module, arguments); all write below ``now``."""
    now = place / "now"
    common = [o for o in small_run if not o.startswith(("output_dir=", "name="))] + [f"output_dir={now}"]
    single = ["name=small", "trainer.max_epochs=2", "trainer.val_check_interval=2", "encoder.dropout=0.1"]
    folder = [f"hydra.run.dir={now}/run", f"resume={now}/run"]
    grid = ["module=distillation", "module.temperature=0.05,0.1", "trainer.max_epochs=1", "export=false"]
    prepare = [o for o in small_prepare if not o.startswith("output_dir=")] + [f"output_dir={now}"]
    return {
        "run": ("experiments.run", [*common, *single, *folder]),
        "workers": ("experiments.run", [*common, *single, *folder, "data.num_workers=2"]),
        "sweep": ("experiments.run", ["-m", *common, *grid, f"hydra.sweep.dir={now}/sweep"]),
        "prepare": ("experiments.prepare", prepare),
        "compare": ("experiments.compare", [str(now / "runs"), "--output", str(now / "report")]),
    }


class Whole(NamedTuple):
    """What an undisturbed command leaves, the bytes of it, and how many file operations it takes."""

    outcome: dict
    size: int
    operations: int


@pytest.fixture(scope="module")
def known():
    """Command → :class:`Whole`."""
    return {}


@pytest.fixture
def whole(known, commands, place):
    """A command's :class:`Whole`."""
    now = place / "now"

    def run(name):
        ready(now, name)
        told, log = struck(commands[name], place)
        assert told["status"] == 0, log
        size = sum(p.stat().st_size for p in now.rglob("*"))
        known[name] = Whole(outcome(now), size, told["operations"])
        if name == "sweep":
            shutil.copytree(now / "sweep", place / "runs")

    def of(name):
        if name == "compare" and not (place / "runs").is_dir():
            run("sweep")
        if name not in known:
            run(name)
        return known[name]

    return of


def ready(now, command=None):
    """An empty folder for a case; for a comparison the runs that it reads."""
    shutil.rmtree(now, ignore_errors=True)
    now.mkdir()
    if command == "compare":
        shutil.copytree(now.with_name("runs"), now / "runs")


def differences(got, whole):
    """Names of what differs; of metrics the rows."""
    found = []
    for name in sorted(k for k in got.keys() | whole.keys() if got.get(k) != whole.get(k)):
        if "/step-" in name and name.endswith(".ckpt") and not (name in got and name in whole):
            continue  # one of the superseded ones, which a kill may leave
        found.append(name)
        if name.endswith("metrics") and name in got:
            mine, theirs = got[name], whole[name]
            keys = sorted(k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k))
            found.append([(k, mine.get(k), theirs.get(k)) for k in keys][:4])
    return found


@pytest.mark.parametrize("command", ["run", "workers", "sweep", "prepare", "compare"])
def test_struck_commands_end_as_undisturbed_ones_do(commands, whole, place, command):
    now, moments, counts, wrong = place / "now", random.Random(f"1 {command}"), Counter(), []
    expected, _, operations = whole(command)
    starts = cases = 0
    slowest = 0.0
    while counts.total() < KILLS:
        cases += 1
        ready(now, command)
        kept, again = {}, True
        while again:  # the same command again, until it ends
            kind = moments.choice(KINDS) if counts.total() < KILLS else None
            at = moments.randint(1, operations) if kind else None
            told, log = struck(commands[command], place, kind, at)
            starts, again = starts + 1, told["struck"]
            status = STATUS[kind] if again else {0}
            if told["status"] not in status or (kind == "full" and told["status"] and not one_sentence(log)):
                wrong.append((cases, kind, told["status"], log[-3000:]))
            rewritten = [str(p) for p, stamp in kept.items() if not p.is_file() or p.stat().st_mtime_ns != stamp]
            if rewritten:
                wrong.append((cases, kind, "lost or written again", rewritten, log[-1000:]))
            kept |= finished(now)
            if again:
                counts[kind] += 1
                slowest = max(slowest, told["waited_s"] if kind == "term" else 0)
        different = differences(outcome(now), expected)
        if different:
            wrong.append((cases, "differs", different))
    differ = sum(entry[1] == "differs" for entry in wrong)
    print(
        f"\n{command}: {counts.total()} faults {dict(counts)} in {starts} starts of {operations} file operations; ",
        end="",
    )
    print(f"{cases} results, {differ} differ; {len(wrong) - differ} else wrong; SIGTERM takes at most {slowest:.1f} s")
    assert not wrong, "\n".join(map(str, wrong))


def one_sentence(log):
    return "Traceback" not in log and "error: " in log


def mount(folder, size, *options):
    command = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "tmpfs", str(folder)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can mount a small disk")
@pytest.mark.parametrize("command", ["run", "prepare", "sweep"])
def test_a_full_disk_is_told_in_one_sentence_and_gone_on_with(commands, whole, place, command):
    now, moments, wrong = place / "now", random.Random(f"2 {command}"), []
    expected, size, _ = whole(command)
    full = 0
    for case in range(KILLS):
        ready(now)
        room = int(size * moments.uniform(0.02, 0.8))
        if not mount(now, room):
            pytest.skip("a container that may not mount")
        try:
            told, log = struck(commands[command], place)
            full += told["status"] != 0
            expect = (0, 1, 2) if command == "sweep" else (0, 2)  # 1: some runs of it failed
            if told["status"] not in expect or (told["status"] and not one_sentence(log)):
                wrong.append((case, room, told["status"], log[-3000:]))
            assert mount(now, 10 * size, "remount")
            told, log = struck(commands[command], place)
            different = differences(outcome(now), expected) if told["status"] == 0 else log[-3000:]
            if different:
                wrong.append((case, room, told["status"], different))
        finally:
            subprocess.run(["umount", str(now)], check=True)
    print(f"\n{command}: {full} full disks of {KILLS}; {len(wrong)} wrong")
    assert full and not wrong, "\n".join(map(str, wrong))
