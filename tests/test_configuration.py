"""Wrong settings and contradictions are one helpful sentence, and nothing has been loaded by then."""

import copy
import re
import sys
from contextlib import nullcontext

import pytest
import yaml
from omegaconf import OmegaConf
from test_run import config_of

from experiments import bench as bench_module
from experiments import compare, dashboard, mteb
from experiments import prepare as prepare_module
from experiments import run as run_module
from experiments.arguments import check_settings
from experiments.checks import check
from experiments.pipeline import Pipeline
from experiments.run import train
from retriever.errors import InputError
from retriever.objectives import InfoNCE


@pytest.fixture
def never_loaded(monkeypatch):
    """No model and no corpus is opened."""

    def loaded(*_, **__):
        raise AssertionError("something heavy was begun")

    for place in (
        "retriever.encoder.AutoModel.from_pretrained",
        "retriever.encoder.AutoTokenizer.from_pretrained",
        "callbacks.beir_evaluation.load_corpus",
        "datamodules.datamodule.load_corpus",
    ):
        monkeypatch.setattr(place, loaded)


def error_of(module, monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("module=distilation", "There is no 'distilation' in module; it has approx_ndcg.*Did you mean 'distillation'"),
        ("trainer=gpus", "Did you mean 'gpu'?"),
        ("modul=infonce", "Did you mean 'module'?"),
        ("data.batch_sise=8", "Did you mean 'batch_size'?"),
        ("encoder=cross_minilm", "needs module=reranker"),
        ("module=reranker", "module=reranker trains a cross-encoder"),
        ("trainer.max_epochs=many", "trainer.max_epochs is 'many'; it must be a whole number"),
    ],
)
def test_wrong_settings_are_named_before_anything_is_loaded(
    small_run, monkeypatch, capsys, tmp_path, never_loaded, argument, message
):
    options = ["module=distillation", *small_run, f"hydra.run.dir={tmp_path}/run", argument]
    error = " ".join(error_of(run_module, monkeypatch, capsys, *options).split())
    assert re.search(message.removesuffix("?"), error) and "error: " in error, error


@pytest.fixture(scope="module")
def base():
    """A run that is all right."""
    return config_of("module=distillation", "name=small", "logger=csv")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("+data.batch_sise=8", "unexpected keyword argument 'batch_sise'.* Did you mean 'batch_size'?"),
        ("+encoder.poolin=cls", "unexpected keyword argument 'poolin'.* Did you mean 'pooling'?"),
        ("+trainer.max_epoch=3", "Did you mean 'max_epochs'?"),
        ("+early_stopping.patiense=1", "Did you mean 'patience'?"),
        ("+diagnostics.every_n=1", "unexpected keyword argument 'every_n'"),
        ("data.batch_size=-1", "batch_size is -1; it must be a finite number above 0"),
        ("data.batch_size=1.5", "data.batch_size is 1.5; it must be a whole number"),
        ("data.list_length=0", "list_length is 0"),
        ("data.num_workers=-1", "data.num_workers is -1"),
        ("data.train=nothing", "data.train is 'nothing'; it must be a list"),
        ("module.learning_rate=abc", "module.learning_rate is 'abc'; it must be a number"),
        ("module.learning_rate=0", "learning_rate is 0"),
        ("module.temperature=0", "temperature is 0"),
        ("module.temperature=null", "module.temperature is None; it must be a number"),
        ("module.train_passage_encoder=never", "module.train_passage_encoder is 'never'; it must be true or false"),
        ("module.matryoshka_dimensions=[a]", r"module.matryoshka_dimensions is \['a'\]; it must be a list, each"),
        ("encoder.pooling=men", "valid values are 'cls', 'mean', 'last'. Did you mean 'mean'?"),
        ("encoder.query_max_length=2", "encoder.query_max_length is 2; it must be at least 3"),
        ("trainer.precision=bf16mixed", r"trainer.precision is 'bf16mixed'; .*\(did you mean 'bf16-mixed'\?\)"),
        ("trainer.strategy={_target_: lightning.pytorch.strategies.ModelParallelStrategy}", "checkpoint is true; only"),
        (
            "trainer.strategy={_target_: lightning.pytorch.strategies.FSDPStrategy, state_dict_type: sharded}",
            "state_dict_type is 'sharded'; only",
        ),
        ("trainer.max_epochs=0", "trainer.max_epochs is 0; it must be at least 1, or -1"),
        ("trainer.gradient_clip_val=-1", "trainer.gradient_clip_val is -1"),
        ("data.normalization=minmax", "Did you mean 'list_minmax'?"),
        ("data.candidates=tops", "Did you mean 'top'?"),
        ("criterion=dev/los", "Did you mean 'dev/loss'?"),
        ("criterion=dev/infonce", "valid values are 'dev/loss', 'dev/kl', 'dev/top1_agreement', 'dev/teacher_ndcg@10'"),
        ("criterion=loss", "criterion is 'loss'; valid values are 'dev/loss'"),
        ("token_budget=0", "token_budget is 0"),
        ("name=a/b", "name is 'a/b'; files are called by it"),
    ],
)
def test_wrong_values_are_named_before_anything_is_loaded(base, never_loaded, argument, message):
    config = copy.deepcopy(base)
    check(config)
    key, _, value = argument.lstrip("+").partition("=")
    OmegaConf.update(config, key, yaml.safe_load(value), force_add=True)
    with pytest.raises(InputError) as refused:
        check(config)
    assert re.search(message.removesuffix("?"), str(refused.value)), refused.value


def test_a_run_may_be_ended_by_other_limits_than_epochs(base, never_loaded):
    endless = {"trainer.max_epochs": -1, "early_stopping.patience": None}
    for options, message in [
        ({"trainer.max_epochs": -1}, None),
        (endless | {"trainer.max_time": "00:01:00:00"}, None),
        (endless, "it would never end"),
        ({"diagnostics.every_n_steps": None}, None),
        ({"diagnostics": None}, "diagnostics is null; to switch it off, say diagnostics.every_n_steps=null"),
    ]:
        config = copy.deepcopy(base)
        for key, value in options.items():
            OmegaConf.update(config, key, value, force_add=True)
        with pytest.raises(InputError, match=message) if message else nullcontext():
            check(config)


class OwnWay:
    """A class of a user's, which does something of its own with what it does not name."""

    def __init__(self, layers, of=None, **options):
        self.margin = options.pop("margin")


def test_what_a_users_class_makes_of_its_arguments_is_its_own_business():
    check_settings("module", {"layers": [1, 2], "of": {"a": 1}, "margin": 0.1}, OwnWay)
    with pytest.raises(InputError, match=r"'margin'; InfoNCE takes"):
        check_settings("module", {"margin": 0.1}, InfoNCE)


def test_a_metric_of_no_evaluation_is_refused(small_run, small_scifact, never_loaded):
    sets = [f"{{path: {small_scifact}}}", f"{{path: {small_scifact}, split: train, name: dev, queries: dev}}"]
    options = [*small_run, "module=distillation", f"evaluation.datasets=[{', '.join(sets)}]"]
    check(config_of(*options, "criterion=val/dev/ndcg@10", "criterion_mode=max"))
    with pytest.raises(InputError, match="Did you mean 'val/dev/ndcg@10'"):
        check(config_of(*options, "criterion=val/dev/ndcg@1"))
    with pytest.raises(InputError, match=r"valid values are .*'val/dev/mrr@10'"):
        check(config_of(*options, "criterion=val/other/mrr@10", "allow_test_selection=true"))


def test_every_objective_names_its_dev_metrics(small_run):
    for module, part in {"combined": "infonce", "infonce": "loss", "distillation_in_batch": "loss"}.items():
        check(config_of(f"module={module}", *small_run, f"criterion=dev/{part}"))
    check(config_of("module=reranker", "encoder=cross_minilm", "criterion=dev/mrr", "early_stopping.patience=null"))


def test_a_run_goes_on_with_what_it_began_with(small_run, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"")
    OmegaConf.save(OmegaConf.to_container(config_of(*small_run), resolve=True), tmp_path / "config.yaml")
    check(config_of(*small_run, f"resume={tmp_path}", "encoder.attention=eager", "trainer.max_epochs=9"))
    check(config_of(*small_run, f"resume={tmp_path}", "encoder.query_max_length=${oc.decode:'64'}"))
    for option, message in {
        "encoder.query_prompt=x": "begun with encoder.query_prompt=, and this asks for x",
        "module.train_passage_encoder=false": "begun with module.train_passage_encoder=True",
        "module=infonce": "begun with module._target_=retriever.objectives.CombinedObjective",
    }.items():
        with pytest.raises(InputError, match=message):
            check(config_of(*small_run, f"resume={tmp_path}", option))


def test_a_tuned_model_is_read_as_it_was_trained(small_run, tmp_path):
    options = ["module.train_passage_encoder=false", "encoder.query_prompt='query: '", "trainer.max_steps=1"]
    train(config_of(*small_run, *options), tmp_path / "run")
    model = f"encoder.model={tmp_path}/run/model"
    with pytest.raises(InputError, match=r"encoder.query_prompt is '', and .*/run/model was trained with 'query: '"):
        check(config_of(*small_run, model))
    with pytest.raises(InputError, match="whose query side alone was trained"):
        check(config_of(*small_run, model, "encoder.query_prompt=null", "module.train_passage_encoder=false"))
    check(config_of(*small_run, model, "encoder.query_prompt=null"))


def test_short_lists_are_counted(small_run, tmp_path, caplog):
    train(config_of(*small_run, "trainer.max_steps=1", "export=false"), tmp_path / "run")
    assert "data.list_length is 20, but the longest of " in caplog.text and "data.list_length=8" in caplog.text
    caplog.clear()
    train(config_of(*small_run, "trainer.max_steps=1", "export=false", "data.list_length=8"), tmp_path / "other")
    assert "data.list_length is" not in caplog.text


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("filter.keap=5", "Did you mean 'keep'?"),
        ("+filter.keap=5", "unexpected keyword argument 'keap'"),
        ("filter.keep=few", "filter.keep is 'few'; it must be a whole number or null"),
        ("sample.size=-1", "size"),
        ("until=mines", "Did you mean 'mine'?"),
        ("teacher=fussion", "Did you mean 'fusion'?"),
        ("+teacher.weight=1", "unexpected keyword argument 'weight'"),
        ("queries={../evil: {source: judged}}", "files are called by it"),
        ("+teacher.x._target_=os.system", "standard library"),
    ],
)
def test_prepare_names_wrong_settings(small_prepare, monkeypatch, capsys, argument, message):
    options = [o for o in small_prepare if not (o.startswith("queries=") and argument.startswith("queries="))]
    assert message in error_of(prepare_module, monkeypatch, capsys, *options, argument)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("parts=[stepp]", "Did you mean 'step'?"),
        ("step.cases=[{list: 64}]", "Did you mean 'lists'?"),
        ("step.cases=[{lists: 64, systems: [our_infonce]}]", "Did you mean 'ours_infonce'?"),
        ("evaluation.systems=[bear]", "Did you mean 'beir'?"),
        ("max_lenght=3", "Did you mean 'max_length'?"),
    ],
)
def test_bench_names_wrong_settings(monkeypatch, capsys, tmp_path, argument, message):
    error = error_of(bench_module, monkeypatch, capsys, argument, f"hydra.run.dir={tmp_path}/x")
    assert message in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (compare, ["run", "--outptu", "x"], "Did you mean '--output'?"),
        (compare, ["run", "--which", "lasst"], "Did you mean 'last'?"),
        (mteb, ["model", "--datset=x"], "Did you mean '--dataset'?"),
        (dashboard, ["--entiti", "x"], "Did you mean '--entity'?"),
    ],
)
def test_options_of_the_other_commands_are_named_too(module, arguments, message, capsys):
    with pytest.raises(SystemExit):
        module.main(arguments)
    assert message in capsys.readouterr().err


def test_a_group_cannot_be_chosen_of_a_repeated_run(small_run, tmp_path, monkeypatch, capsys):
    OmegaConf.save(OmegaConf.to_container(config_of(*small_run), resolve=True), tmp_path / "config.yaml")
    arguments = ["--from", str(tmp_path), "module=infonce"]
    assert "module is a group, and --from takes the settings" in error_of(run_module, monkeypatch, capsys, *arguments)
    assert "Did you mean 'seed'?" in error_of(run_module, monkeypatch, capsys, "--from", str(tmp_path), "sead=2")


@pytest.mark.parametrize("module", [run_module, prepare_module, bench_module])
def test_help_says_what_the_command_does(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["command", "--help"])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    assert not stopped.value.code
    text = capsys.readouterr().out
    assert "python -m experiments." in text and "encoder" in text and "== Groups ==" in text and "--cfg job" in text
    assert len(text.splitlines()) < 60 and max(map(len, text.splitlines())) < 400


def test_pipeline_keeps_its_checks(small_prepare):
    from hydra import compose, initialize_config_dir
    from test_run import CONF

    with initialize_config_dir(str(CONF / "prepare"), version_base="1.3"):
        Pipeline(compose("prepare", small_prepare))
