"""How long a run will take: a few texts encoded on this machine, times what the run has to encode."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import lightning as L
import numpy as np
import torch

from callbacks import Evaluation
from datamodules import QueryListDataModule
from datamodules.caches import embeddings_file, find_tokens
from datamodules.corpus import Corpus
from datamodules.hidden_states import states_file
from experiments.plan.steps import Steps
from retriever.encoder.encoding import evaluating
from retriever.query_list_module import QueryListModule
from retriever.search import exact_search
from retriever.work import Work

_SAMPLE = 256  # texts whose lengths speak for all
_MEASURED = 0.25  # seconds that a measurement should last
_BATCHES = 4  # whose distinct passages speak for all
_RANGE = 0.8, 1.5  # of an estimate: machines are shared, and texts differ
_SAVED = 3e8  # bytes of a checkpoint a second, assumed


@dataclass(frozen=True)
class Estimate:
    """Seconds, as estimated.

    Attributes:
        encoding: corpora that the base model encodes once; 0 where the cache has their embeddings.
        steps: all optimiser steps that are left.
        evaluations: all evaluations, of dev lists and evaluation sets.
        saving: checkpoints; their rate alone is assumed, not measured.
        passages: number of passages in ``encoding``.
        number: number of evaluations.
        tokens: that a step encodes, of all ranks.
        share: seconds of a core that a second of measuring got; 1 or more where nothing else runs.
    """

    encoding: float
    steps: float
    evaluations: float
    saving: float
    passages: int
    number: int
    tokens: float
    share: float

    @property
    def bounds(self) -> tuple[float, float]:
        """From how many to how many seconds all of it takes."""
        total = self.encoding + self.steps + self.evaluations + self.saving
        return _RANGE[0] * total, _RANGE[1] * total


def estimate(
    trainer: L.Trainer,
    module: QueryListModule,
    data: QueryListDataModule,
    evaluation: Evaluation,
    steps: Steps,
    trained_share: float,
) -> Estimate:
    """Estimate what is left of a run.

    Some texts of the data are encoded as a step would encode them, in evaluation mode and without gradient, for a
    second or so; nothing is drawn from torch's random generators. A step counts as three forward passes (two where no
    weight but those of adapters learns), and one more for tokens whose activations are not kept. Layers whose
    output is stored are left out.

    Args:
        trainer: whose device, precision and ranks are used.
        module: in any mode; its encoder is moved to the device.
        data: open.
        evaluation: open.
        steps: what is left of them.
        trained_share: share of the encoder's weights that learn.

    Raises:
        RuntimeError: the module does not say what it encodes, or the device has too little memory.
    """
    if not steps.batches:
        raise RuntimeError("an epoch has no batch")
    sampler = data.sampler(train=True, group_overlapping_lists=False)
    passages = sampler.distinct_passages(data.list_length, _BATCHES).mean()
    all_lists = sum(len(part.lists) for part in data.train_lists)
    labels = sum(len(part.lists.positive_rows) for part in data.train_lists) / all_lists  # of a list, in the mean
    lists = all_lists / max(1, steps.batches)  # of a batch, in the mean
    step = module.work(min(lists, data.lists_of_step), passages, labels)
    sampler = data.sampler(train=False)
    dev_lists = sum(len(part.lists) for part in data.dev_lists)
    dev = module.work(dev_lists, sampler.distinct_passages(data.list_length).sum(), labels, dev=True)
    points = evaluation.work(module)
    every = points["validation"] + dev
    evaluations = [points["end"], *[every] * steps.validations]
    if steps.done == 0:
        evaluations.append(points["base"] + dev)

    meter = _Meter(trainer, module, data)
    corpora = _uncached(trainer, module, data, evaluation)
    tokens = meter.tokens(step)
    share = getattr(module.encoder, "computed_share", 1.0)
    passes = (
        2
        + (trained_share if share == 1 else 1)
        + max(0.0, 1 - module.uncheckpointed_tokens * trainer.world_size / max(1, tokens))
    )
    # in float32: weights of the best step; of the last one two moments of each that learns, too
    best, last = (sum((n if p.requires_grad else 4) * p.numel() for p in module.parameters()) for n in (4, 12))
    return Estimate(
        encoding=meter.seconds(Work(passages=sum(map(len, corpora)))) * _times_as_long(module, data),
        steps=steps.left * steps.accumulated * passes * meter.seconds(step, share),
        evaluations=sum(meter.seconds(work, share) for work in evaluations),
        saving=steps.validations * (best + last) / _SAVED if trainer.checkpoint_callbacks else 0.0,
        passages=sum(map(len, corpora)),
        number=len([work for work in evaluations if work != Work()]),
        tokens=tokens,
        share=meter.share,  # last, of all that was measured
    )


def _times_as_long(module: QueryListModule, data: QueryListDataModule) -> float:
    """How long a passage takes, beside one by the trained encoder: about as many times as its backbone has weights."""
    if data.passage_encoder is None:
        return 1.0
    of_passages, own = (_weights_of_layers(encoder) for encoder in (data.passage_encoder, module.encoder))
    return of_passages / max(1, own)


def _weights_of_layers(encoder: torch.nn.Module) -> int:
    """Weights that each token is multiplied by: those of tables of embeddings are looked up."""
    tables = {id(part.weight) for part in encoder.modules() if isinstance(part, torch.nn.Embedding)}
    return sum(p.numel() for p in encoder.parameters() if id(p) not in tables)


class _Meter:
    """Seconds that this machine takes for what is counted in a Work; each kind is measured once."""

    def __init__(self, trainer: L.Trainer, module: QueryListModule, data: QueryListDataModule) -> None:
        self.trainer, self.module = trainer, module
        random = np.random.default_rng(0)
        part = max(data.train_lists, key=lambda part: len(part.lists))
        rows = [random.integers(len(texts), size=_SAMPLE) for texts in (part.lists.queries, part.corpus.ids)]
        self.queries = part.lists.queries.take(rows[0]).to_pylist()
        self.passages = part.corpus.read_by(module.encoder).take(rows[1]).to_pylist()
        self._found: dict[str, tuple[float, float]] = {}
        self._wall = self._of_core = 0.0
        module.encoder.to(trainer.strategy.root_device)

    def seconds(self, work: Work, layers: float = 1.0) -> float:
        """Of all ranks together, each doing its part, where encoding computes this share of the layers."""
        found = {kind: self._of(kind)[0] * count for kind, count in work._asdict().items() if count}
        searching = found.pop("products", 0.0)
        return (searching + layers * sum(found.values())) / self.trainer.world_size

    def tokens(self, work: Work) -> float:
        """How many are encoded, of all ranks."""
        return sum(self._of(kind)[1] * count for kind, count in work._asdict().items() if count)

    @property
    def share(self) -> float:
        """Seconds of a core that a second of all measurements got; 1 where a GPU computes, or nothing was measured."""
        on_gpu = self.trainer.strategy.root_device.type == "cuda"
        return 1.0 if on_gpu or not self._wall else self._of_core / self._wall

    def _of(self, kind: str) -> tuple[float, float]:
        """Seconds and tokens of one."""
        if kind not in self._found:
            self._found[kind] = self._search() if kind == "products" else self._encode(kind)
        return self._found[kind]

    def _encode(self, kind: str) -> tuple[float, float]:
        with evaluating(self.module.encoder), self.trainer.precision_plugin.forward_context():
            lengths, encode = self.module.encode_some(kind, self.queries, self.passages)
            order = np.argsort(lengths, kind="stable")
            # texts of the length at which half of all tokens are in shorter ones
            middle = int(np.searchsorted(np.cumsum(lengths[order]), lengths.sum() / 2))
            most = min(len(order), max(1, self.module.token_budget // int(lengths[order[middle]])))

            def window(size: int) -> np.ndarray:
                start = min(max(0, middle - size // 2), len(order) - size)
                return order[start : start + size]

            count, seconds = 1, 0.0
            for goal in (0.0, _MEASURED / 4, _MEASURED):  # the first call also allocates and chooses kernels
                if seconds < goal:
                    count = min(most, max(2, int(count * goal / max(seconds, 1e-4))))
                if seconds <= goal:
                    rows = window(count)
                    seconds = self._timed(lambda: encode(rows))  # noqa: B023
            return seconds / lengths[window(count)].sum() * lengths.mean(), float(lengths.mean())

    def _search(self) -> tuple[float, float]:
        random = np.random.default_rng(0)
        queries, passages = (random.random((n, self.module.encoder.dimension), np.float32) for n in (64, 8192))
        return self._timed(lambda: exact_search(queries, passages, 1000)) / (64 * 8192), 0.0

    def _timed(self, call: Callable[[], object]) -> float:
        on_gpu = self.trainer.strategy.root_device.type == "cuda"
        begin, of_core = time.perf_counter(), time.process_time()
        call()
        if on_gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
        self._wall += seconds
        self._of_core += time.process_time() - of_core
        return seconds


def _uncached(
    trainer: L.Trainer, module: QueryListModule, data: QueryListDataModule, evaluation: Evaluation
) -> Sequence[Corpus]:
    """Corpora that the base model has to encode."""
    wanted = evaluation.ranker.corpora_to_encode(evaluation.history.sets)
    if wanted and not module.train_passage_encoder:
        wanted |= {(part.corpus.name, "float32"): part.corpus for part in (*data.train_lists, *data.dev_lists)}
    encoder, cache_dir = data.passage_encoder or module.encoder, data.cache_dir

    def cached(corpus: Corpus, dtype: str) -> bool:
        tokens = find_tokens(corpus.read_by(encoder), encoder, "passage", cache_dir)
        if tokens is None:
            return False
        from_states = module.train_passage_encoder and states_file(tokens, encoder, cache_dir) is not None
        return embeddings_file(tokens, encoder, cache_dir, dtype, from_states).is_file()

    with trainer.precision_plugin.forward_context():
        return [corpus for (_, dtype), corpus in wanted.items() if not cached(corpus, dtype)]
