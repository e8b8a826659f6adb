"""``precision: auto``: what a run, an evaluation and a preparation take, say and record, and that they agree."""

import json
import logging
import shutil
import sys

import pyarrow.parquet as pq
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from datamodules.precision import CALIBRATION
from experiments import run as run_module
from experiments.comparison.arms import group_runs
from experiments.comparison.runs import find_runs, read_runs
from experiments.evaluate import evaluate
from experiments.evaluation.typed import as_overrides
from experiments.preparation.precision import Precisions, with_dtypes
from experiments.training.precision import with_chosen_precision
from experiments.training.train import run_experiment
from helpers.kills import killed_at
from helpers.runs import CONF, config_of, prepare, prepare_config_of, weights
from helpers.teacher_models import bert_classifier
from retriever.errors import InputError

pytestmark = pytest.mark.slow

BFLOAT16 = "bf16-mixed"


@pytest.fixture
def processor(monkeypatch):
    """Say which share of float32's time bfloat16 takes; the processor has it, and runs it, however slowly."""

    def takes(share):
        monkeypatch.setattr("datamodules.precision.cpu_has_bfloat16", lambda: True)
        monkeypatch.setattr("datamodules.precision.bfloat16_share", lambda _: share)

    return takes


def precision_in(folder):
    return OmegaConf.load(folder / "config.yaml").trainer.precision


def equal(first, second):
    first, second = weights(first), weights(second)
    return all(torch.equal(first[key], second[key]) for key in first)


def block_of(output):
    return " ".join(output.split())


def evaluation_config(*typed):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("evaluate", as_overrides(typed))


def test_a_run_trains_in_what_is_faster_says_so_and_records_it(small_run, tmp_path, capsys, processor):
    short = [*small_run, "trainer.max_epochs=1", "export=false"]
    run_experiment(config_of(*short), tmp_path / "without")
    said = block_of(capsys.readouterr().out)
    assert "32-true (auto: no bfloat16 in this processor; else trainer.prec" in said
    processor(0.4)
    run_experiment(config_of(*short), tmp_path / "with")
    said = block_of(capsys.readouterr().out)
    reason = "bfloat16 takes 0.40 of float32's time, as measured; else trainer.precision=32-true"
    assert f"{BFLOAT16} (auto: {reason}), 1 rank" in said
    plan = json.loads((tmp_path / "with" / "environment.json").read_text())["plan"]
    assert plan["precision"] == f"{BFLOAT16} (auto: {reason})" and plan["device"]["precision"] == BFLOAT16
    for folder, named in (("without", "32-true"), ("with", BFLOAT16)):
        assert precision_in(tmp_path / folder) == named
        run_experiment(config_of(*short, f"trainer.precision={named}"), tmp_path / named)
        assert equal(tmp_path / folder, tmp_path / named), "the same as by its name"
    assert "auto" not in block_of(capsys.readouterr().out) and not equal(tmp_path / "with", tmp_path / "without")


def test_a_resumed_run_and_a_repeated_one_keep_the_precision_that_it_began_with(
    small_run, tmp_path, capsys, processor, monkeypatch
):
    processor(0.4)
    run_experiment(config_of(*small_run), tmp_path / "whole")
    with killed_at(6):
        run_experiment(config_of(*small_run), tmp_path / "cut")
    (tmp_path / "cache" / CALIBRATION).unlink()
    processor(2.0)
    capsys.readouterr()
    run_experiment(config_of(*small_run, f"resume={tmp_path}/cut"), tmp_path / "cut")
    assert f"{BFLOAT16}, as the run began with, 1 rank" in block_of(capsys.readouterr().out)
    assert precision_in(tmp_path / "cut") == BFLOAT16 and equal(tmp_path / "whole", tmp_path / "cut")
    line = ["run.py", "--from", str(tmp_path / "whole"), f"hydra.run.dir={tmp_path}/again"]
    for more, named in (([], BFLOAT16), (["trainer.precision=auto"], "32-true")):
        monkeypatch.setattr(sys, "argv", [*line, *more])
        run_module.main()
        assert precision_in(tmp_path / "again") == named
        shutil.rmtree(tmp_path / "again")


def test_a_sweep_knows_its_runs_again_and_other_precisions_are_other_arms(small_run, tmp_path, processor, monkeypatch):
    options = [*small_run, "export=false", "trainer.max_epochs=1", f"hydra.sweep.dir={tmp_path}/sweep"]

    def sweep(*more):
        monkeypatch.setattr(sys, "argv", ["run.py", "-m", *options, *more])
        run_module.main()

    processor(0.4)
    sweep("seed=1")
    shutil.rmtree(tmp_path / "cache")
    processor(2.0)
    sweep("seed=1,2")  # the first is not run again, the second takes what is faster now
    runs = read_runs(find_runs([tmp_path / "sweep"])[0])
    assert sorted((run.seed, precision_in(run.folder)) for run in runs) == [(1, BFLOAT16), (2, "32-true")]
    arms = group_runs(runs)
    assert sorted(sorted(run.seed for run in arm) for arm in arms.values()) == [[1], [2]]
    assert any(BFLOAT16 in name for name in arms)


def test_a_rank_takes_what_the_first_one_chose(small_run, tiny_encoder, monkeypatch, processor):
    processor(2.0)
    chosen = json.dumps(["bf16-mixed", "bfloat16 takes 0.40 of float32's time, as measured"])
    for name, value in {"LOCAL_RANK": "1", "EXPERIMENT_OF_FIRST_RANK": json.dumps({"precision of it": chosen})}.items():
        monkeypatch.setenv(name, value)
    config, said = with_chosen_precision(config_of(*small_run), tiny_encoder, "it")
    assert config.trainer.precision == BFLOAT16 and said.startswith(f"{BFLOAT16} (auto: bfloat16 takes 0.40")


def test_an_evaluation_has_the_figures_of_a_run_in_the_same_precision(
    small_run, small_scifact, tiny_model, tmp_path, caplog, processor
):
    processor(0.4)
    for side, frozen in (("both", "true"), ("queries", "false")):
        run_experiment(config_of(*small_run, f"name={side}", f"module.train_passage_encoder={frozen}"), tmp_path / side)
    typed = [str(tmp_path / "both"), str(tmp_path / "queries" / "model"), "bm25", f"bm25+{tiny_model}"]
    options = [f"sets={small_scifact}", f"output_dir={tmp_path}", "trainer.accelerator=cpu"]
    caplog.set_level(logging.INFO)
    made = evaluate(evaluation_config(*typed, *options), tmp_path / "auto")

    def figures(folder):
        return json.loads((folder / "results.json").read_text())["datasets"]["small"]["ndcg@10"]["best"]

    assert [figures(folder) for folder in made[:2]] == [figures(tmp_path / side) for side in ("both", "queries")]
    said = [
        r.getMessage() for r in caplog.records if "auto:" in r.getMessage() and r.name == "experiments.evaluation.work"
    ]
    assert len(said) == 4 and all(f": {BFLOAT16} (auto: bfloat16 takes 0.40" in line for line in said), "BM25 has none"
    names = [json.loads((f / "evaluated" / "small.json").read_text())["facts"]["how"][2] for f in made]
    assert names == [BFLOAT16, BFLOAT16, "32-true", BFLOAT16, BFLOAT16]
    caplog.clear()
    again = evaluate(evaluation_config(*typed, *options, f"trainer.precision={BFLOAT16}"), tmp_path / "auto")
    assert caplog.text.count("was evaluated before") == 4 and [*map(figures, again)] == [*map(figures, made)]


def test_a_preparation_mines_in_it_and_each_precision_has_its_own_hits_and_embeddings(
    pipeline_options, tmp_path, caplog, processor, monkeypatch
):
    processor(0.4)
    options = [o for o in pipeline_options if not o.startswith(("queries=", "output_dir="))]
    options += ["queries={human: {source: judged, filter: false}}", f"output_dir={tmp_path}", "until=mine"]
    caplog.set_level(logging.INFO)
    prepare(options)
    assert f"precision: {BFLOAT16} (auto: bfloat16 takes 0.40" in caplog.text
    assert f"on cpu in {BFLOAT16}" in caplog.text
    caplog.clear()
    prepare([*options, "precision=32-true"])
    assert "precision: 32-true\n" in caplog.text
    runs = sorted(tmp_path.glob("prepare/mine-*/run.dense.parquet"))
    first, second = (pq.read_table(path)["scores"].to_pylist() for path in runs)
    assert len(runs) == 2 and first != second, "each has a folder of its own"
    assert first[0] == pytest.approx(second[0], abs=0.02)
    monkeypatch.setattr("datamodules.caches.encode", lambda *_, **__: pytest.fail("a passage was encoded again"))
    prepare([*options, "precision=32-true", "mine.depth=29"])


def test_a_preparation_goes_on_in_the_precision_that_it_began_with(small_prepare, tmp_path, caplog, processor):
    """On a machine of another kind, and where the measurement comes out otherwise: shards must agree."""
    caplog.set_level(logging.INFO)
    options = [o for o in small_prepare if not o.startswith("queries=")]
    options.append("queries={human: {source: judged, filter: false}}")
    processor(0.4)
    prepare([*options, "until=mine"])
    (tmp_path / "cache" / CALIBRATION).unlink()
    processor(2.0)
    caplog.clear()
    prepare([*options, "stage=score"])
    file = tmp_path / "prepare" / "precision.json"
    assert f"precision: {BFLOAT16} (auto: kept in {file}; else precision=32-true)" in caplog.text
    prepare(options)
    recorded = OmegaConf.load(tmp_path / "lists" / "config.yaml")
    assert recorded.precision == BFLOAT16, "a second round computes in it, too"
    [key] = json.loads(file.read_text())
    file.write_text(json.dumps({key: "bfloat16"}))
    with pytest.raises(InputError, match=rf"{file}: corpus .*, encoder .* is 'bfloat16'; valid values are '32-true'"):
        prepare([*options, "stage=score"])
    file.unlink()
    with pytest.raises(InputError, match="Stage score needs the output of stage mine"):
        prepare([*options, "stage=score"])


def test_of_two_processes_that_begin_at_once_the_first_one_chooses(small_prepare, tmp_path, tiny_encoder, processor):
    def precisions(share, corpus="a"):
        processor(share)
        (tmp_path / "cache" / CALIBRATION).unlink(missing_ok=True)
        config = prepare_config_of(*small_prepare)
        made = Precisions(config, corpus)
        return made, made.of(tiny_encoder).name

    (first, one), (second, other), (elsewhere, third) = precisions(0.4), precisions(2.0), precisions(2.0, "b")
    assert (one, other, third) == (BFLOAT16, "32-true", "32-true")
    assert not (tmp_path / "prepare").exists(), "nothing is kept before work begins"
    assert not first.keep() and second.keep() and second.of(tiny_encoder).name == BFLOAT16
    assert not elsewhere.keep() and elsewhere.of(tiny_encoder).name == "32-true", "another corpus"
    assert not second.keep() and precisions(2.0)[1] == BFLOAT16 and precisions(0.4, "b")[1] == "32-true"


def test_a_teacher_reads_in_it_too(scifact, tmp_path, processor):
    model = bert_classifier(tmp_path / "model", list(scifact[1].values()), 1)
    options = ["corpus=x", "queries={}", "teacher=classifier", f"teacher.model={model}", f"cache_dir={tmp_path}"]

    def dtype(*more, work="work"):
        config = prepare_config_of(*options, f"work={tmp_path}/{work}", *more)
        precisions = Precisions(config, "a")
        chosen = with_dtypes(config, precisions).dtype
        precisions.keep()
        return chosen

    assert dtype(work="without") == "float32"
    processor(0.4)
    assert dtype() == "bfloat16" and dtype("precision=32-true") == dtype("teacher.dtype=float32") == "float32"
    assert dtype("teacher.model=/nowhere") == "auto", "the teacher says what is wrong"
    (tmp_path / CALIBRATION).unlink()
    processor(1.5)
    assert dtype(work="slow") == "float32" and dtype("teacher.dtype=bfloat16") == "bfloat16"
    assert dtype() == "bfloat16", "as the folder began with"
    config = prepare_config_of("corpus=x", "queries={}")
    own = {
        "_target_": "retriever.teachers.sequence_classifier.SequenceClassifier",
        "model": str(model),
        "dtype": "auto",
    }
    config_of_own = OmegaConf.merge(config, {"work": str(tmp_path / "own"), "cache_dir": str(tmp_path)})
    config_of_own.teacher = own
    assert with_dtypes(config_of_own, Precisions(config_of_own, "a")).dtype == "float32", "with what it leaves out"
    assert with_dtypes(config, Precisions(config, "a")) == config.teacher, "the fusion reads nothing"
