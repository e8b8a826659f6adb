"""The notebooks of examples/ run to their end, on small data, with the settings of their first code cells replaced."""

import json
import os
import re
from pathlib import Path

import pytest

from datamodules.query_lists import read_query_lists, write_query_lists
from experiments.training.train import run_experiment
from helpers.runs import config_of

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).parents[2] / "examples"


def execute(name, folder, monkeypatch, **settings):
    """Run a notebook's code in a folder; give its names at the end, and what its cells end in."""
    cells = json.loads((EXAMPLES / f"{name}.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert set(settings) == set(re.findall(r"^([A-Z]+) = ", code[0], re.MULTILINE))
    names = dict(settings)
    monkeypatch.chdir(folder)
    for source in code[1:]:
        exec(compile(source, name, "exec"), names)
    return names


def test_notebooks_hold_their_outputs_and_no_place():
    for path in EXAMPLES.glob("*.ipynb"):
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        assert sum(bool(cell["outputs"]) for cell in cells) >= len(cells) - 2, path
        assert not re.search(r"/(tmp|home|root)/|Error", path.read_text()), path


def test_an_ablation_is_read_with_pandas(tmp_path, small_run, monkeypatch):
    for seed in (1, 2):
        run_experiment(config_of(*small_run, f"seed={seed}", "trainer.max_epochs=1"), tmp_path / "runs" / str(seed))
    names = execute("read_an_ablation", tmp_path, monkeypatch, RUNS="runs", SET="small", METRIC="ndcg@10")
    recorded = json.loads((tmp_path / "runs" / "2" / "results.json").read_text())["datasets"]["small"]["ndcg@10"]
    row = names["runs"].query("seed == 2").iloc[0]
    assert row["last"] == recorded["last"] and row["base"] == recorded["base"]
    gain = names["summary"]["mean gain"].iloc[1]
    assert gain == pytest.approx(recorded["last"] - recorded["base"], abs=1e-4)
    assert names["curves"].iloc[-1, 0] > 0 and len(names["table"]) == 6


def test_a_loss_of_ones_own_is_trained_and_compared(tmp_path, tiny_model, small_scifact, small_lists, monkeypatch):
    lists = list(read_query_lists(small_lists))
    (tmp_path / "lists").mkdir()
    for part, some in (("train", lists[:30]), ("dev", lists[30:])):
        write_query_lists(tmp_path / "lists" / f"human.{part}.parquet", some, {"teacher": "made for tests"})
    options = [f"encoder.model={tiny_model}", "encoder.pooling=mean", "data.leak_guard=off", "trainer.accelerator=cpu"]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(EXAMPLES.parent)]))
    monkeypatch.syspath_prepend(tmp_path)
    settings = {"LISTS": "lists", "CORPUS": str(small_scifact), "STEPS": 1, "OPTIONS": options}
    execute("own_loss", tmp_path, monkeypatch, **settings)
    table = (tmp_path / "outputs" / "own_loss" / "table.md").read_text()
    assert "| list_mle | 1 |" in table and "| distillation | 1 |" in table
