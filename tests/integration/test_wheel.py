"""A wheel holds everything that the tree does: code, configurations, prompts, data, the sweeper."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

DATA = ("datamodules/data/", "callbacks/reporting/", "experiments/comparison/")  # with all that they hold

ROOT = Path(__file__).parents[2]
PACKAGES = ("retriever", "datamodules", "callbacks", "experiments", "hydra_plugins")


def test_wheel_holds_code_configurations_prompts_and_data(tmp_path):
    tree = tmp_path / "tree"
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    names = [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
    for name in names:  # a build leaves folders in the tree that it builds from
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path), "."]
    done = subprocess.run(build, cwd=tree, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    [wheel] = tmp_path.glob("*.whl")
    held = {entry for entry in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in entry}
    expected = {
        name
        for name in names
        if name.startswith(PACKAGES)
        and (name.endswith((".py", ".yaml", ".css", ".html", ".js", ".tex")) or name.startswith(DATA))
        and not name.startswith("experiments/reports/")
    }
    assert len(expected) > 200 and held == expected
