"""The losses' tests notice a sample of the ways to break the losses; ``make mutants`` tries all."""

import os
import subprocess
import sys

from mutants import HERE


def test_every_sampled_mutant_fails_a_test():
    command = [sys.executable, str(HERE / "mutants.py"), "--every", "60"]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    tried = int(done.stdout.splitlines()[-1].split()[0])
    assert tried >= 10
