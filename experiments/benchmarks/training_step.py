"""A training step on the same lists, weights and lengths: this project's, sentence-transformers', a plain loop's."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from datamodules.batches import Draw, ListBatches, ListSource
from datamodules.caches import cached_tokens
from datamodules.corpus import Corpus, find_dataset, find_file, load_corpus
from datamodules.query_lists import open_query_lists
from experiments.benchmarks.flops import forward_flops
from experiments.benchmarks.measuring import autocast, matmul_rate, measure
from retriever.batch import BatchNeeds, EncodedBatch, RetrievalBatch
from retriever.encoder.text_encoder import TextEncoder, set_dropout
from retriever.encoder.tokens import TokenizedTexts, micro_batches, padding_share
from retriever.errors import InputError, choose, installed_by
from retriever.losses.listwise import at_least_float32
from retriever.losses.query_blocks import in_query_blocks
from retriever.module import RetrieverModule
from retriever.objectives import ListwiseDistillation

TEMPERATURE, STUDENT, TEACHER = 0.05, 0.05, 0.3


class Lists:
    """The lists of some files over one corpus, in a seeded order; ``take`` gives the first of them as texts or batch.

    Args:
        files: paths of list files; those of the first come first.
        corpus: name or folder of their corpus.
        encoder: whose tokenizer is used.
        list_length: candidates of a list; shorter lists are left out, for a peer needs as many columns for each.
        cache_dir: of token ids.
        seed: of the order within a file.
        empty_passages: ``error`` or ``keep``.
        on_bad_list: ``error`` or ``drop``.
    """

    def __init__(
        self,
        files: Sequence[str],
        corpus: str,
        encoder: TextEncoder,
        list_length: int,
        cache_dir: str,
        seed: int,
        empty_passages: str = "error",
        on_bad_list: str = "error",
    ) -> None:
        self.corpus: Corpus = load_corpus(find_dataset(corpus), empty_passages=empty_passages)
        self.list_length = list_length
        passages = cached_tokens(self.corpus.passages, encoder, "passage", cache_dir)
        random = np.random.default_rng(seed)
        self.sources, places = [], []
        for number, path in enumerate(files):
            lists, _ = open_query_lists(find_file(path), self.corpus, cache_dir, on_bad_list)
            tokens = cached_tokens(lists.queries, encoder, "query", cache_dir)
            self.sources.append(ListSource(self.corpus, lists, np.ones(len(lists)), tokens, passages, None))
            long_enough = random.permutation(np.flatnonzero(np.diff(lists.offsets) >= list_length))
            places.append(np.stack([np.full(len(long_enough), number), long_enough], 1))
        self.places = np.concatenate(places)

    @classmethod
    def of_job(cls, job: Mapping[str, Any], encoder: TextEncoder) -> Lists:
        """The lists that a job names."""
        names = ("files", "corpus", "list_length", "cache_dir", "seed", "empty_passages", "on_bad_list")
        return cls(encoder=encoder, **{name: job[name] for name in names})

    def batch(self, count: int) -> RetrievalBatch:
        """The first ``count`` lists as a batch."""
        if count > len(self.places):
            raise InputError(f"step.cases: {count} lists asked for; the files hold {len(self.places)}.")
        return ListBatches(self.sources, self.list_length, "top", BatchNeeds())[Draw(self.places[:count], (0,))]

    def texts(self, batch: RetrievalBatch) -> tuple[list[str], list[list[str]]]:
        """Queries [Q] and, column by column, the passages [K][Q] of a batch's lists."""
        rows = batch.passage_keys[batch.list_index].numpy()
        columns = [self.corpus.passages.take(column).to_pylist() for column in rows.T]
        # by place: two files may name different queries alike
        lists = [(self.sources[number].lists, row) for number, row in self.places[: len(batch)]]
        assert [found.query_ids[row].as_py() for found, row in lists] == list(batch.query_ids)
        return [found.queries[row].as_py() for found, row in lists], columns


class SameInfoNCE(RetrieverModule):
    """InfoNCE as sentence-transformers counts it, on distinct passages: equal copies of the positive are negatives."""

    def objective(self, batch: EncodedBatch) -> dict[str, Tensor]:
        """The mean over the queries."""
        pool = batch.pool()
        counts = pool.counts.log()

        def losses(queries: Tensor, positive: Tensor) -> Tensor:
            scores = at_least_float32(queries @ pool.embeddings.T) / TEMPERATURE
            return (scores + counts).logsumexp(1) - scores.gather(1, positive.unsqueeze(1)).squeeze(1)

        rows = (batch.queries, batch.list_index[:, 0])
        return {"loss": in_query_blocks(losses, *rows, numbers_per_query=len(pool.keys)).mean()}


class Ours:
    """This project's step: distinct passages once, micro-batches without padding, checkpoints."""

    def __init__(self, module: RetrieverModule, batch: RetrievalBatch) -> None:
        self.module, self.batch = module, batch
        self.parameters = list(module.parameters())

    def loss(self) -> Tensor:
        """The loss of the batch, ready for ``backward``."""
        return self.module.losses(self.batch)["loss"]

    def facts(self) -> dict[str, float]:
        """What was computed."""
        assert self.batch.passages is not None  # both sides learn here
        lengths = TokenizedTexts.concatenate([self.batch.queries, self.batch.passages]).lengths
        parts = micro_batches(lengths, self.module.token_budget, on_gpu=self.batch.list_mask.is_cuda)
        return {
            "distinct_share": len(self.batch.passage_keys) / float(self.batch.list_mask.sum()),
            "padding_share": padding_share(lengths, parts),
            "micro_batches": len(parts),
            "texts": len(lengths),
            "needed_tokens": int(lengths.sum()),
            "layers": self.module.encoder.backbone.config.num_hidden_layers,
            "width": self.module.encoder.backbone.config.hidden_size,
            "needed_flops": 3 * forward_flops(self.module.encoder.backbone, lengths),
        }


class SentenceTransformers:
    """A loss of sentence-transformers on tokenised columns (tokenising is not timed)."""

    def __init__(self, loss: torch.nn.Module, features: list[dict[str, Tensor]], labels: Tensor | None) -> None:
        self.function, self.features, self.labels = loss, features, labels
        self.parameters = list(loss.model.parameters())

    def loss(self) -> Tensor:
        """The loss of the batch, ready for ``backward``."""
        # modules add their outputs to the dictionaries they are given
        return self.function([dict(column) for column in self.features], self.labels)

    def facts(self) -> dict[str, float]:
        """What was computed."""
        return {"distinct_share": 1.0}


class PlainLoop:
    """Every list entry encoded as it comes, in checkpointed micro-batches of texts in their given order."""

    def __init__(self, encoder: TextEncoder, queries: TokenizedTexts, entries: TokenizedTexts, size: int) -> None:
        self.encoder, self.queries, self.entries, self.size = encoder, queries, entries, size
        self.parameters = list(encoder.parameters())

    def loss(self) -> Tensor:
        """The same InfoNCE over all entries; entry ``k`` of list ``q`` stands at ``k · Q + q``."""
        queries, entries = self._encode(self.queries), self._encode(self.entries)
        positive = torch.arange(len(queries), device=queries.device)
        return cross_entropy(queries @ entries.T / TEMPERATURE, positive)

    def _encode(self, texts: TokenizedTexts) -> Tensor:
        device = next(self.encoder.parameters()).device
        parts = [np.arange(len(texts))[i : i + self.size] for i in range(0, len(texts), self.size)]
        padded = (texts.padded(rows, self.encoder.pad_id, device) for rows in parts)
        return torch.cat([checkpoint(self.encoder, *arguments, use_reentrant=False) for arguments in padded])

    def facts(self) -> dict[str, float]:
        """What was computed."""
        lengths = TokenizedTexts.concatenate([self.queries, self.entries]).lengths
        parts = [np.arange(i, min(i + self.size, len(lengths))) for i in range(0, len(lengths), self.size)]
        return {"distinct_share": 1.0, "padding_share": padding_share(lengths, parts)}


SYSTEMS = ("ours_infonce", "st_infonce", "plain_infonce", "ours_kl", "st_kl")


def run_step(job: Mapping[str, Any], encoder: TextEncoder, device: torch.device) -> dict[str, Any]:
    """Time one step of one system; its gradient goes to ``job["gradient"]``, if that names a file.

    On a GPU the median of five steps behind a first one, which loads kernels.

    Args:
        job: ``system`` (one of SYSTEMS), ``files``, ``corpus``, ``size`` (lists), ``list_length``, ``token_budget``,
            ``uncheckpointed_tokens``, ``peer_batch`` (texts of a peer's micro-batch), ``rate_seconds`` (for which
            matrices are multiplied, before and after), ``cache_dir``, ``seed``, ``gradient``.
        encoder: with the lengths to cut at, on ``device``.
        device: where to run; on a GPU both sides run under bfloat16 autocast.
    """
    lists = Lists.of_job(job, encoder)
    torch.manual_seed(job["seed"])
    on_gpu = device.type == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    with autocast(device):
        one_step(_system(job, encoder, lists, min(8, job["size"]), device))  # libraries load, threads start
        system = _system(job, encoder, lists, job["size"], device)
        before = matmul_rate(device, dtype, seconds=job["rate_seconds"])
        if on_gpu:
            one_step(system)  # its kernels load, and torch takes the memory that it keeps
        steps = [measure(partial(one_step, system), device) for _ in range(5 if on_gpu else 1)]
        (loss, gradient), took = sorted(steps, key=lambda step: step[1].seconds)[len(steps) // 2]
        rate = (before + matmul_rate(device, dtype, seconds=job["rate_seconds"])) / 2
    if job.get("gradient"):
        np.save(job["gradient"], gradient)
    facts = system.facts()
    step_bytes = max(0, took.peak_bytes - took.before_bytes)  # the kernel counts pages roughly
    if "needed_flops" in facts:
        facts["rate_share"] = facts["needed_flops"] / took.seconds / rate
        # gradient, both moments and the copy of the gradient; embeddings and their gradients
        others = 16 * len(gradient) + 8 * encoder.dimension * facts["texts"]
        facts["activation_bytes"] = step_bytes - others
    return {
        "seconds": took.seconds,
        "peak_bytes": took.peak_bytes,
        "step_bytes": step_bytes,
        "matmul_flops": rate,
        "loss": loss,
        **facts,
    }


def one_step(system: Ours | SentenceTransformers | PlainLoop) -> tuple[float, np.ndarray]:
    """Loss, backward pass, clipping and AdamW; with a learning rate of 0, so that every step sees the same weights."""
    optimizer = torch.optim.AdamW(system.parameters, lr=0.0, fused=True)
    optimizer.zero_grad()
    loss = system.loss()
    loss.backward()
    gradient = torch.cat([p.grad.flatten().float().cpu() for p in system.parameters if p.grad is not None]).numpy()
    torch.nn.utils.clip_grad_norm_([p for p in system.parameters if p.grad is not None], 1.0)
    optimizer.step()
    return loss.item(), gradient


def _system(
    job: Mapping[str, Any], encoder: TextEncoder, lists: Lists, size: int, device: torch.device
) -> Ours | SentenceTransformers | PlainLoop:
    kind, _, loss = choose("step.cases: a system", job["system"], SYSTEMS).partition("_")
    batch = lists.batch(size)
    options = {"token_budget": job["token_budget"], "uncheckpointed_tokens": job["uncheckpointed_tokens"]}
    if kind == "ours":
        chosen = SameInfoNCE if loss == "infonce" else ListwiseDistillation
        return Ours(chosen(encoder, **options), batch.to(device))
    if kind == "plain":
        rows = batch.passage_keys[batch.list_index].T.flatten().numpy()
        return PlainLoop(encoder, batch.queries, lists.sources[0].passage_tokens.select(rows), job["peer_batch"])
    with installed_by("bench", f"Measuring {job['system']}"):
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer import losses
    queries, columns = lists.texts(batch)
    with tempfile.TemporaryDirectory() as folder:
        peer = SentenceTransformer(str(encoder.save(Path(folder))), device=str(device))
    peer.max_seq_length = encoder.spec.passage_max_length
    set_dropout(peer, 0.0)
    peer.train()
    features = [
        {k: v.to(device) for k, v in peer.preprocess(c).items() if isinstance(v, Tensor)} for c in (queries, *columns)
    ]
    if loss == "infonce":
        options = {"scale": 1 / TEMPERATURE, "mini_batch_size": job["peer_batch"]}
        return SentenceTransformers(losses.CachedMultipleNegativesRankingLoss(peer, **options), features, None)
    function = losses.DistillKLDivLoss(peer, student_temperature=STUDENT, teacher_temperature=TEACHER)
    return SentenceTransformers(function, features, batch.teacher_scores.to(device))
