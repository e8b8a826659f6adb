"""Temperatures that a run fits before it begins: its record, resuming, repeating, sweeps; and the command."""

import json
import logging
import sys

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from datamodules.corpus import load_corpus
from datamodules.query_lists import read_query_lists, write_query_lists
from experiments import prepare as prepare_module
from experiments import run as run_module
from experiments.cli.rerun import follows
from experiments.comparison.arms import group_runs
from experiments.comparison.runs import find_runs, read_runs
from experiments.settings.fitted_temperatures import without_fitted_numbers
from experiments.settings.run_settings import read_run_settings
from experiments.settings.walk import walk
from experiments.training.temperatures import fit
from experiments.training.train import make_module_and_data, run_experiment
from helpers.kills import killed_at
from helpers.runs import config_of, error_of, weights
from retriever.errors import InputError

pytestmark = pytest.mark.slow

FITTED = ("module=distillation", "temperatures=fitted", "data.normalization=none", "export=false")


def config_in(folder):
    return OmegaConf.load(folder / "config.yaml")


def plan_in(folder):
    return json.loads((folder / "environment.json").read_text())["plan"]["temperatures"]


@pytest.fixture
def mixed_lists(small_lists, tmp_path):
    """The lists with another passage first in a third of them, so that the teacher is not always right."""
    lists = list(read_query_lists(small_lists))
    for number, each in enumerate(lists):
        if number % 3 == 0:
            each.passage_ids[:2] = each.passage_ids[1::-1]
    write_query_lists(tmp_path / "mixed.parquet", lists, {"teacher": "made for tests"})
    return tmp_path / "mixed.parquet"


@pytest.fixture
def run_of_mixed(small_run, small_scifact, mixed_lists):
    return [*small_run, f"data.train=[{{path: {mixed_lists}, corpus: {small_scifact}}}]"]


def by_hand(config):
    """The two temperatures from the files and the encoder alone, in float64."""
    module, data = make_module_and_data(config)
    data.open()
    [part] = data.train_lists
    [spec] = data.train_files
    train = set(part.lists.query_ids.to_pylist())
    corpus = load_corpus(spec.corpus)
    texts = dict(zip(corpus.ids.to_pylist(), corpus.read_by(module.encoder).to_pylist(), strict=True))
    module.encoder.eval()
    lists = [each for each in read_query_lists(spec.path) if each.query_id in train]
    found = []
    for each in lists:
        with torch.no_grad():
            queries, passages = (
                module.encode(module.encoder.tokenize(text, kind)).double()
                for text, kind in (([each.query], "query"), ([texts[p] for p in each.passage_ids], "passage"))
            )
        labelled = [each.passage_ids.index(p) for p in each.positive_ids]
        found.append((np.array(each.teacher_scores), (passages @ queries[0]).numpy(), labelled))

    def least(value):
        options = {"bounds": (np.log(1e-4), np.log(100)), "method": "bounded", "options": {"xatol": 1e-6}}
        return float(np.exp(minimize_scalar(lambda x: value(np.exp(x)), **options).x))

    teacher = least(lambda τ: np.mean([-log_softmax(t / τ)[labelled].mean() for t, _, labelled in found]))

    def divergence(τ):
        shares = [(log_softmax(t / teacher), log_softmax(s / τ)) for t, s, _ in found]
        return np.mean([np.sum(np.exp(p) * (p - q)) for p, q in shares])

    return teacher, least(divergence)


def test_a_run_trains_with_what_its_lists_ask_for_and_keeps_the_numbers(run_of_mixed, tmp_path, capsys):
    folder = tmp_path / "run"
    run_experiment(config_of(*run_of_mixed, *FITTED), folder)
    teacher, student = by_hand(config_of(*run_of_mixed, *FITTED))
    config = config_in(folder)
    assert config.module.teacher_temperature == config.temperatures.teacher == pytest.approx(teacher, rel=5e-3)
    assert config.module.temperature == config.temperatures.student == pytest.approx(student, rel=5e-3)
    assert config.temperatures.corpus_teacher == 0.05 and config.temperatures.infonce == 0.01
    said = " ".join(capsys.readouterr().out.split())
    assert f"teacher_temperature {config.temperatures.teacher:g}" in said
    assert f"fitted temperatures of teacher {config.temperatures.teacher:g} (scores' standard deviation" in said
    assert "by the judgements of 29 of them" in said
    assert plan_in(folder)["student"]["temperature"] == config.temperatures.student
    stated = [f"temperatures.{name}={config.temperatures[name]}" for name in ("teacher", "student")]
    run_experiment(config_of(*run_of_mixed, "module=distillation", *FITTED[2:], *stated), tmp_path / "stated")
    first, second = weights(folder), weights(tmp_path / "stated")
    assert all(torch.equal(first[key], second[key]) for key in first), "the fit itself changes nothing else"
    assert plan_in(tmp_path / "stated") is None


def test_a_resumed_run_keeps_its_temperatures(run_of_mixed, tmp_path, capsys, monkeypatch):
    run_experiment(config_of(*run_of_mixed, *FITTED), tmp_path / "whole")
    with killed_at(6):
        run_experiment(config_of(*run_of_mixed, *FITTED), tmp_path / "cut")
    capsys.readouterr()
    monkeypatch.setattr("experiments.training.temperatures.fit", lambda *_: pytest.fail("fitted again"))
    run_experiment(config_of(*run_of_mixed, *FITTED, f"resume={tmp_path}/cut"), tmp_path / "cut")
    assert config_in(tmp_path / "cut").temperatures == config_in(tmp_path / "whole").temperatures
    assert "as the run began with" in " ".join(capsys.readouterr().out.split())
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_repeated_run_fits_the_same_and_another_seed_is_of_the_same_arm(run_of_mixed, tmp_path, monkeypatch):
    drawn = [o.replace("}]", ", draw: 12}]") if o.startswith("data.train") else o for o in run_of_mixed]
    run_experiment(config_of(*drawn, *FITTED), tmp_path / "1")
    for folder, more in (("again", []), ("2", ["seed=2"])):
        line = ["run.py", "--from", str(tmp_path / "1"), f"hydra.run.dir={tmp_path}/{folder}", *more]
        monkeypatch.setattr(sys, "argv", line)
        run_module.main()
    first, again, second = (config_in(tmp_path / name).temperatures for name in ("1", "again", "2"))
    assert first == again and first.student != second.student, "other lists were drawn"
    runs, _ = find_runs([tmp_path / "1", tmp_path / "2"])
    [(name, arm)] = group_runs(read_runs(runs)).items()
    assert name == "small" and [run.seed for run in arm] == [1, 2]


def test_only_fitted_temperatures_are_alike_in_all_runs_of_an_arm():
    def settings(*options):
        config = config_of(*options)
        flat = {k: v for k, v in walk(OmegaConf.to_container(config, resolve=True)) if not isinstance(v, dict)}
        return without_fitted_numbers(flat, follows(config))

    fitted = settings(*FITTED)
    keys = ("temperatures.student", "temperatures.teacher", "module.temperature", "module.teacher_temperature")
    assert {fitted[key] for key in keys} == {"labels"}
    assert fitted["temperatures.corpus_teacher"] == 0.05 and fitted["temperatures.infonce"] == 0.01
    for stated in (0.05, 0.3):  # the numbers of what is not fitted here
        of_infonce = settings("module=infonce", "temperatures=fitted", f"module.temperature={stated}")
        assert of_infonce["module.temperature"] == stated and of_infonce["temperatures.student"] == 0.05


def test_a_sweep_knows_its_fitted_runs_again_and_leaves_others_as_they_are(run_of_mixed, tmp_path, monkeypatch):
    options = [o for o in run_of_mixed if not o.startswith("name=")] + ["data.normalization=none", "export=false"]
    line = ["run.py", "-m", *options, "module=distillation,infonce", "temperatures=fitted", "trainer.max_epochs=1"]
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", [*line, f"hydra.sweep.dir={tmp_path}/sweep"])
        run_module.main()
    by_name = {config_in(p.parent).name: config_in(p.parent) for p in (tmp_path / "sweep").glob("*/results.json")}
    assert by_name["distillation"].temperatures.student != 0.05
    assert dict(by_name["infonce"].temperatures) == config_of("temperatures=fitted").temperatures
    assert "| distillation " in (tmp_path / "sweep" / "comparison.md").read_text(), "no number stands behind the name"


@pytest.mark.parametrize("frozen", [True, False])
def test_over_the_corpus_the_teacher_is_the_one_that_scores_it(run_of_mixed, tmp_path, frozen):
    options = [*run_of_mixed, f"module.train_passage_encoder={not frozen}", "export=false", "trainer.max_epochs=1"]
    run_experiment(config_of(*options, "module=distillation_corpus", "temperatures=fitted"), tmp_path / "run")
    config, found = config_in(tmp_path / "run"), plan_in(tmp_path / "run")
    assert config.module.teacher_temperature == config.temperatures.corpus_teacher != 0.05
    assert config.module.temperature == config.temperatures.student == found["student"]["temperature"]
    assert config.temperatures.teacher == 0.3, "of the lists, and not looked at"
    assert found["whole_corpus"] and (found["passages"] == 120) == frozen


@pytest.mark.parametrize("change", [{"positive_ids": []}, {"query_type": "sentence"}])
def test_where_no_list_is_judged_the_entropy_decides(small_run, small_scifact, small_lists, tmp_path, change):
    lists = [type(each)(**{**vars(each), **change}) for each in read_query_lists(small_lists)]
    write_query_lists(tmp_path / "bare.parquet", lists, {"teacher": "made for tests"})
    place = f"[{{path: {tmp_path}/bare.parquet, corpus: {small_scifact}}}]"
    config = config_of(*small_run, *FITTED, f"data.train={place}", f"data.dev={place}", "trainer.precision=32-true")
    module, data = make_module_and_data(config)
    data.open(dev=False)
    found = fit(config, module, data)
    assert found["rule"] == "entropy" and found["queries"] == 40 and found["labelled"] == 0
    lengths = [len(each.passage_ids) for each in lists]
    assert found["teacher"]["entropy"] == pytest.approx(np.mean(np.log(np.array(lengths) / 2)), abs=1e-3)


def test_what_cannot_be_fitted_is_refused_or_said(small_run, tmp_path, caplog):
    with pytest.raises(InputError, match="it must be labels, entropy, or null"):
        read_run_settings(OmegaConf.to_container(config_of("temperatures.fitted='yes'"), resolve=True))
    config = config_of(*small_run, "module=reranker", "encoder=cross_minilm", "temperatures=fitted")
    with pytest.raises(InputError, match="this module scores pairs"):
        fit(config, object(), None)
    with caplog.at_level(logging.WARNING):
        always_first = config_of(*small_run, *FITTED, "trainer.max_epochs=1")
        run_experiment(always_first, tmp_path / "run")
    assert "The teacher is nearly one-hot" in caplog.text


def typed(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["prepare.py", "temperatures", *map(str, arguments)])
    prepare_module.main()


def test_the_command_prints_what_a_run_would_take(run_of_mixed, mixed_lists, small_scifact, monkeypatch, capsys):
    settings = [o for o in run_of_mixed if o.partition("=")[0] in ("encoder.model", "encoder.passage_max_length")]
    settings += [f"corpus={small_scifact}", "data.normalization=none", *run_of_mixed[-1:]]
    typed(monkeypatch, mixed_lists, *settings)
    said = capsys.readouterr().out
    assert "mixed.parquet (human 40)" in said and "40 train lists, 6 passages of each list" in said
    teacher = float(said.split("temperatures.teacher=")[1].split()[0])
    assert f"temperatures of teacher {teacher:g} (" in said
    typed(monkeypatch, mixed_lists, *settings, "module=distillation_corpus", "temperatures.fitted=entropy")
    said = capsys.readouterr().out
    assert "120 passages of the whole corpus, so that the teacher looks at ten passages (40 are judged)" in said
    assert "temperatures.corpus_teacher=" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["encoder=minilm"], "temperatures needs a file of query lists"),
        (["nothing.parquet"], "nothing.parquet: no such file"),
        (["LISTS", "data.list_lenth=5"], "There is no 'list_lenth' in data"),
        (["LISTS", "encoder=nothing"], "There is no 'nothing' in encoder"),
        (["LISTS", "corpus=nowhere"], "There is no data set 'nowhere'"),
    ],
)
def test_the_command_says_what_is_wrong(small_lists, monkeypatch, capsys, arguments, said):
    arguments = [str(small_lists) if word == "LISTS" else word for word in arguments]
    assert said in error_of(prepare_module, monkeypatch, capsys, "temperatures", *arguments)
