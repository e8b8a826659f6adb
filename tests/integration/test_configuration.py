"""Wrong settings and contradictions are one helpful sentence, and nothing has been loaded by then."""

import copy
import io
import os
import re
import shutil
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException, InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf, open_dict

from experiments import bench as bench_module
from experiments import compare, dashboard, mteb
from experiments import prepare as prepare_module
from experiments import run as run_module
from experiments.cli.arguments import check_added, say_what_is_kept
from experiments.cli.errors import explain, run_kindly
from experiments.cli.signatures import of_object
from experiments.cli.targets import check_settings
from experiments.lists import command as list_files
from experiments.preparation.pipeline import Pipeline
from experiments.settings.checks import check
from experiments.settings.without_effect import OF_PREPARE, OF_RUN, say_what_has_no_effect
from experiments.training.train import run_experiment
from helpers.runs import CONF, config_of, error_of
from retriever.errors import InputError
from retriever.objectives import InfoNCE

pytestmark = pytest.mark.slow


@pytest.fixture
def never_loaded(monkeypatch):
    """No model and no corpus is opened."""

    def loaded(*_, **__):
        raise AssertionError("something heavy was begun")

    for place in (
        "retriever.pretrained.loading.AutoModel.from_pretrained",
        "retriever.encoder.text_encoder.AutoTokenizer.from_pretrained",
        "callbacks.evaluation.sets.load_corpus",
        "datamodules.datamodule.load_corpus",
    ):
        monkeypatch.setattr(place, loaded)


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
        (
            "+lerning_rate=1",
            "lerning_rate is no setting, and nothing refers to it. Did you mean 'module.learning_rate'?",
        ),
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
        ("+diagnostics.every_n=1", "diagnostics: 'every_n' is no setting here.* Did you mean 'every_n_steps'?"),
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
        ("module.matryoshka_dimensions=[0]", "name different dimensions from 1. All of the encoder are trained"),
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
        ("data.normalization=minmax", "did you mean 'list_minmax'?"),
        ("data.candidates=tops", "did you mean 'top'?"),
        ("criterion=dev/los", "Did you mean 'dev/loss'?"),
        ("criterion=dev/infonce", "valid values are 'dev/loss', 'dev/kl', 'dev/top1_agreement', 'dev/teacher_ndcg@10'"),
        ("criterion=loss", "criterion is 'loss'; valid values are 'dev/loss'"),
        ("token_budget=0", "token_budget is 0"),
        ("name=a/b", "name is 'a/b'; files are called by it"),
        ("name=2024", r"name is 2024; it must be text. For the text '2024' .* \"'2024'\""),
        ("seed=1.5", "seed is 1.5; it must be a whole number"),
        ("seed=-1", "seed is -1; it must be at least 0 and below"),
        ("criterion=3", "criterion is 3; it must be text"),
        ("criterion_mode=mix", r"criterion_mode is 'mix'; it must be 'min' or 'max' .did you mean 'min'"),
        ("unknown_qrels=kep", r"unknown_qrels is 'kep'; it must be 'error' or 'keep' .did you mean 'keep'"),
        ("early_stopping.patience=0", "early_stopping.patience is 0; it must be a finite number above 0"),
        ("diagnostics.every_n_steps=0", "diagnostics.every_n_steps is 0; it must be a finite number above 0"),
        (
            "early_stopping.monitors=[3]",
            "early_stopping.monitors is .3.; it must be a list, each of it text. For the text",
        ),
        (
            "logger.wandb={tags: [2024]}",
            "logger.wandb.tags is .2024.; it must be a list, each of it text. For the text",
        ),
        ("logger.wandb={projct: x}", "Did you mean 'project'?"),
        ("data.train=???", "data.train has no default, and is not set: say data.train="),
        (
            "evaluation.datasets=null",
            "evaluation.datasets is None; it must be a list of mappings",
        ),
        ("evaluation.datasets=[x]", r"evaluation.datasets\[0\] is 'x'; it must be a mapping with path"),
        ("evaluation.datasets=[{path: 3}]", r"evaluation.datasets\[0\].path is 3; it must be text"),
        ("evaluation.datasets=[{path: x, name: 3}]", r"evaluation.datasets\[0\].name is 3; it must be text"),
        ("data.train=[{path: 3, corpus: x}]", r"data.train\[0\].path is 3; it must be text"),
        ("allowed_targets=torch", r"allowed_targets is 'torch'; it must be a list: allowed_targets=\[torch\]"),
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


def test_a_model_of_the_hub_out_of_reach_is_one_sentence_before_anything_heavy(
    small_run, monkeypatch, capsys, tmp_path, no_hub
):
    def loaded(*_, **__):
        raise AssertionError("something heavy was begun")

    for place in ("callbacks.evaluation.sets.load_corpus", "datamodules.datamodule.load_corpus"):
        monkeypatch.setattr(place, loaded)
    options = [*small_run, "encoder.model=someone/some-model", f"hydra.run.dir={tmp_path}/run"]
    error = error_of(run_module, monkeypatch, capsys, *options)
    said = r"error: encoder.model is 'someone/some-model': there is no folder .*some-model"
    assert re.search(rf"{said}, and it is not in the hub's cache.*\. Name a folder that", error), error
    assert "hub that this machine can reach" in error and error.count("\n") <= 2, error
    assert not (tmp_path / "cache").exists() and not (tmp_path / "run" / "config.yaml").exists()


def test_a_model_that_is_here_asks_no_hub(small_run, tiny_model, tmp_path, no_hub):
    cached = no_hub / "models--someone--some-model"
    shutil.copytree(tiny_model, cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    for model in (tiny_model, "someone/some-model"):
        options = [f"encoder.model={model}", "trainer.max_steps=1", "export=false"]
        assert run_experiment(config_of(*small_run, *options), tmp_path / Path(model).name)["datasets"]


class OwnWay:
    """A class of a user's, which does something of its own with what it does not name."""

    def __init__(self, layers, of=None, **options):
        self.margin = options.pop("margin")


def test_what_a_users_class_makes_of_its_arguments_is_its_own_business():
    check_settings("module", {"layers": [1, 2], "of": {"a": 1}, "margin": 0.1}, of_object(OwnWay))
    with pytest.raises(InputError, match=r"'margin'; InfoNCE takes"):
        check_settings("module", {"margin": 0.1}, of_object(InfoNCE))


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
    reranker = ("module=reranker", "encoder=cross_minilm", "early_stopping.patience=null", "name=x")
    check(config_of(*reranker, "criterion=dev/mrr"))
    frozen = [*small_run, "module=infonce", "module.train_passage_encoder=false", "criterion=dev/corpus_kl"]
    check(config_of(*frozen, "data.dev_over_corpus=true"))
    with pytest.raises(InputError, match="criterion is 'dev/corpus_kl'; valid values"):
        check(config_of(*frozen))
    for trained in (small_run, reranker):
        with pytest.raises(InputError, match=r"data\.dev_over_corpus=true is for objectives whose passages keep"):
            check(config_of(*trained, "data.dev_over_corpus=true"))


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
    run_experiment(config_of(*small_run, *options), tmp_path / "run")
    model = f"encoder.model={tmp_path}/run/model"
    with pytest.raises(InputError, match=r"encoder.query_prompt is '', and .*/run/model was trained with 'query: '"):
        check(config_of(*small_run, model, "encoder.query_prompt=''"))
    with pytest.raises(InputError, match="whose query side alone was trained"):
        check(config_of(*small_run, model, "module.train_passage_encoder=false"))
    check(config_of(*small_run, model))
    check(config_of(*small_run, model, "encoder.query_prompt='query: '"))


def test_short_lists_are_counted(small_run, tmp_path, caplog):
    run_experiment(config_of(*small_run, "trainer.max_steps=1", "export=false"), tmp_path / "run")
    assert "data.list_length is 20, but the longest of " in caplog.text and "data.list_length=8" in caplog.text
    caplog.clear()
    run_experiment(
        config_of(*small_run, "trainer.max_steps=1", "export=false", "data.list_length=8"), tmp_path / "other"
    )
    assert "data.list_length is" not in caplog.text


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("filter.keap=5", "Did you mean 'keep'?"),
        ("+filter.keap=5", "unexpected keyword argument 'keap'"),
        ("filter.keep=few", "filter.keep is 'few'; it must be a whole number or null"),
        ("sample.size=-1", "size"),
        ("until=mines", "did you mean 'mine'?"),
        ("teacher=fussion", "Did you mean 'fusion'?"),
        ("teacher=web_api", "teacher.url has no default, and is not set: say teacher.url=…."),
        ("+teacher.weight=1", "unexpected keyword argument 'weight'"),
        ("queries={../evil: {source: judged}}", "files are called by it"),
        ("+teacher.x._target_=os.system", "standard library"),
        ("+tokn_budget=5", "Did you mean 'token_budget'?"),
        ("corpus=2024", "corpus is 2024; it must be text. For the text '2024'"),
        ("output=3", "output is 3; it must be text"),
    ],
)
def test_prepare_names_wrong_settings(small_prepare, monkeypatch, capsys, argument, message):
    options = [o for o in small_prepare if not (o.startswith("queries=") and argument.startswith("queries="))]
    assert message in error_of(prepare_module, monkeypatch, capsys, *options, argument)


@pytest.mark.parametrize(("kind", "mode"), [("run", []), ("sweep", ["-m"])])
def test_an_empty_folder_is_not_the_one_that_the_command_is_typed_in(small_run, monkeypatch, tmp_path, kind, mode):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["run", *mode, *small_run, f"hydra.{kind}.dir="])
    with pytest.raises(SystemExit, match=rf"hydra\.{kind}\.dir is empty; name the folder of the {kind}"):
        run_module.main()
    assert not (tmp_path / "config.yaml").exists() and not (tmp_path / ".hydra").exists()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("parts=[stepp]", "did you mean 'step'?"),
        ("step.cases=[{list: 64}]", "Did you mean 'lists'?"),
        ("step.cases=[{lists: 64, rounds: 1, systems: [our_infonce]}]", "Did you mean 'ours_infonce'?"),
        ("evaluation.systems=[bear]", "Did you mean 'beir'?"),
        ("max_lenght=3", "Did you mean 'max_length'?"),
        ("+max_lenght=3; parts=[none]", "Did you mean 'max_length'?"),
        ("allowed_targets=torch", "it must be a list: allowed_targets=[torch]"),
    ],
)
def test_bench_names_wrong_settings(monkeypatch, capsys, tmp_path, argument, message):
    error = error_of(bench_module, monkeypatch, capsys, *argument.split("; "), f"hydra.run.dir={tmp_path}/x")
    assert message in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (compare, ["run", "--outptu", "x"], "Did you mean '--output'?"),
        (compare, ["run", "--which", "lasst"], "Did you mean 'last'?"),
        (mteb, ["model", "--datset=x"], "Did you mean '--dataset'?"),
        (dashboard, ["--entiti", "x"], "Did you mean '--entity'?"),
        (list_files, ["inspect", "x", "--corpsu", "y"], "Did you mean '--corpus'?"),
        (
            list_files,
            ["import", "x", "--layout", "trec", "--output", "y", "--tacher", "z"],
            "Did you mean '--teacher'?",
        ),
        (
            list_files,
            ["export", "x", "--layout", "trec", "--output", "y", "--teacher", "z"],
            "arguments: --teacher z\n",
        ),
        (list_files, ["cut", "x", "--passges", "3", "--passages", "3", "--output", "y"], "Did you mean '--passages'?"),
    ],
)
def test_options_of_the_other_commands_are_named_too(module, arguments, message, capsys):
    with pytest.raises(SystemExit):
        module.main(arguments)
    assert message in capsys.readouterr().err


def test_values_of_ones_own_are_read_where_something_refers_to_them(tmp_path):
    (tmp_path / "exp").mkdir()
    (tmp_path / "part").mkdir()
    own = "# @package _global_\nof_a_file: 3\nname: ${f:${times},${ rate }}\n"
    (tmp_path / "exp" / "own.yaml").write_text(own)
    (tmp_path / "part" / "small.yaml").write_text("batch: 8\n")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for given, wrong in {
            ("+rate=1", "module.learning_rate=${rate}"): "",
            ("+exp=own", "+rate=1", "+times=2", "+third=3"): "third",
            ("+sizes={a: 1}", "data.batch_size=${sizes.a}"): "",
            ("+sizes.a=1", "hydra.run.dir=x/${sizes.a}"): "",
            ("+rate=1", 'module.learning_rate=${oc.select:"rate",1}'): "",
            ("+sizes={a: 1}", "data.batch_size=${[sizes].a}"): "",
            ("++seed=2", "+hydra.launcher.x=1", "+data.x=1"): "",
            ("+exp=own", "of_a_file=4"): "",
            ("+exp=own", "+part=small"): "",
            ("+student=1",): "student",  # temperatures.student is another
            ("+rate=1", "+other=${rate}"): "other",
            ("+rate=1", "name=rate"): "rate",
        }.items():
            search = f"hydra.searchpath=[file://{tmp_path}]"
            config = compose("run", [search, *given], return_hydra_config=True)
            hydra = config.hydra
            with open_dict(config):
                del config["hydra"]
                hydra.run.dir = hydra.sweep.dir = "x"  # resolved, as all ranks agree on it
            with pytest.raises(InputError, match=f"^{wrong} is no setting") if wrong else nullcontext():
                check_added(config, hydra, "run.yaml")


def said_of(command, *arguments):
    """What a command says of its mappings, and its configuration."""
    with initialize_config_dir(str(CONF / "prepare" if command == "prepare" else CONF), version_base="1.3"):
        config = compose(command, list(arguments))
    say_what_is_kept(config, arguments)
    return config


def test_what_a_stated_mapping_keeps_is_said(caplog):
    caplog.set_level("INFO")
    for command, arguments, said in (
        (
            "prepare",
            ["++mine.retrievers={bge: {encoder: {model: x}}}"],
            "mine.retrievers keeps bm25, dense beside what was stated",
        ),
        (
            "prepare",
            ["mine.retrievers={bm25: {bm25: {k1: 1}}}"],
            "mine.retrievers keeps dense beside what was stated",
        ),
        ("prepare", ["mine.retrievers={bm25: {bm25: {k1: 1}}}"], "mine.retrievers.bm25.bm25 keeps b, language beside"),
        ("prepare", ["+data=scifact_free", "+queries={a: {source: titles}}"], "queries keeps human, claim beside what"),
        (
            "prepare",
            ["+data=scifact_free", "++mine.weights={bge: 1}"],
            "mine.weights keeps bm25, dense beside",
        ),
        (
            "prepare",
            ["generator.sampling={top_p: 0.9}"],
            "generator.sampling keeps temperature, max_tokens",
        ),
        ("prepare", ["generator.vllm={tensor_parallel_size: 4}"], None),  # Hydra refuses it without a +
        ("prepare", ["+generator.vllm={tensor_parallel_size: 4}"], "generator.vllm keeps max_model_len, seeds beside"),
        ("run", ["early_stopping={patience: 3}"], "early_stopping keeps monitors beside what was stated"),
        (
            "run",
            ["logger.wandb={project: x}"],
            "logger.wandb keeps entity, offline, tags",
        ),
        ("run", ["+exp=paper/teachers", "+arms={a: x}"], "arms keeps fusion, bm25, minilm beside what was stated"),
        (
            "run",
            ["trainer=fsdp", "+trainer.strategy={timeout: 1}"],
            "trainer.strategy keeps save_distributed_checkpoint",
        ),
        ("bench", ["cost={gpus: [1]}"], "cost keeps lists, list_length"),
    ):
        caplog.clear()
        if said is None:
            with pytest.raises(ConfigCompositionException):
                said_of(command, *arguments)
        else:
            said_of(command, *arguments)
            assert said in caplog.text, caplog.text
    caplog.clear()
    said_of("prepare", "mine.retrievers={bm25: {bm25: {k1: 1, b: 0, language: null}}}", "~mine.retrievers.dense")
    said_of("prepare", "teacher=ensemble", "+teacher.members={a: {_target_: x}}")
    said_of("run", "encoder.lora={r: 4}", "diagnostics={every_n_steps: 2, teacher_temperature: 1}")
    assert not caplog.text
    advised = said_of(
        "prepare", "+mine.retrievers={bge: {encoder: x}}", "~mine.retrievers.bm25", "~mine.retrievers.dense"
    )
    assert not caplog.text and list(advised.mine.retrievers) == ["bge"]
    said_of("prepare", "+encoder@mine.retrievers.bge.encoder=bge_base", "mine.retrievers={bm25: {bm25: {k1: 1}}}")
    assert "mine.retrievers keeps dense beside what was stated; to leave one out: ~mine.retrievers.dense" in caplog.text


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        ("run", ["data.dev_fraction=0.2"], "data.dev_fraction has no effect here: data.dev names the dev lists"),
        ("run", ["data.dev_fraction=0.2", "data.dev=null"], ""),
        ("run", ["data.leak_guard=off", "data.leak_jaccard=0.5"], "data.leak_jaccard has no effect here"),
        ("run", ["early_stopping.patience=null", "early_stopping.monitors=[dev/kl]"], "monitors has no effect here"),
        ("run", ["module.matryoshka_weights=[1]"], "module.matryoshka_weights has no effect here"),
        ("run", ["save_checkpoints=false", "criterion=dev/kl"], "criterion has no effect here: save_checkpoints is"),
        ("run", ["criterion_mode=max", "data.batch_size=8"], ""),
        ("run", ["encoder.model=x", "encoder.preset.pooling=cls"], "encoder.preset.pooling has no effect here"),
        ("run", ["encoder.preset.pooling=cls"], ""),
        ("run", ["module=infonce", "temperatures.student=0.1"], "temperatures.student has no effect here"),
        ("run", ["module=infonce", "temperatures.infonce=0.1"], ""),
        ("run", ["module=approx_ndcg", "temperatures.infonce=0.1"], "temperatures.infonce has no effect here"),
        ("run", ["module=approx_ndcg", "module.temperature=0.1"], ""),
        ("run", ["module=infonce", "temperatures.fitted=labels"], "temperatures.fitted has no effect here: module"),
        ("run", ["module=distillation", "temperatures=fitted"], ""),
        ("run", ["temperatures=fitted", "temperatures.teacher=0.1"], "temperatures.teacher has no effect here"),
        ("run", ["temperatures=fitted", "temperatures.infonce=0.1"], ""),
        ("run", ["module=infonce", "temperatures.teacher=0.1", "diagnostics.every_n_steps=9"], ""),
        ("run", ["module=reranker", "module.temperature=2"], "module.temperature has no effect here"),
        ("run", ["module=reranker", "temperatures.teacher=1", "module.distillation_weight=1"], ""),
        ("prepare", ["queries={a: {source: judged}}", "sample.size=3"], "sample.size has no effect here: no group of"),
        ("prepare", ["queries={a: {source: judged}}", "generator=llama3_8b"], "generator has no effect here"),
        ("prepare", ["queries={a: {source: generated}}", "sample.size=3"], ""),
        ("prepare", ["queries={a: {source: judged}}", "encoder=bge_base"], ""),
        ("prepare", ["queries={a: {source: judged}}", "encoder=bge_base", "~mine.retrievers.dense"], "encoder has no"),
        (
            "prepare",
            [
                "queries={a: {source: judged}}",
                "+encoder@mine.retrievers.bge.encoder=bge_base",
                "~mine.retrievers.dense",
            ],
            "",
        ),
        (
            "prepare",
            ["queries={a: {source: judged, leak_guard: off}}", "split.leak_jaccard=0.5"],
            "split.leak_jaccard has no effect here: the leak guard is off",
        ),
    ],
)
def test_what_has_no_effect_is_said(command, arguments, said, caplog):
    with initialize_config_dir(str(CONF / "prepare" if command == "prepare" else CONF), version_base="1.3"):
        config = compose(command, arguments)
    say_what_has_no_effect(config, arguments, OF_RUN if command == "run" else OF_PREPARE)
    assert said in caplog.text and bool(said) == bool(caplog.text)


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
    with initialize_config_dir(str(CONF / "prepare"), version_base="1.3"):
        Pipeline(compose("prepare", small_prepare))


def test_a_reader_of_the_output_that_left_ends_a_command_quietly(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as out, pytest.raises(SystemExit) as stopped:
        monkeypatch.setattr(sys, "stdout", out)
        run_kindly(partial(print, "x" * 1_000_000))
    assert stopped.value.code == 141


@pytest.mark.parametrize("without", ["poll", "fileno"])
def test_a_broken_pipe_of_something_else_is_told(monkeypatch, without):
    def application():
        raise BrokenPipeError("of a worker")

    monkeypatch.delattr("select.poll") if without == "poll" else monkeypatch.setattr(sys, "stdout", io.StringIO())
    with pytest.raises(BrokenPipeError, match="of a worker"):
        run_kindly(application)


def test_a_full_memory_is_one_sentence(capsys):
    for allocate in (lambda: torch.empty(10**15), lambda: bytearray(2**62)):
        with pytest.raises(SystemExit) as stopped:
            run_kindly(allocate)
        said = capsys.readouterr().err
        assert (
            stopped.value.code == 2
            and said.startswith("error: This machine's memory is full")
            and "\n" not in said[:-1]
        )


def test_a_message_of_a_second_encoder_names_its_place():
    config = config_of(
        "module=reranker", "evaluation=rerank", "evaluation.datasets=[]", "evaluation.dense.model=/no/such"
    )
    with pytest.raises(InstantiationException) as caught:
        instantiate(config.evaluation, folder=Path())
    assert explain(caught.value).startswith("evaluation.dense.model is '/no/such': no such model folder.")
