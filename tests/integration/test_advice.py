"""What an error advises works as typed in the command that printed it: it is made to appear, and typed.

``CASES`` holds the situations, ``NOT_TYPED`` the advice that no test can type, with the reason. Together they are all
of the advice in the source, which a scan of its messages finds: new advice needs a line in one of the two.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from datamodules.corpus import corpus as corpora
from datamodules.query_lists import read_query_lists, write_query_lists
from experiments import compare, mteb
from experiments.benchmarks.corpus_evaluation import run_evaluation
from experiments.benchmarks.training_step import Lists
from experiments.cli.errors import explain
from experiments.evaluate import evaluate
from experiments.evaluation.typed import as_overrides
from experiments.lists import command as list_files
from experiments.preparation.pipeline import Pipeline
from experiments.settings.checks import check
from experiments.training.train import run_experiment
from helpers.encoders import save_backbone
from helpers.runs import CONF, config_of
from retriever.encoder.text_encoder import TextEncoder

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PACKAGES = ("retriever", "datamodules", "callbacks", "experiments", "hydra_plugins")
# key=value or --flag, as a message gives it; {} is where the message puts something in
SETTING = re.compile(r"(?<![\w./<-])\+?[a-z_][\w.{}]*=(?![=\s>])(?:'[^']*'|[^\s,;)'\"]+)")
FLAG = re.compile(r"(?<![^\s(])--[a-z][a-z-]+")


def advice_in(text: str) -> list[str]:
    """Settings and flags that a message names."""
    return [found.group().rstrip(".:") for kind in (SETTING, FLAG) for found in kind.finditer(text)]


# ------------------------------------------------------------------------------------------------- commands


def run(arguments: list[str], folder: Path) -> None:
    """As far as a run gets before its first step."""
    config = config_of(*arguments)
    check(config)
    encoder = instantiate(config.encoder)
    instantiate(config.module, encoder=encoder)
    data = instantiate(config.data, encoder=encoder)
    instantiate(config.evaluation, folder=folder)
    data.setup()


def encoder(arguments: list[str], folder: Path) -> None:
    instantiate(config_of(*arguments).encoder)


def evaluated(arguments: list[str], folder: Path) -> None:
    """As far as the base model's figures."""
    config = config_of(*arguments)
    model = instantiate(config.encoder)
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    callbacks = [instantiate(config.evaluation, folder=folder)]
    trainer = instantiate(config.trainer, precision="32-true", callbacks=callbacks, **off)
    module, data = instantiate(config.module, encoder=model), instantiate(config.data, encoder=model)
    trainer.validate(module, datamodule=data, verbose=False)


def whole_run(arguments: list[str], folder: Path) -> None:
    run_experiment(config_of(*arguments, "trainer.max_epochs=1", "trainer.max_steps=1", "export=false"), folder)


def matched(arguments: list[str], folder: Path) -> None:
    """As far as evaluation and objective know of each other."""
    config = config_of(*arguments)
    module = instantiate(config.module, encoder=instantiate(config.encoder))
    evaluation = instantiate(config.evaluation, folder=folder)
    evaluation.ranker.check(module)


def checked(arguments: list[str], folder: Path) -> None:
    check(config_of(*arguments))


def prepare(arguments: list[str], folder: Path) -> None:
    with initialize_config_dir(str(CONF / "prepare"), version_base="1.3"):
        Pipeline(compose("prepare", arguments)).run()


def bench(arguments: list[str], folder: Path) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        job = compose("bench", arguments)
    encoder = TextEncoder.from_pretrained(job.encoder.model, pooling="mean", query_max_length=8, passage_max_length=8)
    if "evaluation" in job.parts:
        options = {"system": "ours", "dataset": job.evaluation.dataset}
        run_evaluation({**job, **options}, encoder, torch.device("cpu"))
    else:
        Lists(job, encoder)


def lists(arguments: list[str], folder: Path) -> None:
    list_files.main(arguments)


def through_mteb(arguments: list[str], folder: Path) -> None:
    try:
        mteb.main(arguments)
    except SystemExit as end:  # mteb itself may be missing; what is read here comes before
        if "needs the package mteb" not in str(end.code):
            raise


def evaluated_alone(arguments: list[str], folder: Path) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        job = compose("evaluate", as_overrides([*arguments, "trainer.accelerator=cpu", f"output_dir={folder}"]))
    evaluate(job, folder)


def compared(arguments: list[str], folder: Path) -> None:
    compare.main(arguments)


def said(
    command: Callable, arguments: list[str], folder: Path, capsys: pytest.CaptureFixture, caplog
) -> tuple[bool, str]:
    """Whether a command ends with an error, and that, else what it has logged."""
    capsys.readouterr(), caplog.clear(), caplog.set_level("INFO")
    corpora._warned.clear()  # each is warned of once
    try:
        command(arguments, folder)
    except SystemExit as end:
        text = f"{end.code} {''.join(capsys.readouterr())}"
        return bool(end.code), text
    except Exception as error:
        return True, explain(error)
    return False, "\n".join(record.getMessage() for record in caplog.records)


# ------------------------------------------------------------------------------------------------- situations


@pytest.fixture(scope="module")
def place(tmp_path_factory, small_scifact, small_lists, tiny_model, tiny_chat_model) -> dict[str, Path]:
    """Files that make commands complain."""
    root = tmp_path_factory.mktemp("advice")

    def corpus(name: str, change: str = "") -> Path:
        folder = root / name / "small"
        shutil.copytree(small_scifact, folder)
        with open(folder / "corpus.jsonl", "a") as file:
            file.write(change)
        return folder

    empty, unknown = corpus("empty", '{"_id": "471", "title": "", "text": ""}\n'), corpus("unknown")
    for split in ("test", "train"):
        with open(unknown / "qrels" / f"{split}.tsv", "a") as file:
            query = (unknown / "qrels" / f"{split}.tsv").read_text().splitlines()[1].split("\t")[0]
            file.write(f"{query}\tghost\t1\n")
    leak = corpus("leak")
    (leak / "qrels" / "test.tsv").write_text("".join((leak / "qrels" / "train.tsv").read_text().splitlines(True)[:2]))
    own = corpus("own")
    passage, other = map(json.loads, (own / "corpus.jsonl").read_text().splitlines()[:2])
    with open(own / "queries.jsonl", "a") as file:
        file.write(json.dumps({"_id": passage["_id"], "text": passage["text"]}) + "\n")
    with open(own / "qrels" / "test.tsv", "a") as file:
        file.write(f"{passage['_id']}\t{other['_id']}\t1\n")
    whole = list(read_query_lists(small_lists))
    files = {
        "bad": [*whole[:30], type(whole[0])(**{**vars(whole[30]), "passage_ids": ["ghost", "other"]})],
        "three": whole[:3],
        "two_lengths": [whole[0], whole[4]],
        "unlabelled": [type(q)(**{**vars(q), "positive_ids": []}) for q in whole],
    }
    found = {name: root / f"{name}.parquet" for name in files}
    for name, content in files.items():
        content = [type(q)(**{**vars(q), "teacher_scores": q.teacher_scores[: len(q.passage_ids)]}) for q in content]
        write_query_lists(found[name], content, {})
    found["bad_other"] = root / "cadet.jsonl"
    texts = {p["_id"]: p for p in map(json.loads, (small_scifact / "corpus.jsonl").read_text().splitlines())}
    ids = list(texts)[:3]
    good = {"qid": "1", "query": "what", "passages": [{"docid": p, "score": n} for n, p in enumerate(ids)]}
    found["bad_other"].write_text(json.dumps(good) + "\n" + json.dumps({**good, "passages": []}) + "\n")
    found["other_texts"] = root / "texts.jsonl"
    other = [{**entry, "text": "of another corpus"} for entry in good["passages"]]
    found["other_texts"].write_text(json.dumps({**good, "passages": other}) + "\n")
    found["other_key"] = root / "keys.jsonl"
    renamed = [{"docid": entry["docid"], "rankt5_score": entry["score"]} for entry in good["passages"]]
    found["other_key"].write_text(json.dumps({**good, "passages": renamed}) + "\n")
    found["without_scores"] = root / "flag.jsonl"
    sides = {"pos": [texts[ids[0]]["text"]], "neg": [texts[i]["text"] for i in ids[1:]]}
    found["without_scores"].write_text(json.dumps({"query": "what", **sides}) + "\n")
    for name, line in {"ranks.tsv": "1\t{}\t{}\n", "run.txt": "1 Q0 {} 1 {} x\n"}.items():
        (root / name).write_text("".join(line.format(p, n) for n, p in enumerate(ids)))
        found[name.replace(".", "_")] = root / name
    found["mixed"] = root / "mixed" / "run.txt"
    found["mixed"].parent.mkdir()
    rows = [(1, 0), (1, 1), (2, 0), (2, 1), (1, 2)]
    found["mixed"].write_text("".join(f"{q} Q0 {ids[n]} 1 {n} x\n" for q, n in rows))
    for queries in (root / "queries.tsv", found["mixed"].with_name("queries.tsv")):
        queries.write_text("1\twhat\n2\twho\n")
    found["far"] = root / "far"  # a run and no queries beside
    found["far"].mkdir()
    shutil.copy(found["run_txt"], found["far"])
    found["no_queries"] = root / "no_queries" / "small"
    found["no_queries"].mkdir(parents=True)
    shutil.copy(small_scifact / "corpus.jsonl", found["no_queries"])
    # models
    found["cross"] = root / "cross"
    torch.manual_seed(2)
    BertForSequenceClassification(BertConfig.from_pretrained(tiny_model, num_labels=1)).save_pretrained(found["cross"])
    BertTokenizer.from_pretrained(tiny_model).save_pretrained(found["cross"])
    found["no_packing"] = root / "no_packing"
    save_backbone("mpnet", tiny_model, found["no_packing"])
    found["no_states"] = root / "no_states"
    save_backbone("t5", tiny_model, found["no_states"])
    found["no_prompts"] = root / "no_prompts"
    shutil.copytree(tiny_model, found["no_prompts"])
    pooling = found["no_prompts"] / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps(json.loads(pooling.read_text()) | {"include_prompt": False}))
    found["no_system"] = root / "no_system"
    shutil.copytree(tiny_chat_model, found["no_system"])
    template = found["no_system"] / "chat_template.jinja"
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    template.write_text(refuses + template.read_text())
    return {
        **found,
        "empty": empty,
        "unknown": unknown,
        "leak": leak,
        "own": own,
        "corpus": small_scifact,
        "lists": small_lists,
        "root": root,
    }


TRAIN = "data.train=[{{path: {lists}, corpus: {corpus}}}]"
EMPTY = "data.train=[{{path: {lists}, corpus: {empty}}}]", "evaluation.datasets=[{{path: {empty}}}]"
IMPORT = "import {0} --layout {1} --corpus {{corpus}} --output {{root}}/o.parquet"
JUDGED = "queries={{human: {{source: judged, filter: false}}}}"
CLASSIFIER = ("teacher=classifier", "teacher.model={cross}", "teacher.max_length=32", JUDGED)

# file of the message and its advice → command, what is typed, and what is typed for a word in capitals
CASES: list[tuple[str, Callable, tuple[str, ...]]] = [
    ("corpus.py: empty_passages=keep", run, (*EMPTY, "empty_passages=error")),
    ("corpus.py: empty_passages=keep", prepare, ("corpus={empty}", "until=deduplicate", "empty_passages=error")),
    ("corpus.py: empty_passages=keep", bench, (
        "parts=[evaluation]", "evaluation.dataset={empty}", "empty_passages=error")),
    ("corpus.py: empty_passages=keep", bench, (
        "parts=[step]", "corpus={empty}", "files=[{lists}]", "empty_passages=error")),
    ("corpus.py: empty_passages=error", run, EMPTY),
    ("evaluation_set.py: unknown_qrels=keep", run, (
        "data.train=[{{path: {lists}, corpus: {unknown}}}]", "evaluation.datasets=[{{path: {unknown}}}]")),
    ("evaluation_set.py: unknown_qrels=keep", prepare, ("corpus={unknown}", JUDGED, "until=queries")),
    ("evaluation_set.py: unknown_qrels=keep", bench, ("parts=[evaluation]", "evaluation.dataset={unknown}")),
    ("opened.py: on_bad_list=drop", run, ("data.train=[{{path: {bad}, corpus: {corpus}}}]",)),
    ("opened.py: on_bad_list=drop", bench, ("parts=[step]", "corpus={corpus}", "files=[{bad}]")),
    ("guard.py: data.leak_guard=drop", run, (
        "data.train=[{{path: {lists}, corpus: {leak}}}]", "evaluation.datasets=[{{path: {leak}}}]",
        "data.leak_guard=fail")),
    ("list_choice.py: data.list_length=%d", run, (TRAIN, "data.list_length=20")),
    ("dev_lists.py: data.dev_fraction={}", run, (
        "data.train=[{{path: {three}, corpus: {corpus}}}]", "data.dev_fraction=0.1")),
    ("first_checks.py: allow_test_selection=true", checked, ("criterion=val/small/ndcg@10", "criterion_mode=max")),
    ("optimizer.py: module.weight_decay=0", checked, (
        "optimizer._target_=torch.optim.Rprop", "module.weight_decay=0.01")),
    ("metrics.py: evaluation.hits={}", checked, ("evaluation.metrics=[nDCG@10,R@2000]",)),
    ("module.py: module=reranker", run, ("encoder=cross", "encoder.model={cross}")),
    ("module.py: encoder=cross_minilm", run, ("module=reranker", "evaluation=rerank")),
    ("dense.py: evaluation=rerank", matched, (
        "module=reranker", "encoder=cross", "encoder.model={cross}", "evaluation=beir")),
    ("reranking.py: module=reranker", matched, ("module=combined", "evaluation=rerank")),
    ("infonce.py: module.positive=teacher", whole_run, (
        "module=infonce_conventional", "data.train=[{{path: {unlabelled}, corpus: {corpus}}}]",
        "data.dev=[{{path: {unlabelled}, corpus: {corpus}}}]", "data.leak_guard=off")),
    ("corpus.py: module.positive=teacher", whole_run, (
        "module=infonce_corpus", "data.train=[{{path: {unlabelled}, corpus: {corpus}}}]",
        "data.dev=[{{path: {unlabelled}, corpus: {corpus}}}]", "data.leak_guard=off")),
    ("targets.py: allowed_targets=[{}]", checked, ("+module.other._target_=shutil.rmtree", "allowed_targets=shutil")),
    ("pipeline.py: until={}", prepare, (JUDGED, "stage=mine")),
    ("pipeline.py: stage={}", prepare, (JUDGED, "stage=mine")),
    ("stage.py: shard=0/4", prepare, (JUDGED, "until=queries", "shard=4/4")),
    ("queries.py: queries='{human: {source: judged}}'", prepare, ("queries={{}}", "until=queries")),
    ("split.py: split.leak_guard=drop", prepare, (
        JUDGED, "split.leak_guard=fail", "split.evaluation=[{{path: {corpus}, split: train}}]")),
    ("engine.py: generate.system=null", prepare, ("generator.model={no_system}", "until=generate")),
    ("transformers_teacher.py: teacher.device=null", prepare, (*CLASSIFIER, "teacher.device=cuda", "until=score")),
    ("transfer.py: on_bad_list=drop", lists, (IMPORT.format("{bad_other}", "cadet"),)),
    ("passages.py: --ignore-texts", lists, (IMPORT.format("{other_texts}", "cadet"),)),
    ("cadet.py: score_key=KEY", lists, (IMPORT.format("{other_key}", "cadet"),)),
    ("layout.py: scores=labels", lists, (IMPORT.format("{without_scores}", "flag_embedding"),)),
    ("trec.py: scores=ranks", lists, (IMPORT.format("{ranks_tsv}", "pyserini"),)),
    ("trec.py: queries=FILE", lists, (
        "import {far}/run.txt --layout trec --corpus {no_queries} --output {root}/o.parquet",)),
    ("sentence_transformers.py: form=lists", lists, (
        "export {two_lengths} --layout sentence_transformers --corpus {corpus} --output {root}/o.jsonl",)),
    ("corpus.py: empty_passages=keep", lists, (
        "inspect {lists} --corpus {empty} --png {root}/p.png --empty-passages error",)),
    ("corpus.py: empty_passages=keep", lists, (
        "export {lists} --layout cadet --corpus {empty} --output {root}/o.jsonl --empty-passages error",)),
    ("corpus.py: empty_passages=keep", lists, (
        "import {other_texts} --layout cadet --corpus {empty} --output {root}/o.parquet --ignore-texts "
        "--empty-passages error",)),
    ("corpus.py: empty_passages=keep", lists, (
        "cut {empty} --passages 30 --output {root}/{new} --empty-passages error",)),
    ("corpus.py: empty_passages=keep", through_mteb, ("{cross} --dataset {empty} --empty-passages error",)),
    ("evaluation_set.py: unknown_qrels=keep", through_mteb, ("{cross} --dataset {unknown}",)),
    ("text_encoder.py: encoder.attention=null", encoder, (
        "encoder.model={no_packing}", "encoder.pooling=mean", "encoder.attention=packed")),
    ("layers.py: encoder.trainable_layers=null", encoder, (
        "encoder.model={no_states}", "encoder.pooling=mean", "encoder.trainable_layers=1")),
    ("text_encoder.py: encoder.query_prompt=''", encoder, ("encoder.model={no_prompts}", "encoder.query_prompt='q: '")),
    ("text_encoder.py: encoder.passage_prompt=''", encoder, (
        "encoder.model={no_prompts}", "encoder.passage_prompt='p: '")),
    ("block_search.py: evaluation.ignore_identical_ids=false", evaluated, (
        "evaluation.datasets=[{{path: {own}}}]", "data.leak_guard=off")),
    ("transfer.py: --corpus", lists, ("export {lists} --layout cadet --output {root}/o.jsonl",)),
    ("typed.py: sets=FOLDER", evaluated_alone, ("bm25 sets=",)),
    ("compare.py: --output", compared, ("{root} --wandb p",)),
]  # fmt: skip
WORDS = {
    "sets=FOLDER": "sets={corpus}",
    "score_key=KEY": "--score-key rankt5_score",
    "queries=FILE": "--queries {root}/queries.tsv",
}
VALUES = {"--corpus": "{corpus}", "--output": "{root}/report"}
NOT_TYPED = {
    **dict.fromkeys(
        (
            "first_checks.py: passage_encoder=…",
            "datamodule.py: data.sources=keep",
            "guide.py: module.train_passage_encoder=false",
            "plain_texts.py: module=embedding_regression",
            "two_encoders.py: data.guide=bge_base",
            "two_encoders.py: data.guide=…",
            "two_encoders.py: module.train_passage_encoder=false",
            "two_encoders.py: module=embedding_regression",
            "two_encoders.py: passage_encoder=bge_base",
            "two_encoders.py: passage_encoder=…",
        ),
        "test_two_encoders.py types it, with smaller models",
    ),
    **dict.fromkeys(
        ("arms.py: --at-home", "compare.py: --at-home", "tables.py: --at-home"),
        "test_compare.py types it, and leaves it out",
    ),
    "alone.py: hydra.run.dir=…": "another folder than the one that was typed; test_alone.py types both",
    "alone.py: hydra.sweep.dir=…": "another folder than the one that was typed; test_alone.py types both",
    "adapt.py: hydra.run.dir=…": "test_adapt.py begins folders with it",
    "parts.py: shard=…": "of prepare; test_prepare.py types it",
    "push.py: debug=…": "says what the run was made with",
    "run.py: sets=cranfield": "says what may follow; test_evaluate.py types it with other sets",
    "push.py: --lists": "says what to leave out; test_push.py types it",
    "push.py: --repo": "test_push.py types wrong names and right ones",
    "decide.py: queries=…": "test_adapt.py types it",
    "decide.py: steps=…": "test_adapt.py types it",
    "decide.py: elsewhere=[]": "test_adapt.py types it",
    "decide.py: encoder=…": "test_adapt.py types another model",
    "decide.py: --help": "of prepare cut; argparse's",
    "survey.py: --help": "of prepare; test_start.py types it",
    "texts.py: corpus=texts.csv": "test_readme.py types it",
    "texts.py: text=COLUMN": "test_readme.py types it",
    "criteria.py: --on": "test_criteria.py types it",
    "datamodule.py: module.train_passage_encoder=false": "test_configuration.py types both",
    "mix.py: --shares": "test_mix.py types it",
    "mix.py: --output": "test_mix.py types it",
    "mix.py: sets=…": "of the command that it prints; test_mix.py types it",
    "evaluate.py: only=a": "the keys of models that were typed",
    "evaluate.py: sets=FOLDER": "as in typed.py",
    "evaluate.py: sets=scifact": "the whole of it takes a minute; sets=FOLDER beside it is typed",
    "typed.py: sets=scifact": "the whole of it takes a minute; sets=FOLDER beside it is typed",
    "models.py: sets=scifact": "a command that is whole; README's are run by test_readme.py",
    "finished_runs.py: export=false": "what was typed",
    "finished_runs.py: export=true": "of experiments.run, whose default it is",
    "finished_runs.py: resume={}": "of experiments.run; see test_killed_runs.py",
    "optimizer.py: module.{}={}": "in place of optimizer.lr, which was typed; see test_config_groups.py",
    "metrics.py: rel=2": "a part of a metric's name",
    "trainer_checks.py: +callbacks.NAME._target_=…": "in place of trainer.callbacks; see test_config_groups.py",
    "compare.py: --wandb": "what was typed",
    "compressed.py: --decompress": "xz's own, and not all machines have it",
    "trec.py: --stable": "see test_a_run_is_sorted_as_advised",
    "trec.py: --key": "see test_a_run_is_sorted_as_advised",
    "passages.py: check_texts=False": "for those who call it from Python; --ignore-texts is beside it",
    "sentence_transformers.py: list_length={}": "what was typed",
    "layout.py: module=infonce_conventional": "which objective takes such lists; a run of it is in test_run.py",
    "lists.py: output=…": "test_second_round.py types it",
    "plan.py: corpus=…": "of experiments.adapt; test_adapt.py types it",
    "plan.py: minutes=…": "of experiments.adapt; test_readme.py types it",
    "plan.py: trainer.max_steps={}": "test_run_plan.py takes the settings that the plan names",
    "plan.py: module.train_passage_encoder=false": "test_run_plan.py takes the settings that the plan names",
    "dev_lists.py: data.dev_fraction=null": "see test_split_lists.py",
    "run_record.py: trainer.deterministic=true": "a note for a GPU, in environment.json; see test_gpu.py",
    "vllm.py: generator.engine=transformers": "needs an environment without vLLM; test_prepare.py runs it",
    "vllm_scorer.py: teacher=classifier": "needs vLLM and its start of a minute; test_prepare.py runs this teacher",
    "judge.py: teacher.without_grade=lowest": "needs a chat model that answers in words; see test_chat_teachers.py",
    "model_teacher.py: teacher.dtype=float32": "numbers too large for 16 bits; see test_teachers.py",
    "sequence_classifier.py: teacher.dtype=float32": "no model of transformers is without a last projection",
    "dense.py: module=reranker": "what was typed",
    "reranking.py: evaluation=rerank": "what was typed",
    "first_checks.py: encoder={}": "a preset of the hub's, of which there are lists; see test_cadet.py",
    "first_checks.py: encoder.{}=null": "see test_repeat.py and test_encoder.py: prompts of an exported model",
    "command.py: data.list_length=50": "of the usage; test_readme.py types it",
    "command.py: encoder=bge_base": "of the usage; test_readme.py types it",
    "temperature_fit.py: temperatures.fitted=entropy": "see test_temperature_fit.py: it is not one-hot then",
    "temperatures.py: encoder=minilm": "the default model",
    "temperatures.py: temperatures.student={}": "see test_fitted_temperatures.py",
    "temperatures.py: temperatures.{}={}": "see test_fitted_temperatures.py",
    "datamodule.py: data.dev_over_corpus=true": "what was typed",
    "guide.py: data.guide=minilm": "see test_guide.py",
    "sources.py: data.sources=keep": "the default, which every other test runs with",
    "first_checks.py: module.train_passage_encoder=false": "what was typed",
    "trainer_checks.py: trainer=fsdp": "in place of a strategy of one's own",
    "arguments.py: --cfg": "Hydra's own",
    "run_settings.py: logger=csv": "test_readme.py types it with every run",
    "errors.py: key=value": "the form of any setting",
    "errors.py: key='value'": "the form of any setting, quoted",
    "second_round.py: output=FOLDER": "test_second_round.py types it",
    "second_round.py: --from": "a command that is printed at the end; test_second_round.py types it",
    "trainer_checks.py: hydra.run.dir=FOLDER": "test_readme.py types it with every run",
    "trainer_checks.py: logger=csv": "test_readme.py types it with every run",
    "trainer_checks.py: logger=wandb": "the default; see test_wandb.py",
    "trainer_checks.py: save_checkpoints=false": "see test_dead_settings.py",
    "trainer_checks.py: trainer.check_val_every_n_epoch=null": "see test_trainer_settings.py",
    "trainer_checks.py: trainer.max_steps=2": "whole_run, above, types it with 1",
    "trainer_checks.py: trainer=default": "the default, which every other test runs with",
    "criterion_search.py: key='interval(a, b)'": "a key of one's own; see test_sweeps.py",
    "errors.py: --from": "says to leave it out",
    "errors.py: module.train_passage_encoder=false": "a full memory cannot be made to order; test_run.py runs it",
    "dashboard.py: --entity": "sends to W&B",
    "dashboard.py: logger=trackio": "of experiments.run; test_trackio.py types it",
    "dashboard.py: --trackio": "test_trackio.py types it",
    "run_settings.py: logger=trackio": "what was typed",
    "dashboard.py: --print": "needs the package wandb_workspaces",
    "files.py: --qrels": "test_compare_files.py types it",
    "tables.py: --qrels": "what was typed",
    "measured.py: --base": "the name of an arm; see test_compare.py",
    "inspect.py: --corpus": "a line of a table, not an error",
    "inspect.py: --qrels": "a line of a table, not an error",
    "text_encoder.py: encoder.attention=packed": "what was typed",
    "text_encoder.py: s=$": "how a shell takes a line end; the setting before is cut by the scan",
    "hits.py: language=%s": "says what is set",
    "query_cleaning.py: generate.language={}": "a warning about scripts, not an error",
    "older_runs.py: encoder.model=%s": "says what was recorded",
    "packing.py: encoder.attention=sdpa": "needs a GPU and an older torch",
    "packaged.py: --force-reinstall": "pip's own",
    "packaged.py: --no-deps": "pip's own",
}


@pytest.mark.parametrize(("advice", "command", "typed"), CASES, ids=[f"{a}, {c.__name__}" for a, c, _ in CASES])
def test_advice_works_as_typed(advice, command, typed, place, small_run, small_prepare, tmp_path, capsys, caplog):
    if "device" in advice and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    paths = {**{name: str(path) for name, path in place.items()}, "new": tmp_path.name}
    arguments = [word.format_map(Values(paths)) for word in typed]
    if command in (run, whole_run, evaluated, encoder, matched, checked):
        arguments = [*without(small_run, arguments), *arguments]
    elif command is prepare:
        arguments = [*without(small_prepare, arguments), *arguments]
    elif command is bench:
        model = next(o for o in small_run if o.startswith("encoder.model="))
        arguments = [model, f"cache_dir={tmp_path}", *arguments]
    else:
        arguments = shlex.split(arguments[0])
    _, before = said(command, arguments, tmp_path / "before", capsys, caplog)
    named = advice.partition(": ")[2]
    matching = re.compile(re.escape(named).replace(r"\{\}", ".+").replace("%d", ".+").replace("%g", ".+"))
    shown = [word for word in advice_in(before) if matching.fullmatch(word)]
    option = re.sub(r"^(\w+)=(\w+)$", lambda s: f"--{s[1].replace('_', '-')} {s[2]}", named)
    if command in (lists, through_mteb, compared):
        assert option in before, before
        words = shlex.split(WORDS.get(named, f"{option} {VALUES.get(option, '')}").format_map(paths))
        failed, after = said(command, [*arguments, *words], tmp_path / "after", capsys, caplog)
    else:
        assert shown, before
        arguments = [a for a in arguments if a.partition("=")[0] not in INSTEAD_OF.get(named, ())]
        words = shlex.split(WORDS[named].format_map(paths) if named in WORDS else shown[0])
        failed, after = said(command, [*arguments, *words], tmp_path / "after", capsys, caplog)
    assert next(line for line in before.splitlines() if not shown or shown[0] in line) not in after
    assert re.search(FOLLOWED_BY[named], after) if failed and named in FOLLOWED_BY else not failed, after


# what is left out where something is typed first, or instead
INSTEAD_OF = {
    "until={}": ("stage",),
    "stage={}": ("stage",),
    "sets=FOLDER": ("sets",),
    "queries='{human: {source: judged}}'": ("queries",),
}
# what the next error is, where an advice is a step on the way
FOLLOWED_BY = {
    "module=reranker": "encoder=cross_minilm",
    "empty_passages=error": "has neither title nor text",
    "allowed_targets=[{}]": "rmtree",
    "--output": "no results.json",
}


class Values(dict):
    """``{name}`` → its path; names with dots, too."""

    def __missing__(self, name: str) -> str:
        return "{" + name + "}"


def without(overrides: list[str], others: list[str]) -> list[str]:
    """Those of keys that the others do not state."""
    keys = {other.lstrip("+").partition("=")[0] for other in others}
    return [o for o in overrides if o.partition("=")[0] not in keys]


def test_a_run_is_sorted_as_advised(place, capsys, caplog, tmp_path):
    arguments = shlex.split(IMPORT.format("{mixed}", "trec").format_map({k: str(v) for k, v in place.items()}))
    _, before = said(lists, arguments, tmp_path, capsys, caplog)
    assert "sort them" in before, before
    advised = re.search(r"(sort --stable --key=1,1) RUN", before)[1]
    place["mixed"].write_bytes(subprocess.check_output([*shlex.split(advised), str(place["mixed"])]))
    assert said(lists, arguments, tmp_path, capsys, caplog) == (False, "")


# ------------------------------------------------------------------------------------------------- all of it


def messages(path: Path) -> Iterator[str]:
    """Texts of a Python file that are no docstrings, with {} where a value is put in."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    left_out = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, kinds) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            left_out |= {id(part) for part in ast.walk(node) if part is not node}
    for node in ast.walk(tree):
        if id(node) in left_out:
            continue
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def all_advice() -> set[str]:
    """File and advice of all messages; HTML (page.py) aside."""
    found = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for text in messages(path) if path.name != "page.py" else ():
                for advice in advice_in(text) if " " in text else ():
                    found.add(f"{path.name}: {advice}")
    return found


def test_all_advice_is_typed_or_has_a_reason():
    found, known = all_advice(), {advice for advice, *_ in CASES} | set(NOT_TYPED)
    assert len(found) > 40
    assert found - known == set(), "advice that no test types: give it a line in CASES, or in NOT_TYPED"
    assert known - found == set(), "lines for advice that no message gives"
