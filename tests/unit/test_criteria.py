"""Which figure of dev lists goes with the test queries."""

import json

import pytest
from scipy.stats import spearmanr

from experiments.comparison.runs import find_runs, read_runs
from experiments.criteria import criteria, main
from retriever.errors import InputError

COLUMNS = "step,dev/loss,dev/teacher_ndcg@10,val/mine/ndcg@10,val/other/ndcg@10,val/other/mrr@10,train/loss"


def a_run(folder, rows, seed=1):
    folder.mkdir(parents=True)
    figures = {"ndcg@10": {"base": 0.3, "best": 0.3, "last": 0.3}}
    steps = {"base": 0, "best": 0, "last": 0}
    results = {"name": "arm", "seed": seed, "steps": steps, "datasets": {"mine": figures, "other": figures}}
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "config.yaml").write_text("name: arm\nevaluation: {datasets: [{path: mine}, {path: other}]}\n")
    lines = [",".join(map(str, row)) for row in rows]
    (folder / "metrics.csv").write_text("\n".join([COLUMNS, *lines, ""]))
    return folder


@pytest.fixture
def folders(tmp_path):
    """Two runs: the loss falls where nDCG@10 on ``mine`` rises, and the agreement says the contrary."""
    a_run(tmp_path / "a", [(0, 3, 0.9, 0.3, 0.5, 0, ""), (1, "", "", "", "", "", 7), (2, 2, 0.8, 0.4, 0.5, 0, ""),
                           (4, 1, 0.7, 0.5, 0.4, 0, "")])  # fmt: skip
    a_run(tmp_path / "b", [(0, 3, 0.9, 0.3, 0.5, 0, ""), (2, 4, 0.95, 0.2, 0.6, 0, ""),
                           (4, 2.5, 0.85, 0.33, 0.45, 0, "")], seed=2)  # fmt: skip
    return tmp_path


def test_correlations_are_scipys_and_the_base_model_counts_once(folders):
    loss, *_, agreement = criteria(read_runs(find_runs([folders])[0]), "mine")
    assert loss.name == "dev/loss" and loss.correlation == pytest.approx(1) and loss.runs == 2
    assert agreement.name == "dev/teacher_ndcg@10" and agreement.correlation == pytest.approx(-1)
    other = criteria(read_runs(find_runs([folders])[0]), "other")
    of_loss = next(c for c in other if c.name == "dev/loss")
    assert of_loss.correlation == pytest.approx(spearmanr([-3, -2, -1, -4, -2.5], [0.5, 0.5, 0.4, 0.6, 0.45])[0])
    assert of_loss.low <= of_loss.correlation <= of_loss.high


def test_what_a_figure_chooses_is_measured_against_the_best_step(folders):
    found = {c.name: c for c in criteria(read_runs(find_runs([folders])[0]), "mine")}
    assert found["dev/loss"].chosen == pytest.approx((0.2 + 0.03) / 2) == found["dev/loss"].possible
    assert found["dev/teacher_ndcg@10"].chosen == pytest.approx((0 - 0.1) / 2)
    assert found["dev/loss"].last == pytest.approx((0.2 + 0.03) / 2)
    # another set's nDCG@10 may choose, its other metrics and the target itself are left out
    assert set(found) == {"dev/loss", "dev/teacher_ndcg@10", "val/other/ndcg@10"}


def test_the_command_prints_a_table(folders, capsys):
    main([str(folders), "--on", "mine"])
    assert "dev/loss" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--on"):
        main([str(folders), "--on", "nowhere"])


def test_too_few_validations_are_refused(tmp_path):
    a_run(tmp_path / "a", [(0, 3, 0.9, 0.3, 0.5, 0, ""), (2, 2, 0.8, 0.4, 0.5, 0, "")])
    with pytest.raises(InputError, match="fewer than three validations"):
        criteria(read_runs(find_runs([tmp_path])[0]), "mine")
