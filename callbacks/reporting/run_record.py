"""What results.json and environment.json of a run folder hold."""

import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import lightning as L
import torch

from callbacks.evaluation.history import History
from callbacks.reliability.best_checkpoint import best_checkpoint_step
from callbacks.reporting.results import RESULTS
from datamodules.storage.files import write_json
from retriever.query_list_module import QueryListModule
from retriever.work import Encoded

_SAME = (
    "The same seed gives the same figures, to the bit, with the same code, packages, inputs, processor and number of "
    "threads and ranks. Another of these adds in another order, so figures differ in their last digits, and training "
    "lets such differences grow. Times and memory always differ."
)
_SAME_ON_GPU = (
    f"{_SAME} On a GPU some kernels add in an order that changes from run to run, unless deterministic_algorithms is "
    "true and warn_only false (trainer.deterministic=true, which refuses what has no other kernel)."
)


class RunRecord(L.Callback):
    """Writes what was run, and what came out.

    ``results.json`` holds per data set and metric the values of the base model, of the step that the dev criterion
    chose (``best``) and of the last evaluated step (``last``), on the whole corpus; ``samples`` how far those on a
    sample of it are off; the dev criterion's best value, that of every validation and the base model's; whether a
    pruner stopped the run; and seed, objective, wall time, peak memory, and what all training steps of all ranks
    together encoded: ``passages_encoded`` (frozen ones count 0), ``texts_encoded`` (queries too) and
    ``tokens_encoded`` (without padding). A passage counts each time that a step of a rank encodes it.

    Args:
        history: of the evaluation; ``results.json`` goes to its folder.
        name: the arm's name: runs of one name differ in their seed alone.
        seed: the run's seed.
        config: further values to keep (objective, encoder, …); among them ``criterion``, the dev metric, and
            ``criterion_mode``, ``min`` or ``max``.
    """

    def __init__(self, history: History, name: str, seed: int, config: Mapping[str, Any]) -> None:
        self.history = history
        self.folder = history.folder
        self.name = name
        self.seed = seed
        self.config = dict(config)
        self.started = time.perf_counter()
        self.seconds_before = 0.0
        self.encoded = Encoded()
        self.criterion: dict[int, float] = {}  # step → the dev criterion
        self.criterion_of_base: float | None = None
        self.pruned = False
        self.results: dict[str, Any] = {}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: QueryListModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count what the step encoded."""
        self.encoded = Encoded(*map(sum, zip(self.encoded, pl_module.encoded_in_step, strict=True)))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the dev criterion; the base model's apart, for a search is to tell runs from each other."""
        value = trainer.callback_metrics.get(self.config["criterion"])
        if value is None or trainer.sanity_checking:
            return
        if trainer.state.fn == "validate":
            self.criterion_of_base = float(value)
        elif trainer.state.fn == "fit":
            self.criterion[trainer.global_step] = float(value)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gather the results. Checkpoints are saved by then."""
        history = self.history
        steps = {"base": 0, "best": best_checkpoint_step(trainer), "last": max(history.steps)}
        points = {"base": history.base} | {point: history.steps[steps[point]] for point in ("best", "last")}
        self.results = {
            "name": self.name,
            "seed": self.seed,
            **self.config,
            "steps": steps,
            "criterion_value": best_value(self.criterion, self.config["criterion_mode"]),
            "criterion_of_base": self.criterion_of_base,
            "criterion_by_step": {str(step): value for step, value in self.criterion.items()},
            "pruned": self.pruned,
            "optimiser_steps": trainer.global_step,
            "datasets": {
                name: {m: {point: values[name][m] for point, values in points.items()} for m in history.metrics.names}
                for name in (opened.data.name for opened in history.sets)
            },
            "samples": history.sample_report(steps),
            "data": trainer.datamodule.report,
            "wall_time_s": round(self._seconds(), 1),
            "peak_memory_bytes": peak_memory(trainer.strategy.root_device),
            **{f"{what}_encoded": count for what, count in self.encoded._asdict().items()},
        }

    def write(self) -> None:
        """Write the results: the last act of a run, for a run that has them is finished."""
        write_json(self.folder / RESULTS, self.results)

    def _seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started

    def state_dict(self) -> dict[str, Any]:
        """Time spent, texts encoded and the dev criterion so far, so that a resumed run adds to them; and its end."""
        kept = {"encoded": list(self.encoded), "criterion": self.criterion, "pruned": self.pruned}
        return {"seconds": self._seconds(), "criterion_of_base": self.criterion_of_base, **kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a resumed run."""
        self.seconds_before, self.criterion = state_dict["seconds"], state_dict["criterion"]
        self.encoded, self.pruned = Encoded(*state_dict["encoded"]), state_dict["pruned"]
        self.criterion_of_base = state_dict.get("criterion_of_base")


def best_value(by_step: Mapping[Any, float], mode: str) -> float | None:
    """The lowest (``min``) or highest (``max``) value; None where there is none."""
    return (min if mode == "min" else max)(by_step.values(), default=None)


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, git revision, machine and device, and what of it must be the same for the same figures."""
    on_gpu = device.type == "cuda"
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "torch_threads": torch.get_num_threads(),
        "device": device_name(device),
        "cuda": {"version": torch.version.cuda, "cudnn": torch.backends.cudnn.version()} if on_gpu else None,
        "determinism": {
            "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
            "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "CUBLAS_WORKSPACE_CONFIG": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        },
        "same_figures": _SAME_ON_GPU if on_gpu else _SAME,
        "git": _git_revision(),
        "packages": dict(_packages()),
    }


def device_name(device: torch.device) -> str:
    """What a GPU is called by its driver; ``cpu``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def peak_memory(device: torch.device) -> int:
    """Most bytes this process held: on a GPU those that torch allocated there, else its resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@cache  # some tenths of a second, of each run of a sweep
def _packages() -> dict[str, str]:
    found = {about["Name"]: about["Version"] for about in (d.metadata for d in distributions()) if about["Name"]}
    return dict(sorted(found.items()))


def _git_revision() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
