"""Commands that need no model start without what takes seconds to import."""

import os
import re
import subprocess
import sys

import pytest

HEAVY = {
    "bm25s", "datasets", "faiss", "lightning", "matplotlib", "optuna", "pandas", "peft", "ray", "scipy",
    "sentence_transformers", "sklearn", "torch", "torchmetrics", "transformers", "vllm", "wandb",
}  # fmt: skip
COMMANDS = {
    "run": {
        "--help": 0,
        "--cfg job": 0,
        "module.temprature=1": 2,
        "+module.temprature=1": 2,
        "data.batch_size=many": 2,
        "criterion=val/scifact/ndcg@10": 2,
        "data.train=[{path:nothing.parquet,corpus:scifact}]": 2,
        "evaluation.datasets=[{path:nowhere}]": 2,
        "--from nowhere": 2,
    },
    "prepare": {
        "--help": 0,
        "--cfg job": 0,
        "+data=scifact filter.consistncy_rank=1": 2,
        "+data=scifact +filter.consistncy_rank=1": 2,
        "+data=scifact corpus=nowhere": 2,
        "+data=scifact tuned=nowhere": 2,
        "--from nowhere": 2,
        "inspect --help": 0,
        "inspect nothing.parquet": 2,
        "export nothing.parquet --layout cadet --output lists.jsonl": 2,
        "temperatures nothing.parquet": 2,
    },
    "evaluate": {
        "--help": 0,
        "--cfg job": 0,
        "minilm evaluation.hitz=1": 2,
        "minilm evaluation.hits=many": 2,
        "minilm sets=nowhere": 2,
    },
    "adapt": {"--help": 0, "--cfg job": 0, "corpus=x step=3": 2, "corpus=nowhere": 2, "corpus=x minutes=0": 2},
    "compare": {"--help": 0, "nowhere": 1},
    "criteria": {"--help": 0, "nowhere": 1},
    "mix": {"--help": 0, "nowhere --output mixed": 1},
    "bench": {"--help": 0, "--cfg job": 0, "list_lenth=1": 2, "corpus=nowhere": 2},
    "push": {"--help": 0, "nowhere --repo me/small": 2, "nowhere --repo me/small --dry-run out": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "arguments", "status"),
    [(command, arguments, status) for command, typed in COMMANDS.items() for arguments, status in typed.items()],
)
def test_what_needs_no_model_imports_nothing_heavy(command, arguments, status, tmp_path):
    line = [sys.executable, "-X", "importtime", "-m", f"experiments.{command}", *arguments.split()]
    path = os.pathsep.join(sys.path)
    ended = subprocess.run(line, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert ended.returncode == status, ended.stderr[-2000:]
    imported = {
        name.partition(".")[0] for name in re.findall(r"^import time:.*\| +([\w.]+)$", ended.stderr, re.MULTILINE)
    }
    assert {"experiments", "omegaconf"} <= imported and not imported & HEAVY
