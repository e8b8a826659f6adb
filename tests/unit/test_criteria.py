"""Which figure of dev lists goes with the test queries."""

import json
import math
from dataclasses import replace

import pytest
from scipy.stats import spearmanr

from experiments.comparison.runs import find_runs, read_runs
from experiments.criteria import criteria, main
from retriever.errors import InputError

COLUMNS = "step,dev/loss,dev/teacher_ndcg@10,val/mine/ndcg@10,val/other/ndcg@10,val/other/mrr@10,train/loss"

pytestmark = pytest.mark.slow


def a_run(folder, rows, seed=1, columns=COLUMNS):
    folder.mkdir(parents=True)
    figures = {"ndcg@10": {"base": 0.3, "best": 0.3, "last": 0.3}}
    steps = {"base": 0, "best": 0, "last": 0}
    results = {"name": "arm", "seed": seed, "steps": steps, "datasets": {"mine": figures, "other": figures}}
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "config.yaml").write_text("name: arm\nevaluation: {datasets: [{path: mine}, {path: other}]}\n")
    lines = [",".join(map(str, row)) for row in rows]
    (folder / "metrics.csv").write_text("\n".join([columns, *lines, ""]))
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


def found_in(folder, dataset="mine"):
    return {c.name: c for c in criteria(read_runs(find_runs([folder])[0]), dataset)}


def test_divergences_and_parts_of_losses_are_better_when_lower_and_scores_when_higher(tmp_path):
    down, up = ["corpus_kl", "kl", "loss", "distillation"], ["top1_agreement", "teacher_ndcg@10", "ndcg@10", "mrr"]
    columns = ",".join(["step", *(f"dev/{name}" for name in (*down, *up)), "val/mine/ndcg@10"])
    rows = [(step, *[3 - step / 10] * 4, *[0.1 + step / 10] * 4, 0.3 + step / 100) for step in (0, 2, 4, 6)]
    a_run(tmp_path / "a", rows, columns=columns)
    found = found_in(tmp_path)
    assert {name: c.correlation for name, c in found.items()} == dict.fromkeys(
        (f"dev/{name}" for name in (*down, *up)), pytest.approx(1)
    )
    assert all(c.chosen == pytest.approx(0.06) for c in found.values())


def test_losses_of_different_objectives_are_not_pooled(tmp_path, capsys):
    """Each run is perfectly monotone, at a level of its own."""
    columns = "step,dev/loss,dev/kl,val/mine/ndcg@10"
    a_run(tmp_path / "a", [(0, 3, 5, 0.3), (2, 2, 4, 0.4), (4, 1, 3, 0.5)], columns=columns)
    a_run(tmp_path / "b", [(0, 9, 5, 0.3), (2, 8, 4.5, 0.35), (4, 7, 2, 0.6)], seed=2, columns=columns)
    kl, loss = found_in(tmp_path).values()
    assert kl.name == "dev/kl" and kl.correlation == pytest.approx(1) and not kl.why_none
    assert math.isnan(loss.correlation) and math.isnan(loss.low) and "other objectives" in loss.why_none
    assert loss.chosen == pytest.approx((0.2 + 0.3) / 2), "in each run it chooses as ever"
    main([str(tmp_path)])
    assert "dev/loss: no correlation, for the runs give their base model different values" in capsys.readouterr().out


def test_one_run_has_no_interval_and_constant_or_nan_figures_no_correlation(tmp_path, capsys):
    columns = "step,dev/a,dev/kl,dev/loss,dev/top1_agreement,val/mine/ndcg@10"
    rows = [(0, 1, 5, 3, 0.5, 0.3), (2, 1, 4, "nan", 0.4, 0.4), (4, 1, 3, 1, 0.3, 0.5), (6, 1, 4.5, 2, 0.45, 0.38)]
    a_run(tmp_path / "a", rows, columns=columns)
    found = found_in(tmp_path)
    assert list(found)[:2] == ["dev/kl", "dev/top1_agreement"], "those without a correlation stand last"
    assert found["dev/kl"].correlation == pytest.approx(1) and math.isnan(found["dev/kl"].low)
    assert "same at all steps" in found["dev/a"].why_none and "no numbers" in found["dev/loss"].why_none
    assert found["dev/loss"].chosen == pytest.approx(0.2), "a NaN is never the best"
    main([str(tmp_path)])
    assert "nan" not in capsys.readouterr().out


def test_a_figure_with_too_few_validations_is_left_out_alone(tmp_path):
    columns = "step,dev/kl,val/other/ndcg@10,val/mine/ndcg@10"
    rows = [(0, 5, 0.1, 0.3), (2, 4, "", 0.4), (4, 3, 0.2, 0.5), (6, 2, "", 0.6)]
    a_run(tmp_path / "a", rows, columns=columns)
    assert list(found_in(tmp_path)) == ["dev/kl"]


def test_the_target_is_left_out_by_the_runs_own_name_and_its_sample_too(tmp_path):
    columns = "step,dev/kl,val/mine-sample/ndcg@10,val/mine/ndcg@10"
    a_run(tmp_path / "a", [(s, 5 - s, 0.4 + s, 0.3 + s / 10) for s in (0, 1, 2, 3)], columns=columns)
    [run] = read_runs(find_runs([tmp_path])[0])
    renamed = replace(run, datasets={"mine (corpus)": "mine"})  # as where another run has a set of that name
    assert [c.name for c in criteria([renamed], "mine (corpus)")] == ["dev/kl"]


def test_folders_of_evaluated_models_alone_are_refused(tmp_path):
    folder = a_run(tmp_path / "a", [(0, 3, 0.9, 0.3, 0.5, 0, "")])
    results = json.loads((folder / "results.json").read_text())
    results["steps"] = {"best": 0, "last": 0}
    (folder / "results.json").write_text(json.dumps(results))
    with pytest.raises(SystemExit, match="No trained run is among these"):
        main([str(tmp_path)])
