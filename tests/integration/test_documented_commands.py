"""Every command in a comment of experiments/conf composes and is accepted; of the paper's scale, it has its numbers."""

import re
import shlex

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from experiments.cli.arguments import check_added
from experiments.lists import command as list_files
from experiments.preparation.pipeline import Pipeline
from experiments.run import with_debug_last
from experiments.settings.checks import check
from helpers.runs import CONF
from retriever.encoder.spec import EncoderSpec
from retriever.errors import InputError
from retriever.pretrained.preset import with_preset

pytestmark = pytest.mark.slow

COMMAND = re.compile(r"python -m experiments\.(\w+) ((?:-m |\+|cut |[\w./]+=).*)")
# METHOD: setting of a run → the paper's value
PAPER = {
    "temperatures.student": 0.05,
    "temperatures.teacher": 0.3,
    "temperatures.infonce": 0.01,
    "data.normalization": "percentile",
    "data.min_top_quantile": 0.25,
    "data.list_length": 20,
    "data.candidates": "top",
    "data.batch_size": 4096,
    "module.train_passage_encoder": True,
    "module.learning_rate": 2e-4,
    "module.weight_decay": 0.01,
    "scheduler.decay": "to_zero",
    "scheduler.final_learning_rate": 0.1,
    "trainer.gradient_clip_val": 1.0,
    "trainer.max_epochs": 30,
    "trainer.val_check_interval": None,
    "trainer.precision": "bf16-mixed",
    "early_stopping.patience": 2,
    "early_stopping.monitors": ["dev/kl", "dev/loss"],
    "encoder.query_max_length": 64,
    "encoder.passage_max_length": 512,
    "encoder.dropout": 0.0,
}
# what an objective takes
OBJECTIVES = {
    "ListwiseDistillation": {"temperature": 0.05, "teacher_temperature": 0.3, "divergence": "kl"},
    "InfoNCE": {"temperature": 0.01, "positive": "teacher", "false_negative_threshold": 0.6},
    "CombinedObjective": {
        "temperature": 0.05,
        "teacher_temperature": 0.3,
        "infonce_temperature": 0.01,
        "distillation_weight": 1.0,
        "infonce_weight": 0.1,
        "positive": "teacher",
        "false_negative_threshold": 0.6,
    },
}
SENTENCE = "Represent this sentence for searching relevant passages: "
INSTRUCTED = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
# as their model cards say: pooling, query prompt, passage prompt
ENCODERS = {
    "bge_base": ("BAAI/bge-base-en-v1.5", "cls", SENTENCE, ""),
    "arctic_embed_m": ("Snowflake/snowflake-arctic-embed-m-v1.5", "cls", SENTENCE, ""),
    "gte_base": ("Alibaba-NLP/gte-base-en-v1.5", "cls", "", ""),
    "e5_base": ("intfloat/e5-base-v2", "mean", "query: ", "passage: "),
    "e5_base_unsupervised": ("intfloat/e5-base-unsupervised", "mean", "query: ", "passage: "),
    "cadet_base": ("manveertamber/cadet-embed-base-v1", "mean", "query: ", "passage: "),
    "minilm": ("sentence-transformers/all-MiniLM-L6-v2", "mean", "", ""),
    "multilingual_e5_small": ("intfloat/multilingual-e5-small", "mean", "query: ", "passage: "),
    "multilingual_e5_base": ("intfloat/multilingual-e5-base", "mean", "query: ", "passage: "),
    "bge_m3": ("BAAI/bge-m3", "cls", "", ""),
    "arctic_embed_l_v2": ("Snowflake/snowflake-arctic-embed-l-v2.0", "cls", "query: ", ""),
    "gte_multilingual": ("Alibaba-NLP/gte-multilingual-base", "cls", "", ""),
    "qwen3_embedding_4b": ("Qwen/Qwen3-Embedding-4B", "last", INSTRUCTED, ""),
    "qwen3_embedding_8b": ("Qwen/Qwen3-Embedding-8B", "last", INSTRUCTED, ""),
}


def documented():
    """(file, program, command line) of each command in a comment that says more than the name of an experiment."""
    found = []
    for path in sorted(CONF.rglob("*.yaml")):
        lines = [line.strip().lstrip("# ") for line in path.read_text().splitlines() if line.lstrip().startswith("#")]
        for program, line in COMMAND.findall(re.sub(r"\\\n", " ", "\n".join(lines))):
            line = line.split("     ")[0].replace("$n", "100")
            found += [(str(path.relative_to(CONF)), program, named) for named in _with_experiment(line)]
    return [c for c in dict.fromkeys(found) if not re.fullmatch(r"\+exp=\S+", c[2])]  # test_experiments runs these


def _with_experiment(line):
    """A command with the name of an experiment in place of its dots; of the paper's scale, one for each."""
    paper = sorted(path.stem for path in (CONF / "exp" / "paper").glob("[!_]*.yaml"))
    for name in ("two_sided_gpu", "cadet", "cadet_general"):  # name their files themselves; test_cadet.py
        paper.remove(name)
    if "+scale=paper" not in line:
        paper = ["objectives"]
    return dict.fromkeys(
        line.replace("+exp=…", "+exp=scifact/objectives").replace("paper/…", f"paper/{n}") for n in paper
    )


COMMANDS = documented()


def overrides_of(line):
    """What is typed behind the program's name, options in brackets too; the first of the runs that are asked for."""
    words = [w.strip("[]") if w.startswith("[") or w.count("[") < w.count("]") else w for w in shlex.split(line)]
    typed = [w.replace("hydra/launcher=…", "hydra/launcher=local_processes") for w in words if w not in ("-m", "…")]
    if typed[0] in list_files.COMMANDS:
        return typed
    return BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(with_debug_last(typed)), None)[0][0]


def config_of(program, overrides):
    folder, name = {"run": (CONF, "run"), "prepare": (CONF / "prepare", "prepare"), "bench": (CONF, "bench")}[program]
    with initialize_config_dir(str(folder), version_base="1.3"):
        config = compose(name, overrides, return_hydra_config=True)
    HydraConfig.instance().set_config(config)  # which group was chosen may name a file
    return config


def test_commands_are_found():
    files = [file for file, _, _ in COMMANDS]
    assert len(files) > 30 and files.count("scale/paper.yaml") == 1 and files.count("exp/paper/_base.yaml") > 15
    assert {file for file, _, line in COMMANDS if "+scale=paper" in line} >= {
        f"exp/paper/{name}.yaml" for name in ("_base", "two_sided", "multi_corpus")
    }


@pytest.mark.parametrize(("file", "program", "line"), COMMANDS, ids=lambda value: re.sub(r"\s+", " ", value)[:90])
def test_a_documented_command_is_accepted(file, program, line):
    overrides = overrides_of(line)
    if program == "prepare" and overrides[0] in list_files.COMMANDS:
        list_files._parser().parse_args(overrides)
        return
    config = config_of(program, overrides)
    check_added(config, config.hydra, "prepare/prepare.yaml" if program == "prepare" else f"{program}.yaml")
    swept = config.hydra.sweeper.get("params") or {}
    OmegaConf.set_readonly(config, False), OmegaConf.set_struct(config, False)
    config.name, config.hydra = "run", None
    if program == "prepare":
        Pipeline(config)
        return
    if config.trainer.accelerator == "gpu" and not torch.cuda.is_available():  # which is refused where there is none
        config.trainer.update({"accelerator": "cpu", "devices": 1, "num_nodes": 1})
    check(config)
    for key in ("data", "evaluation"):
        OmegaConf.to_container(config[key], resolve=True, throw_on_missing=True)
    if "+scale=paper" in overrides:
        wrong = differs_from_paper(config)
        assert not wrong, wrong
        if "module" in swept:
            for module in swept["module"].split(","):
                wrong = differs_from_paper(config_of("run", [*overrides, f"module={module}"]))
                assert not wrong, wrong
        assert config.scheduler.warmup_steps == (20 if "multi_corpus" in line else None)  # None: test_schedule.py


def differs_from_paper(config):
    """Setting → (its value, the paper's)."""
    objective = OBJECTIVES[config.module._target_.rpartition(".")[2]]
    if config.module.get("positive") == "labelled":  # the conventional arms know no teacher; one is the warmer baseline
        objective = {}
    numbers = PAPER | {f"module.{name}": value for name, value in objective.items()}
    found = {key: (OmegaConf.select(config, key), value) for key, value in numbers.items()}
    return {key: pair for key, pair in found.items() if pair[0] != pair[1]}


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_preset_is_as_the_paper_uses_it(name):
    model, *rest = ENCODERS[name]
    encoder = OmegaConf.to_container(config_of("run", [f"encoder={name}"]).encoder)
    stated = {key: encoder[key] for key in EncoderSpec.__dataclass_fields__}
    known, _ = with_preset(encoder["model"], encoder["preset"], stated, stated)
    assert encoder["model"] == model
    assert [known.get(key) for key in ("pooling", "query_prompt", "passage_prompt")] == rest


def test_a_scale_before_the_experiment_is_refused():
    with pytest.raises(InputError, match=r"Put it behind: \+exp=paper/two_sided \+scale=paper\.$"):
        config = config_of("run", ["+scale=paper", "seed=2", "+exp=paper/two_sided"])
        check_added(config, config.hydra, "run.yaml")
