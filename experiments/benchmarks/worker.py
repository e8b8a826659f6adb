"""One job of a benchmark in a process of its own: python -m experiments.benchmarks.worker JOB.json RESULT.json."""

import json
import sys
from pathlib import Path

import torch
from hydra.utils import instantiate

from experiments.benchmarks.corpus_evaluation import run_evaluation, run_search
from experiments.benchmarks.measuring import chosen_device
from experiments.benchmarks.scale import run_encode, run_scale
from experiments.benchmarks.step_profile import run_profile
from experiments.benchmarks.training_step import run_step

JOBS = {
    "step": run_step,
    "evaluation": run_evaluation,
    "search": run_search,
    "profile": run_profile,
    "encode": run_encode,
}


def main() -> None:
    """Read the job, do it, write its result."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    if job["job"] == "scale":
        result = run_scale(job)
    else:
        device = chosen_device(job["device"])
        result = JOBS[job["job"]](job, instantiate(job["encoder"]).to(device), device)
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
