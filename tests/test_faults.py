"""Commands that are killed at random moments, and started again until they end: nothing is lost, torn or different.

``FAULT_KILLS=200 pytest tests/test_faults.py -s`` strikes so often per command, and prints the counts.
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

import pytest
import torch
import yaml

import experiments

KILLS = int(os.environ.get("FAULT_KILLS", 3))
KINDS = ("kill", "kill", "kill_within", "term", "full", "memory")
TIMES = ("wall_time_s", "peak_memory_bytes", "seconds_of_work", "started", "finished")
STATUS = {"kill": {-9}, "kill_within": {-9}, "term": {143}, "full": {1, 2}, "memory": {1}}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Run one command in a forked child, with a fault or without; what became of it, and what it said."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(experiments.__file__).parents[1])}
    line = [sys.executable, str(Path(__file__).with_name("fault_server.py"))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(line, env=environment, **pipes)
    log = tmp_path_factory.mktemp("log") / "log"

    def run(command, arguments, folder, kind=None, at=None):
        log.unlink(missing_ok=True)
        job = {"command": command, "arguments": arguments, "folder": str(folder), "log": str(log)}
        process.stdin.write(json.dumps(job | {"kind": kind, "at": at}) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline()), log.read_text()

    yield run
    process.stdin.close()
    assert process.wait(timeout=60) == 0


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
                kept = {name: value for name, value in row.items() if value}
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
            found[name] = digest([state[k] for k in ("state_dict", "optimizer_states", "lr_schedulers", "global_step")])
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
def commands(small_run, small_prepare, tmp_path):
    """Name → (module, arguments); all write below ``tmp_path/now``."""
    now = tmp_path / "now"
    common = [o for o in small_run if not o.startswith(("output_dir=", "name="))] + [f"output_dir={now}"]
    single = ["name=small", "trainer.max_epochs=2", "trainer.val_check_interval=2", "encoder.dropout=0.1"]
    folder = [f"hydra.run.dir={now}/run", f"resume={now}/run"]
    grid = ["module=distillation", "module.temperature=0.05,0.1", "trainer.max_epochs=1", "export=false"]
    prepare = [o for o in small_prepare if not o.startswith("output_dir=")] + [f"output_dir={now}"]
    return {
        "run": ("run", [*common, *single, *folder]),
        "sweep": ("run", ["-m", *common, *grid, f"hydra.sweep.dir={now}/sweep"]),
        "prepare": ("prepare", prepare),
        "compare": ("compare", [str(now / "runs"), "--output", str(now / "report")]),
    }


def ready(now, command, runs):
    """An empty folder for a case; for a comparison the runs that it reads."""
    shutil.rmtree(now, ignore_errors=True)
    now.mkdir()
    if command == "compare":
        shutil.copytree(runs, now / "runs")


@pytest.mark.parametrize("command", ["run", "sweep", "prepare", "compare"])
def test_struck_commands_end_as_undisturbed_ones_do(server, commands, tmp_path, command):
    now = tmp_path / "now"
    runs = tmp_path / "runs"
    if command == "compare":
        ready(now, "sweep", None)
        module, arguments = commands["sweep"]
        assert server(module, arguments, now)[0]["status"] == 0
        (now / "sweep").rename(runs)
    module, arguments = commands[command]
    ready(now, command, runs)
    told, log = server(module, arguments, now)
    assert told["status"] == 0, log
    whole, operations = outcome(now), told["operations"]
    moments, counts, differing, starts, case = random.Random(f"1 {command}"), Counter(), [], 0, 0
    longest = 0.0
    while counts.total() < KILLS:
        case += 1
        ready(now, command, runs)
        kept = {}
        for _ in range(30):
            last = counts.total() >= KILLS
            kind = None if last else moments.choice(KINDS)
            at = moments.randint(1, operations) if kind else None
            told, log = server(module, arguments, now, kind, at)
            starts += 1
            rewritten = [str(p) for p, stamp in kept.items() if not p.is_file() or p.stat().st_mtime_ns != stamp]
            assert not rewritten, f"case {case}, {kind}: lost or written again: {rewritten}\n{log}"
            if told["struck"]:
                counts[kind] += 1
                if told["status"] == 0 and kind not in ("kill", "kill_within", "term"):
                    counts[f"{kind}, borne"] += 1
                elif told["status"] not in STATUS[kind]:
                    differing.append((case, kind, told["status"], log[-3000:]))
                if kind == "term":
                    longest = max(longest, told["waited_s"])
                if kind == "full" and told["status"] != 0 and ("Traceback" in log or "error: " not in log):
                    differing.append((case, kind, "not one sentence", log[-3000:]))
            elif told["status"] != 0:
                differing.append((case, kind, told["status"], log[-3000:]))
                break
            kept |= finished(now)
            if not told["struck"]:
                break
        got = outcome(now)
        different = sorted(name for name in got.keys() | whole.keys() if got.get(name) != whole.get(name))
        if different:
            differing.append((case, different))
            for name in different:
                if name.endswith("metrics") and name in got:
                    mine, theirs = got[name], whole[name]
                    keys = sorted(k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k))
                    differing.append([(k, mine.get(k), theirs.get(k)) for k in keys][:4])
    print(f"\n{command}: {starts} starts, {case} cases, of {operations} operations; {dict(counts)}; ", end="")
    print(f"SIGTERM to end at most {longest:.1f} s; {len(differing)} differ")
    assert not differing, "\n".join(map(str, differing))
