"""What is observed of a configuration, for the tests that no setting is without effect.

With another value of a setting, what is built or left differs, or it is refused. Each leaf of a composed configuration
needs an entry in one of ``tests/integration/test_dead_settings*.py``: how it is observed and another legal value
(``Seen``), or why it cannot be observed here (``LISTED``). What is observed is never the configuration that a run
writes down, but batches, gradients, embeddings, files of a run, lists of the pipeline.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import logging
import shutil
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import OmegaConf, open_dict
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

import datamodules
from datamodules.batches import ListBatches
from datamodules.corpus import Corpus
from datamodules.query_lists import read_query_lists, write_query_lists
from experiments.preparation.pipeline import Pipeline
from experiments.prepare import prepare
from experiments.settings.checks import check
from experiments.training.train import make_module_and_data, run_experiment
from helpers.runs import CONF
from retriever.cross_encoder.cross_encoder import CrossEncoder
from retriever.encoder.text_encoder import TextEncoder
from retriever.errors import InputError

DATAMODULES = Path(datamodules.__file__).parent
OFF = {"data.leak_guard": "off"}
REAL = "sentence-transformers/all-MiniLM-L6-v2"


@dataclass
class Seen:
    """How a leaf is observed: ``by`` with ``value``, beside the settings of ``context``."""

    by: str
    value: Any
    context: dict[str, Any] = field(default_factory=dict)
    refused: str = ""  # what the refusal says, where the value is refused


def leaves(section: Any, key: str = "") -> dict[str, Any]:
    """Dotted key → value of everything in a configuration that is no mapping with keys."""
    if isinstance(section, dict) and section:
        return {k: v for name, inner in section.items() for k, v in leaves(inner, f"{key}.{name}".lstrip(".")).items()}
    return {key: section}


def digest(value: Any) -> Any:
    """Something short that is equal for equal content."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().float().numpy() if value.is_floating_point() else value.cpu().numpy()
    if isinstance(value, np.ndarray):
        return hashlib.sha256(
            f"{value.shape}{value.dtype}".encode() + np.ascontiguousarray(value).tobytes()
        ).hexdigest()
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if dataclasses.is_dataclass(value):
        return [digest(getattr(value, f.name)) for f in dataclasses.fields(value)]
    if isinstance(value, dict):
        return {key: digest(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [digest(inner) for inner in value]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


class World:
    """Small data and models, and the ways to observe what a configuration of ``run`` does with them."""

    def __init__(self, folder: Path, model: Path, corpus: Path, lists: Path) -> None:
        self.folder, self.model, self.number, self.calls = folder, str(model), 0, []
        self.encoders: dict[str, Any] = {}  # section of a configuration → what is seen of that encoder
        self.emptied = str(folder / "emptied")  # a cache in which a fit finds nothing
        self.other_model = str(folder / "other_model")
        shutil.copytree(model, self.other_model)
        torch.manual_seed(7)
        BertModel(BertConfig.from_pretrained(model), add_pooling_layer=False).save_pretrained(self.other_model)
        self.corpus, self.second = str(folder / "small"), str(folder / "second")
        for name in ("small", "second", "gaps", "store/kept", "other_store/kept"):
            shutil.copytree(corpus, folder / name, ignore=shutil.ignore_patterns("lists"))
        self._add_queries(folder / "small")
        self.gaps, self.sampled = str(folder / "gaps"), self._passages()
        self.twins = self._twins(folder / "twins")
        with open(folder / "gaps" / "corpus.jsonl", "a") as file:
            file.write('{"_id": "empty", "title": "", "text": ""}\n')
        with open(folder / "other_store" / "kept" / "queries.jsonl", "a") as file:
            file.write('{"_id": "x", "text": "zebra"}\n')
        (folder / "other_store" / "kept" / "qrels" / "test.tsv").write_text(
            f"query-id\tcorpus-id\tscore\nx\t{self._passages()[0]}\t1\n"
        )
        self._write_lists(read_query_lists(lists))

    def _passages(self) -> list[str]:
        with open(f"{self.corpus}/corpus.jsonl") as file:
            return [json.loads(line)["_id"] for line in file]

    def _twins(self, folder: Path) -> str:
        """Texts that are equal but for a number, and others that have more and more words in common."""
        (folder / "qrels").mkdir(parents=True)
        words = [f"w{number}" for number in range(60)]
        texts = [f"In the year {number} a fish swam in cold water." for number in range(3)]
        texts += [" ".join([*words[:n], *(f"v{n}x{k}" for k in range(60 - n))]) for n in range(20, 60, 2)]
        lines = [json.dumps({"_id": f"t{n}", "title": "", "text": text}) for n, text in enumerate(texts)]
        (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n")
        (folder / "queries.jsonl").write_text('{"_id": "q", "text": "fish"}\n')
        (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\tt0\t1\n")
        return str(folder)

    def _add_queries(self, folder: Path) -> None:
        """Judgements that share passages with the train lists, and no words; a query with a passage's id; a stray."""
        positives = (folder / "qrels" / "train.tsv").read_text().splitlines()[1:]
        head, passages = "query-id\tcorpus-id\tscore\n", self._passages()
        with open(folder / "queries.jsonl", "a") as file:
            for number in range(6):
                file.write(json.dumps({"_id": f"p{number}", "text": f"zebra{number} quagga{number}"}) + "\n")
            with open(folder / "corpus.jsonl") as corpus:
                text = json.loads(corpus.readline())["text"]
            file.write(json.dumps({"_id": passages[0], "text": text}) + "\n")
        shared = "".join(f"p{n}\t{line.split()[1]}\t1\n" for n, line in enumerate(positives[:6]))
        (folder / "qrels" / "shared.tsv").write_text(head + shared)
        with open(folder / "corpus.jsonl") as corpus:
            texts = {(record := json.loads(line))["_id"]: record["title"] + record["text"] for line in corpus}
        with open(folder / "corpus.jsonl", "a") as corpus:  # as a positive of the train lists, but for one word
            for number, line in enumerate(positives[:6]):
                near = {"_id": f"near{number}", "title": "", "text": texts[line.split()[1]] + " indeed"}
                corpus.write(json.dumps(near) + "\n")
        near_judged = "".join(f"p{number}\tnear{number}\t1\n" for number in range(6))
        (folder / "qrels" / "near.tsv").write_text(head + near_judged)
        (folder / "qrels" / "own.tsv").write_text(f"{head}{passages[0]}\t{passages[1]}\t1\n")
        (folder / "qrels" / "stray.tsv").write_text(f"{head}p0\t{passages[1]}\t1\np0\tnowhere\t1\n")

    def _write_lists(self, lists: list) -> None:
        self.lists = {n: str(self.folder / f"{n}.parquet") for n in ("train", "dev", "some", "second", "strays")}
        typed = [dataclasses.replace(q, query_type="human" if i % 2 else "web") for i, q in enumerate(lists)]
        for number in range(0, len(typed), 2):  # whose label is not the teacher's first
            typed[number] = dataclasses.replace(typed[number], positive_ids=typed[number].passage_ids[1:2])
        stray = dataclasses.replace(typed[0], query_id="s", passage_ids=["nowhere", *typed[0].passage_ids[1:]])
        parts = {"train": typed[:30], "dev": typed[30:], "some": typed[:9], "strays": [*typed[:9], stray]}
        parts["second"] = [dataclasses.replace(q, corpus="second") for q in typed[:12]]
        for name, part in parts.items():
            write_query_lists(Path(self.lists[name]), part, {"teacher": "made for tests"})

    def of(self, name: str, corpus: str = "") -> list[dict[str, str]]:
        """Files of lists, as a configuration names them."""
        return [{"path": self.lists[name], "corpus": corpus or self.corpus}]

    def base(self) -> dict[str, Any]:
        """The settings of a run of a second."""
        return {
            "name": "small",
            "encoder.model": self.model,
            "encoder.pooling": "mean",
            "encoder.passage_max_length": 48,
            "data.train": self.of("train"),
            "data.dev": self.of("dev"),
            "data.batch_size": 8,
            "evaluation.datasets": [{"path": self.corpus}],
            "trainer.max_epochs": 1,
            "trainer.accelerator": "cpu",
            "trainer.precision": "32-true",
            "trainer.limit_train_batches": 2,
            "early_stopping.patience": None,
            "diagnostics.every_n_steps": None,
            "output_dir": str(self.folder / "outputs"),
            "logger.wandb": None,
            "export": False,
        }

    def micro_batch(self, module: torch.nn.Module, inputs: tuple) -> None:
        """Hook of all forward calls: the shape of what an encoder reads."""
        if isinstance(module, TextEncoder | CrossEncoder | torch.nn.Embedding) and inputs:
            self.calls.append(tuple(inputs[0].shape))

    # ways to observe

    def accepted(self, config: Any) -> Any:
        """Whether it is accepted."""
        return "accepted"

    def embeddings(self, config: Any) -> Any:
        """Embeddings of a query and a long passage, in training; which weights learn; how attention is computed."""
        key = json.dumps(OmegaConf.to_container(config.encoder, resolve=True), sort_keys=True)
        if key in self.encoders:
            return self.encoders[key]
        encoder = instantiate(config.encoder)
        long = "The cell of a fish swims in cold water and eats what it finds there. " * 30
        found = []
        [passage] = (
            Corpus("of_one", pa.array(["1"]), pa.array(["A fish"]), pa.array([long])).read_by(encoder).to_pylist()
        )
        for kind, text in (("query", long), ("passage", passage), ("query", "fish")):
            tokens = encoder.tokenize([text], kind)
            torch.manual_seed(0)
            ids = torch.from_numpy(np.array(tokens.ids, dtype=np.int64))[None]
            with torch.no_grad():
                found += [len(ids[0]), digest(encoder(ids, torch.ones_like(ids)))]
        learning = [name for name, weight in encoder.named_parameters() if weight.requires_grad]
        used = encoder.backbone.config._attn_implementation, encoder.backbone._compiled_call_impl is None
        self.encoders[key] = [*found, learning, used]
        return self.encoders[key]

    def cross(self, config: Any) -> Any:
        """A cross-encoder's loss, gradients and micro-batches on a batch that is made with it."""
        torch.manual_seed(0)
        encoder = instantiate(config.encoder)
        data = instantiate(config.data, encoder=encoder)
        data.setup()
        module = instantiate(config.module, encoder=encoder)
        loader = data.train_dataloader()
        batch = next(iter(loader))
        torch.manual_seed(0)
        self.calls.clear()
        parts = module.losses(batch)
        parts["loss"].backward()
        grads = {name: digest(p.grad) for name, p in module.named_parameters() if p.grad is not None}
        return digest(parts), grads, list(self.calls), encoder.backbone.config._attn_implementation

    def dense(self, config: Any) -> Any:
        """Embeddings of the dense retriever beside the cross-encoder."""
        return self.embeddings(OmegaConf.create({"encoder": OmegaConf.to_container(config.evaluation.dense)}))

    def gradients(self, config: Any) -> Any:
        """An objective's parts and gradients on one batch, and the micro-batches that it encoded."""
        torch.manual_seed(0)
        module = instantiate(config.module, encoder=copy.deepcopy(self.encoder))
        sources = self.sources
        batch = ListBatches(sources, 6, "top", module.needs)[self.draw]
        self.calls.clear()
        parts = module.losses(batch)
        parts["loss"].backward()
        grads = {name: digest(p.grad) for name, p in module.named_parameters() if p.grad is not None}
        return digest(parts), grads, list(self.calls)

    def batches(self, config: Any) -> Any:
        """The batches of two epochs, the dev batches, what is reported, and how many threads made them."""
        data = instantiate(config.data, encoder=self.encoder)
        data.setup()
        found, threads = [], 0
        for epoch in (0, 1):
            loader = data.train_dataloader()
            loader.sampler.set_epoch(epoch)
            for batch in loader:
                threads = max(threads, threading.active_count())
                found.append(digest(batch))
        return found, [digest(batch) for batch in data.val_dataloader()], data.report, threads

    def caches(self, config: Any) -> Any:
        """Where the data module keeps what it has made."""
        instantiate(config.data, encoder=self.encoder).setup()
        return self.places()

    def caches_of_fit(self, config: Any) -> Any:
        """Where an evaluation keeps what it has made."""
        self.fit(config)
        return self.places()

    def places(self) -> list[str]:
        """Folders of names that are given here alone, which are there and then are gone."""
        folders = [path for path in self.folder.glob("else*") if path.is_dir()]
        found = sorted(str(path.relative_to(self.folder)) for folder in folders for path in folder.glob("*"))
        for folder in folders:
            shutil.rmtree(folder)
        return found

    def fit(self, config: Any) -> Any:
        """What a training and its evaluations leave, without all else of a run: figures, files, weights."""
        shutil.rmtree(self.emptied, ignore_errors=True)
        self.number += 1
        folder = self.folder / f"run{self.number}"
        self.calls.clear()
        torch.manual_seed(0)
        module, data = make_module_and_data(config)
        evaluation = instantiate(config.evaluation, folder=folder)
        off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
        trainer = instantiate(config.trainer, callbacks=[evaluation], **off)
        trainer.fit(module, datamodule=data)
        files = {
            str(path.relative_to(folder)): digest(path.read_bytes()) for path in folder.rglob("*") if path.is_file()
        }
        shutil.rmtree(folder)
        figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
        return figures, files, digest(module.state_dict()), list(self.calls)

    def run(self, config: Any) -> Any:
        """What a run leaves: results, metrics, files for each query, weights of checkpoints and of the model."""
        self.number += 1
        folder = self.folder / f"run{self.number}"
        self.calls.clear()
        results = run_experiment(config, folder)
        for key in ("wall_time_s", "peak_memory_bytes", "criterion", "criterion_mode", "encoder"):  # the last: as typed
            results.pop(key)
        files: dict[str, Any] = {}
        for path in sorted(folder.rglob("*")):
            name = str(path.relative_to(folder))
            if name.endswith(".ckpt"):
                files[name] = digest(torch.load(path, weights_only=True)["state_dict"])
            elif name.endswith(".safetensors"):
                files[name] = digest(load_file(path))
            elif path.is_file() and name.startswith("model/"):
                files[name] = True
            elif path.is_file() and name not in ("config.yaml", "follows.yaml", "environment.json", "results.json"):
                files[name] = hashlib.sha256(
                    path.read_bytes()
                ).hexdigest()  # what says how the run was configured apart
        shutil.rmtree(folder)
        return json.dumps(results, sort_keys=True, default=str), files, list(self.calls)

    def trainer(self, config: Any) -> Any:
        """Lightning's trainer, as it was made: what Lightning does with it, Lightning tests."""
        made = instantiate(config.trainer, logger=False, enable_progress_bar=False)
        names = "max_epochs max_steps num_devices num_nodes precision gradient_clip_val accumulate_grad_batches"
        names += " check_val_every_n_epoch val_check_interval limit_train_batches limit_val_batches log_every_n_steps"
        found = [repr(getattr(made, name)) for name in names.split()]
        found += [type(made.strategy).__name__, type(made.accelerator).__name__, len(made.callbacks)]
        found += [made.num_sanity_val_steps, made._accelerator_connector.use_distributed_sampler]
        found += [torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()]
        torch.use_deterministic_algorithms(False)
        return found

    def prepare_base(self) -> dict[str, Any]:
        """The settings of a pipeline of a second."""
        return {
            "corpus": self.corpus,
            "encoder.model": self.model,
            "encoder.pooling": "mean",
            "encoder.passage_max_length": 48,
            "generator.engine": "transformers",
            "generator.model": str(self.folder / "chat"),
            "generator.sampling": {
                "temperature": 0.8,
                "top_p": 1.0,
                "max_tokens": 24,
                "frequency_penalty": 0.0,
                "stop": ["s", "t"],
            },
            "sample.size": 4,
            "generate.types": ["question"],
            "generate.max_characters": 200,
            "generate.language": None,
            "mine.depth": 30,
            "filter.consistency_rank": None,
            "filter.teacher_first": False,
            "filter.min_length": 5,
            "filter.min_top_quantile": None,
            "split.dev_fraction": 0.3,
            "output": str(self.folder / "lists"),
            "output_dir": str(self.folder / "outputs"),
            "data_dir": str(self.folder / "store"),
        }

    def chat_model(self, folder: Path) -> None:
        """A chat model whose template has a variable; query types of its own; texts that are nearly equal."""
        shutil.copytree(folder, self.folder / "chat")
        for path in (self.folder / "chat").glob("chat_template*"):
            path.write_text("{{ greeting }}" + path.read_text())
        shutil.copytree(
            DATAMODULES / "pipeline" / "prompts", self.folder / "types", ignore=shutil.ignore_patterns("__*")
        )
        (self.folder / "types" / "claim.yaml").rename(self.folder / "types" / "own.yaml")
        for path in (self.folder / "types").glob("*.yaml"):
            if path.name not in ("own.yaml", "passages.yaml"):
                path.unlink()

    def encoder_section(self, model: str) -> dict[str, Any]:
        """An encoder, as a retriever names it."""
        config = changed(composed(), self.base() | {"encoder.model": model}).encoder
        return OmegaConf.to_container(config, resolve=True)

    def prepared(self, config: Any) -> Any:
        """What each stage left, in how many blocks, and the micro-batches that were encoded."""
        pipeline = Pipeline(config)
        self.calls.clear()
        done, found = pipeline.run(), {}
        for name, output in pipeline.outputs.items():
            tables = {path.name: str(pq.read_table(path).to_pydict()) for path in output.folder.glob("*.parquet")}
            found[name] = [output.manifest["counts"], output.manifest["blocks"], digest(tables)]
        return done, json.dumps(found, default=str), list(self.calls)

    def written(self, config: Any) -> Any:
        """Where files are written."""
        prepare(config)
        return self.places()

    def kept(self, config: Any) -> Any:
        """Which files the cache then holds."""
        self.prepared(config)
        files = sorted(path.name for path in Path(config.cache_dir).rglob("*") if path.is_file())
        shutil.rmtree(config.cache_dir)
        shutil.rmtree(config.work)
        return files

    def sharded(self, config: Any) -> Any:
        """What is done where nothing has been done yet."""
        shutil.rmtree(config.work, ignore_errors=True)
        return self.prepared(config)

    def observed(self, by: str, config: Any, said: list[str]) -> Any:
        """What is observed, a refusal included, and every warning."""
        said.clear()
        try:
            if "module" in config:
                check(config)
            found = getattr(self, by)(config)
        except Exception as error:
            wrong: BaseException | None = error  # Hydra wraps what a class raises
            while wrong is not None and not isinstance(wrong, InputError | MisconfigurationException):
                wrong = wrong.__cause__ or wrong.__context__
            return ("raised", traceback.format_exc()) if wrong is None else ("refused", str(wrong))
        return found, [line for line in said if str(self.folder / "run") not in line]


CLASS = "names a class; test_security.py and test_configuration.py hold what may be named"
HYDRAS = "Hydra's own: plain containers for what is built"
WANDB = "of a W&B run, or of its server; tests/integration/test_wandb.py holds what W&B is given"


def is_listed(key: str) -> str:
    """Why a leaf is not observed here."""
    last = key.rpartition(".")[2]
    if last in ("_target_", "_convert_", "_recursive_"):
        return CLASS if last == "_target_" else HYDRAS
    if key.startswith("data.corpus_scores.") or key == "data.guide":
        return "looked at with the objectives that read them, in test_dead_settings.py"
    return LISTED.get(key, "") or (WANDB if key.startswith("logger.wandb.") else "")


FOLLOWS = "follows the setting at the top, which is looked at there"
LISTED = {
    "group": WANDB,
    "debug": "a group of its own; test_config_groups.py runs it",
    "callbacks.learning_rate.logging_interval": "Lightning's; test_config_groups.py switches the callback off",
    "callbacks.diagnostics.every_n_steps": FOLLOWS,
    "callbacks.diagnostics.teacher_temperature": FOLLOWS,
    "callbacks.early_stopping.monitors": FOLLOWS,
    "callbacks.early_stopping.patience": FOLLOWS,
    "encoder.trust_remote_code": "runs the code of a model folder; tests/unit/test_encoder.py holds that it is off",
    "evaluation.dense.trust_remote_code": "likewise",
    "evaluation.embedding_storage": "same figures, other memory; test_evaluation_at_scale.py counts both",
    "trainer.accelerator": "a GPU's; auto takes one where there is one, and Lightning refuses what is not there",
    "trainer.use_distributed_sampler": "batches are cut for the ranks before; Lightning's for samplers of torch's",
}


def encoder_leaves(world: World, place: str = "encoder", by: str = "embeddings") -> dict[str, Seen]:
    """Leaves of an encoder of single texts."""
    known = {f"{place}.model": world.model, f"{place}.preset": {"model": world.model}, f"{place}.pooling": "mean"}
    real = {f"{place}.model": REAL, f"{place}.passage_max_length": None}
    found = {
        "model": Seen(by, world.other_model),
        "preset.model": Seen(by, "another", {**known, f"{place}.preset.query_prompt": "q: "}),
        "revision": Seen(by, "main", refused="has no revisions"),
        "pooling": Seen(by, "cls"),
        "query_prompt": Seen(by, "query: "),
        "passage_prompt": Seen(by, "passage: "),
        "passage_titles": Seen(by, False),
        "query_max_length": Seen(by, 20),
        "passage_max_length": Seen(by, 20),
        "normalize": Seen(by, False),
        "truncate_dim": Seen(by, 16),
        "dropout": Seen(by, 0.3),
        "lora": Seen(by, {"r": 2, "target_modules": ["query"]}),
        "trainable_layers": Seen(by, 1),
        "attention": Seen(by, "eager"),
        "compile": Seen(by, {"disable": True}),  # test_encoder.py compiles, which takes ten seconds
    }
    for name, value in {"distribution": "none", "folder": "none", "sha256": "0" * 64}.items():
        found[f"preset.packaged.{name}"] = Seen(by, value, real, refused="")
    for name, value in {
        "pooling": "cls",
        "query_prompt": "q: ",
        "passage_prompt": "p: ",
        "query_max_length": 20,
        "passage_max_length": 20,
        "normalize": False,
    }.items():
        states_nothing = {f"{place}.{name}": None}
        if name == "pooling":
            states_nothing[f"{place}.preset.pooling"] = "mean"
        found[f"preset.{name}"] = Seen(by, value, known | states_nothing)
    return {f"{place}.{name}": seen for name, seen in found.items()}


@contextmanager
def opened_world(folder: Path, model: Path, corpus: Path, lists: Path) -> Iterator[World]:
    """Small data, models, and one batch."""
    made = World(folder, model, corpus, lists)
    hook = torch.nn.modules.module.register_module_forward_pre_hook(made.micro_batch)
    config = changed(composed(), made.base())
    made.encoder = instantiate(config.encoder)
    data = instantiate(config.data, encoder=made.encoder)
    data.setup()
    made.sources = data._train
    made.draw = next(iter(data.train_dataloader().sampler))
    yield made
    hook.remove()


_COMPOSED: dict[tuple, Any] = {}


def composed(*choices: str, command: str = "run") -> Any:
    """A configuration, composed once."""
    key = (command, *choices)
    if key not in _COMPOSED:
        folder = CONF / "prepare" if command == "prepare" else CONF
        with initialize_config_dir(str(folder), version_base="1.3"):
            _COMPOSED[key] = compose(command, [*choices, *(["name=x"] if command == "run" else [])])
    return copy.deepcopy(_COMPOSED[key])


def changed(config: Any, settings: dict[str, Any]) -> Any:
    """The configuration with other values."""
    with open_dict(config):
        for key, value in settings.items():
            OmegaConf.update(config, key, value, merge=False)
    return config


def dead(
    world: World, entries: dict[str, Seen], base: dict[str, Any], said: list[str], choices=(), command: str = "run"
) -> list[str]:
    """Leaves whose other value changes nothing that is observed."""
    known: dict[str, Any] = {}

    def observed(by: str, settings: dict[str, Any]) -> Any:
        """What is observed with these settings, once."""
        name = f"{by} {sorted(settings.items(), key=str)}"
        if name not in known:
            known[name] = world.observed(by, changed(composed(*choices, command=command), settings), said)
        return known[name]

    found = []
    for key, seen in entries.items():
        before = observed(seen.by, base | seen.context)
        after = observed(seen.by, base | seen.context | {key: seen.value})
        if "raised" in (after[0], before[0]):
            found.append(f"{key}: {before if before[0] == 'raised' else after}"[:1000])
        # refused with and without it; a class that may be called is refused for what it is
        elif before[0] == after[0] == "refused" and key != "allowed_targets":
            found.append(f"{key}: without it, {before}"[:1000])
        elif after == before:
            found.append(f"{key}: nothing follows it ({after if after[0] == 'refused' else seen.by})")
        elif seen.refused and (after[0] != "refused" or seen.refused not in after[1]):
            found.append(f"{key}: not refused with {seen.refused!r}, but {after}")
    return found


@contextmanager
def warnings_told() -> Iterator[list[str]]:
    """Every warning of a logger, as it is told."""
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    yield lines
    logging.getLogger().removeHandler(handler)


def report(what: str, found: dict[str, Any], entries: dict[str, Seen]) -> None:
    """Print the counts, for -s."""
    listed = [key for key in found if is_listed(key)]
    refused = [key for key, seen in entries.items() if seen.refused]
    followed = len(entries) - len(refused)
    print(f"{what}: {len(found)} settings, {followed} followed, {len(refused)} refused, {len(listed)} listed")
