"""Time, peak memory and matrix-multiply rate; and running what is measured in fresh processes, in turns."""

import hashlib
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from callbacks.reporting.run_record import peak_memory
from datamodules.precision import fastest_precision
from datamodules.storage.files import write_json
from experiments.benchmarks.system_name import SystemName
from retriever.encoder.precision import FLOAT32
from retriever.errors import InputError

log = logging.getLogger(__name__)
BEST = "best"  # of these texts in a peer's micro-batch
MICRO_BATCHES = (8, 16, 32, 64, 128)
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def measure(call: Callable[[], Any], device: torch.device) -> tuple[Any, dict[str, float]]:
    """Call once; its result and what it took.

    That is ``seconds`` of wall time and ``cpu_seconds`` of this process; ``peak_bytes``, the most memory that the
    process held during the call (on a GPU what torch allocated there, else its resident set); and ``bytes``, how much
    of that it did not hold before.
    """
    _synchronize(device)
    before = _reset_peak(device)
    began, cpu = time.perf_counter(), time.process_time()
    result = call()
    _synchronize(device)
    took = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
    peak = _peak(device)
    # the kernel counts pages roughly
    return result, {**took, "peak_bytes": peak, "bytes": max(0, peak - before)}


def chosen_device(name: str) -> torch.device:
    """The device that ``device: auto`` or another name stands for."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def precision_of(job: Mapping[str, Any], encoder: torch.nn.Module, device: torch.device) -> str:
    """The precision that a job's system runs in: that behind its ``@``, or its own default on this machine.

    Ours is that of a run; a peer's is float32 on a CPU, and on a GPU the same as ours.
    """
    name = SystemName.parse(job.get("system", "ours"))
    if name.precision:
        return name.precision
    ours = name.is_ours or device.type == "cuda"
    return fastest_precision(encoder, device, job["cache_dir"]).name if ours else FLOAT32


def fastest(call: Callable[[int], Any], device: torch.device) -> int:
    """Find the number of texts in a peer's micro-batch that it is fastest with: the best of two calls for each."""
    took: dict[int, float] = {}
    for _ in range(2):
        for size in MICRO_BATCHES:
            _, found = measure(partial(call, size), device)
            took[size] = min(found["seconds"], took.get(size, found["seconds"]))
    return min(took, key=lambda size: took[size])


def matmul_rate(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """FLOP/s of a product of two square matrices, the best of several for ``seconds``."""
    size = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        _, took = measure(lambda: left @ right, device)
        best = max(best, 2 * size**3 / took["seconds"])
    return best


def run_in_turns(
    jobs: Mapping[str, Mapping[str, Any]], repeats: int, say: str, folder: Path
) -> dict[str, list[dict[str, Any]]]:
    """Run each job in a fresh process, all of them in turn, ``repeats`` times over.

    Args:
        jobs: name → the job that ``experiments.benchmarks.worker`` is to do.
        repeats: rounds.
        say: what the log says of them.
        folder: where each result is kept; a job that has one there, for that round, is not done again.

    Returns:
        Name → one result per round; without ``NAME@PRECISION`` where that is the precision of ``NAME`` by default.
    """
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in jobs}
    systems = {name: SystemName.parse(name) for name in jobs}
    for number in range(repeats):
        for name in sorted(jobs, key=lambda n: bool(systems[n].precision)):  # what systems take by default first
            system, job = systems[name], jobs[name]
            by_default = results.get(system.default)
            if system.precision and by_default and by_default[number].get("precision") == system.precision:
                continue
            key = hashlib.sha256(json.dumps([job, number], sort_keys=True).encode()).hexdigest()[:16]
            path = folder / f"{job['job']}-{key}.json"
            if not path.is_file():
                log.info("%s, round %d of %d: %s …", say, number + 1, repeats, name)
                write_json(path, {"job": dict(job), "round": number, "result": run_worker(job)})
            results[name].append(json.loads(path.read_text(encoding="utf-8"))["result"])
            log.info("%s, round %d of %d: %s took %.2f s", say, number + 1, repeats, name, results[name][-1]["seconds"])
    return {name: found for name, found in results.items() if found}


def run_worker(job: Mapping[str, Any]) -> dict[str, Any]:
    """Do one job in a fresh process; its result.

    Raises:
        InputError: the process failed (its last words), or was killed for want of memory.
    """
    with tempfile.TemporaryDirectory() as folder:
        asked, answer = Path(folder) / "job.json", Path(folder) / "result.json"
        asked.write_text(json.dumps(dict(job)), encoding="utf-8")
        command = [sys.executable, "-m", "experiments.benchmarks.worker", str(asked), str(answer)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            last = "\n".join(done.stdout.strip().splitlines()[-8:])
            why = "killed, most likely for want of memory" if done.returncode < 0 else last
            told = {key: value for key, value in job.items() if key != "encoder"}
            raise InputError(f"The benchmark {told} failed: {why}")
        return json.loads(answer.read_text(encoding="utf-8"))


def medians(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Median of every number over the rounds, and each text once; anything else is taken from the first."""

    def of_rounds(key: str, first: Any) -> Any:
        if isinstance(first, int | float):
            return statistics.median(r[key] for r in rounds)
        return ", ".join(dict.fromkeys(r[key] for r in rounds)) if isinstance(first, str) else first

    return {key: of_rounds(key, first) for key, first in rounds[0].items()}


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak(device: torch.device) -> int:
    """Begin to count the peak anew; what is held now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if _CLEAR.exists():
        _CLEAR.write_text("5", encoding="utf-8")  # Linux: the high-water mark is set back to what is held now
    return _peak(device)


def _peak(device: torch.device) -> int:
    if device.type == "cuda" or not _STATUS.exists():
        return peak_memory(device)
    line = next(line for line in _STATUS.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
