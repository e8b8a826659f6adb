"""The README's worked example of a user's own loss runs as it stands there."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()


def block(before: str) -> str:
    return re.search(re.escape(before) + r".*?```\w*\n(.*?)```", README, re.DOTALL)[1]


def test_no_placeholder_is_left():
    assert not re.search(r"@@|TODO|XXX", README)


def test_own_loss_needs_one_class_and_one_file(tmp_path, small_run):
    (tmp_path / "my_losses.py").write_text(block("`my_losses.py`:"))
    conf = tmp_path / "my_conf" / "module" / "list_mle.yaml"
    conf.parent.mkdir(parents=True)
    conf.write_text(block("`my_conf/module/list_mle.yaml`:"))
    command = re.search(r"PYTHONPATH=\. python (.*)", README)[1].split()
    own = ("name=", "trainer.max_epochs=")
    small = [option for option in small_run if not option.startswith(own)]
    done = subprocess.run(
        [sys.executable, *command, *small, "trainer.max_epochs=6", "hydra.run.dir=run"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["objective"] == "ListMLE" and results["name"] == "list_mle"
    with open(tmp_path / "run" / "metrics.csv") as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert sum(losses[-4:]) < sum(losses[:4])
