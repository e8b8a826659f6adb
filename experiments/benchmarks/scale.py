"""What the stages of prepare, and the opening of lists, take as a corpus grows: on made-up data."""

import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from datamodules.batch_sampler import BatchSampler, WeightedLists
from datamodules.corpus import Corpus, EvaluationSet, load_corpus, load_evaluation_set
from datamodules.leakage.guard import LeakGuard
from datamodules.pipeline.searchers import Bm25
from datamodules.pipeline.stages.deduplicate import Deduplicate
from datamodules.pipeline.stages.filter import Filter
from datamodules.pipeline.stages.mine import Mine, positive_rows
from datamodules.pipeline.stages.queries import CollectQueries
from datamodules.pipeline.stages.sample import Sample
from datamodules.pipeline.stages.score import Score
from datamodules.pipeline.stages.split import Split
from datamodules.pipeline.stages.stage import Output, Stage, find_output, run_stage
from datamodules.query_lists import QueryLists, open_query_lists
from datamodules.storage.files import read_json, write_json
from experiments.benchmarks.made_up import MadeUpSearch, write_corpus
from experiments.benchmarks.measuring import measure, precision_of
from retriever.encoder.encoding import encode
from retriever.encoder.host_memory import give_freed_memory_back
from retriever.encoder.precision import autocast
from retriever.encoder.text_encoder import TextEncoder
from retriever.errors import InputError
from retriever.teachers import RunFusion

OF_PREPARE = ("deduplicate", "sample", "queries", "mine", "score", "filter", "split")
WORK = ("corpus", *OF_PREPARE, "bm25", "lists", "guard", "order", "order_overlapping")
# which processes share by shard=…
IN_BLOCKS = ("deduplicate", "mine", "bm25", "score", "generate", "encode", "teacher")
_GROUP = "sentence"
_EVALUATION_QUERIES = 1000
_BATCH = 4096
_ENCODED = 256  # passages, for a rate
_LOOKED_EVERY = 0.02  # seconds


class Scale:
    """Preparation of a made-up corpus, any step of it, where the steps before have been done.

    Args:
        folder: of this corpus alone.
        passages: how many, and how many lists.
        depth: hits of each of two made-up retrievers.
        bm25_queries: that BM25 searches for.
    """

    def __init__(self, folder: Path, passages: int, depth: int, bm25_queries: int) -> None:
        self.folder, self.passages, self.depth, self.bm25_queries = folder, passages, depth, bm25_queries

    def work(self, name: str) -> Callable[[], Any]:
        """Return what is to be measured: one of :data:`WORK`."""
        if name in OF_PREPARE:
            stage = self._stage(name)
            return lambda: run_stage(stage, self._work)
        return getattr(self, f"_{name}")()

    def disk(self, name: str) -> int:
        """How many bytes a step has left on the disk."""
        if name in OF_PREPARE:
            return _size(self._output(name).folder)
        caches = {"corpus": "corpora", "lists": "query_lists"}
        return _size(self._cache / caches[name]) if name in caches else 0

    def _corpus(self) -> Callable[[], Any]:
        return lambda: self.corpus

    def _bm25(self) -> Callable[[], Any]:
        asked = self._output("queries").table("queries.parquet", ["query"])["query"]
        queries, search = asked[: self.bm25_queries].combine_chunks(), Bm25()
        return lambda: [list(search.search(self.corpus, p, queries, self.depth)) for p in search.parts(self.passages)]

    def _lists(self) -> Callable[[], Any]:
        corpus = self.corpus
        return lambda: self._opened(corpus)

    def _guard(self) -> Callable[[], Any]:
        lists, guard, test = self._opened(self.corpus), LeakGuard("drop", 0.6, None, ["human"]), self._evaluation
        against = guard.queries(test.name, test.corpus, test.queries, test.relevant())
        return lambda: guard.without_leaks(self.corpus, lists, against)

    def _order(self, overlapping: bool = False) -> Callable[[], Any]:
        lists = self._opened(self.corpus)
        part = WeightedLists(self.corpus, lists, np.ones(len(lists)))
        sampler = BatchSampler([part], min(_BATCH, len(lists)), seed=1, group_overlapping_lists=overlapping)
        return lambda: sum(len(draw.places) for draw in sampler)

    def _order_overlapping(self) -> Callable[[], Any]:
        return self._order(overlapping=True)

    def _stage(self, name: str) -> Stage:
        corpus, output = self.corpus, self._output
        if name == "deduplicate":
            return Deduplicate(corpus)
        if name == "sample":
            return Sample(corpus, output("deduplicate"), size=max(1, self.passages // 10), strata=4)
        if name == "queries":
            group = {"source": "sentences", "limit": self.passages, "quality": True}
            return CollectQueries(corpus, str(self.folder / "made_up"), self.folder, {_GROUP: group}, None)
        if name == "mine":
            rows = positive_rows(output("queries").table("queries.parquet", ["positive_ids"]), corpus)
            searches = {f"search_{seed}": MadeUpSearch(np.array([r[0] for r in rows]), seed) for seed in (1, 2)}
            return Mine(corpus, output("queries"), output("deduplicate"), searches, depth=self.depth)
        if name == "score":
            return Score(corpus, output("queries"), output("mine"), RunFusion(), block_size=1000)
        if name == "filter":
            return Filter(output("score"), min_length=min(20, self.depth))
        sets = [(self._evaluation, "made up")]
        return Split(output("filter"), output("score"), corpus.name, sets, guards={_GROUP: "drop"}, corpus=corpus)

    def _output(self, name: str) -> Output:
        found = find_output(self._stage(name), self._work)
        if found is None:
            raise InputError(f"{name} has not run in {self.folder}.")
        return found

    def _opened(self, corpus: Corpus) -> QueryLists:
        return open_query_lists(self._output("split").file(f"{_GROUP}.train.parquet"), corpus, self._cache)[0]

    @cached_property
    def corpus(self) -> Corpus:
        """The corpus, opened."""
        return load_corpus(self.folder / "made_up", cache_dir=self._cache)

    @cached_property
    def _evaluation(self) -> EvaluationSet:
        return load_evaluation_set(str(self.folder / "made_up"), corpus=self.corpus)

    @property
    def _work(self) -> Path:
        return self.folder / "prepare"

    @property
    def _cache(self) -> Path:
        return self.folder / "cache"


class OwnMemory:
    """How much memory a process takes for itself meanwhile: not what it maps of files, which the system can take back.

    Attributes:
        grown: bytes, at most, above what it held before.
    """

    def __init__(self) -> None:
        self.grown = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(self._now(),), daemon=True)

    def __enter__(self) -> "OwnMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self, before: int) -> None:
        while not self._ended.wait(_LOOKED_EVERY):
            self.grown = max(self.grown, self._now() - before)

    @staticmethod
    def _now() -> int:
        status = Path("/proc/self/status")
        lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def run_scale(job: Mapping[str, Any]) -> dict[str, Any]:
    """Measure the steps of the preparation of a made-up corpus, one after the other; a job that was cut off goes on.

    Args:
        job: ``folder``, ``passages``, ``depth`` and ``bm25_queries``.

    Returns:
        ``seconds`` of all, and ``work``: step → what it took, with ``disk_bytes``, what it left.
    """
    folder = Path(job["folder"])
    record = folder / "steps.json"
    if not record.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        write_corpus(folder / "made_up", job["passages"], _EVALUATION_QUERIES)
    done: dict[str, Any] = read_json(record) if record.is_file() else {}
    for name in WORK:
        if name not in done:
            scale = Scale(folder, job["passages"], job["depth"], job["bm25_queries"])  # what was read before is let go
            work = scale.work(name)
            pa.default_memory_pool().release_unused()
            give_freed_memory_back()
            with OwnMemory() as own:
                _, took = measure(work, torch.device("cpu"))
            done[name] = {**took, "bytes": own.grown, "disk_bytes": scale.disk(name)}
            write_json(record, done)
    return {"seconds": sum(took["seconds"] for took in done.values()), "work": done}


def run_encode(job: Mapping[str, Any], encoder: TextEncoder, device: torch.device) -> dict[str, Any]:
    """Measure how many made-up passages are encoded in a second: ``job`` has ``folder`` and ``token_budget``."""
    folder = Path(job["folder"])
    texts = load_corpus(write_corpus(folder, _ENCODED, 1)).passages.to_pylist()
    shutil.rmtree(folder)
    encoder.eval()
    with torch.inference_mode(), autocast(precision_of(job, encoder, device), device):
        _, took = measure(lambda: encode(encoder, encoder.tokenize(texts, "passage"), job["token_budget"]), device)
    return {**took, "per_second": len(texts) / took["cpu_seconds" if device.type == "cpu" else "seconds"]}


def extrapolated(points: Sequence[dict[str, Any]], passages: int) -> dict[str, float]:
    """CPU seconds, memory and disk of a step at another size, by the line through its last two points."""
    *_, before, last = [points[0], *points]
    grown = last["passages"] - before["passages"]
    found = {}
    for name in ("cpu_seconds", "bytes", "disk_bytes"):
        slope = (last[name] - before[name]) / grown if grown else last[name] / last["passages"]
        found[name] = last[name] + max(0.0, slope) * (passages - last["passages"])
    return found


def bytes_a_passage(points: Sequence[dict[str, Any]]) -> float:
    """The memory that a step takes for one more passage, by its last two points."""
    before, last = points[-2:]
    return (last["bytes"] - before["bytes"]) / (last["passages"] - before["passages"])


def exponent(points: Sequence[dict[str, Any]]) -> float:
    """The power of the number of passages with which a step's time grows, by its last two points; 1 is linear."""
    before, last = points[-2:]
    return float(np.log(last["cpu_seconds"] / before["cpu_seconds"]) / np.log(last["passages"] / before["passages"]))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
