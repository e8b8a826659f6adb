"""A training step on the same lists, weights and lengths: this project's, sentence-transformers', a plain loop's."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from datamodules.batch_sampler import Draw
from datamodules.batches import ListBatches, ListSource
from datamodules.caches import cached_tokens
from datamodules.corpus import Corpus, find_dataset, find_file, load_corpus
from datamodules.hidden_states import with_states
from datamodules.query_lists import open_query_lists
from experiments.benchmarks.flops import forward_flops
from experiments.benchmarks.measuring import BEST, fastest, matmul_rate, measure, precision_of
from experiments.benchmarks.system_name import SystemName
from retriever.batch import BatchNeeds, EncodedBatch, RetrievalBatch
from retriever.encoder.precision import BFLOAT16, autocast
from retriever.encoder.text_encoder import TextEncoder, set_dropout
from retriever.encoder.tokens import TokenizedTexts, micro_batches, padding_share
from retriever.errors import InputError, installed_by
from retriever.losses.listwise import at_least_float32
from retriever.losses.query_blocks import in_query_blocks
from retriever.module import RetrieverModule
from retriever.objectives import ListwiseDistillation

TEMPERATURE, STUDENT, TEACHER = 0.05, 0.05, 0.3
_SEARCHED = 32  # lists of the steps by which a peer's micro-batch is chosen


class Lists:
    """The lists of some files over one corpus, in a seeded order; ``take`` gives the first of them as texts or batch.

    Args:
        job: ``files`` (paths of list files; those of the first come first), ``corpus`` (name or folder),
            ``list_length`` (candidates of a list; shorter lists are left out, for a peer needs as many columns for
            each), ``cache_dir`` (of token ids), ``seed`` (of the order within a file), ``empty_passages`` (``error``
            or ``keep``), ``on_bad_list`` (``error`` or ``drop``).
        encoder: whose tokenizer is used.
    """

    def __init__(self, job: Mapping[str, Any], encoder: TextEncoder) -> None:
        self.corpus: Corpus = load_corpus(find_dataset(job["corpus"]), empty_passages=job["empty_passages"])
        self.list_length, cache_dir = job["list_length"], job["cache_dir"]
        self.read = self.corpus.read_by(encoder)

        def opened(texts: Sequence[str], kind: str) -> TokenizedTexts:
            tokens = cached_tokens(texts, encoder, kind, cache_dir)
            return with_states(tokens, encoder, cache_dir, job["token_budget"], f"frozen layers, {kind} texts")

        passages = opened(self.read, "passage")
        random = np.random.default_rng(job["seed"])
        self.sources, places = [], []
        for number, path in enumerate(job["files"]):
            lists, _ = open_query_lists(find_file(path), self.corpus, cache_dir, job["on_bad_list"])
            queries = opened(lists.queries, "query")
            self.sources.append(ListSource(self.corpus, lists, np.ones(len(lists)), queries, passages, None))
            long_enough = random.permutation(np.flatnonzero(np.diff(lists.offsets) >= self.list_length))
            places.append(np.stack([np.full(len(long_enough), number), long_enough], 1))
        self.places = np.concatenate(places)

    def batch(self, count: int) -> RetrievalBatch:
        """The first ``count`` lists as a batch."""
        if count > len(self.places):
            raise InputError(f"step.cases: {count} lists asked for; the files hold {len(self.places)}.")
        return ListBatches(self.sources, self.list_length, "top", BatchNeeds())[Draw(self.places[:count], (0,))]

    def texts(self, batch: RetrievalBatch) -> tuple[list[str], list[list[str]]]:
        """Queries [Q] and, column by column, the passages [K][Q] of a batch's lists."""
        rows = batch.passage_keys[batch.list_index].numpy()
        columns = [self.read.take(column).to_pylist() for column in rows.T]
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


@dataclass(frozen=True)
class System:
    """Something whose training step is measured.

    Attributes:
        parameters: what learns.
        loss: gives the loss of the batch, ready for ``backward``.
        facts: gives what was computed.
    """

    parameters: list[torch.nn.Parameter]
    loss: Callable[[], Tensor]
    facts: Callable[[], dict[str, float]]


def ours(module: RetrieverModule, batch: RetrievalBatch) -> System:
    """This project's step: distinct passages once, micro-batches without padding, checkpoints."""

    def facts() -> dict[str, float]:
        assert batch.passages is not None  # both sides learn here
        backbone = module.encoder.backbone
        lengths = TokenizedTexts.concatenate([batch.queries, batch.passages]).lengths
        parts = micro_batches(lengths, module.token_budget, on_gpu=batch.list_mask.is_cuda)
        return {
            "token_budget": module.token_budget,
            "uncheckpointed_tokens": module.uncheckpointed_tokens,
            "distinct_share": len(batch.passage_keys) / float(batch.list_mask.sum()),
            "padding_share": padding_share(lengths, parts),
            "micro_batches": len(parts),
            "texts": len(lengths),
            "needed_tokens": int(lengths.sum()),
            "layers": backbone.config.num_hidden_layers,
            "width": backbone.config.hidden_size,
            "needed_flops": 3 * forward_flops(backbone, lengths) * module.encoder.computed_share,
        }

    return System(list(module.parameters()), lambda: module.losses(batch)["loss"], facts)


def sentence_transformers(
    function: torch.nn.Module, features: list[dict[str, Tensor]], labels: Tensor | None
) -> System:
    """A loss of sentence-transformers on tokenised columns (tokenising is not timed)."""
    parameters = list(function.model.parameters())
    # modules add their outputs to the dictionaries they are given
    return System(parameters, lambda: function([dict(f) for f in features], labels), lambda: {"distinct_share": 1.0})


def plain_loop(encoder: TextEncoder, queries: TokenizedTexts, entries: TokenizedTexts, size: int) -> System:
    """Every list entry encoded as it comes, in checkpointed micro-batches of texts in their given order."""

    def micro_batches_of(texts: TokenizedTexts) -> list[np.ndarray]:
        return [np.arange(len(texts))[i : i + size] for i in range(0, len(texts), size)]

    def encode(texts: TokenizedTexts) -> Tensor:
        device = next(encoder.parameters()).device
        padded = (texts.padded(rows, encoder.pad_id, device) for rows in micro_batches_of(texts))
        return torch.cat([checkpoint(encoder, *arguments, use_reentrant=False) for arguments in padded])

    def loss() -> Tensor:
        """The same InfoNCE over all entries; entry ``k`` of list ``q`` stands at ``k · Q + q``."""
        scores = encode(queries) @ encode(entries).T / TEMPERATURE
        return cross_entropy(scores, torch.arange(len(queries), device=scores.device))

    def facts() -> dict[str, float]:
        texts = TokenizedTexts.concatenate([queries, entries])
        return {"distinct_share": 1.0, "padding_share": padding_share(texts.lengths, micro_batches_of(texts))}

    return System(list(encoder.parameters()), loss, facts)


def built(
    kind: type[RetrieverModule], encoder: TextEncoder, job: Mapping[str, Any], device: torch.device
) -> RetrieverModule:
    """Build an objective with a job's ``token_budget`` and ``uncheckpointed_tokens``; None takes what a run takes."""
    module = kind(encoder, **{name: job[name] for name in ("token_budget", "uncheckpointed_tokens")})
    module.keep_what_fits(device)
    return module


def run_step(job: Mapping[str, Any], encoder: TextEncoder, device: torch.device) -> dict[str, Any]:
    """Time one step of one system; its gradient goes to ``job["gradient"]``, if that names a file.

    On a GPU the median of five steps behind a first one, which loads kernels.

    Args:
        job: ``system`` (see ``SYSTEMS`` in ``settings.py``; with ``@`` and a precision where it is not its own),
            ``files``, ``corpus``, ``size`` (lists), ``list_length``, ``token_budget``,
            ``uncheckpointed_tokens``, ``peer_batch`` (texts of a peer's micro-batch, or ``best``), ``rate_seconds``
            (for which matrices are multiplied, before and after), ``cache_dir``, ``seed``, ``gradient``.
        encoder: with the lengths to cut at, on ``device``.
        device: where to run.
    """
    lists = Lists(job, encoder)
    torch.manual_seed(job["seed"])
    on_gpu = device.type == "cuda"
    precision = precision_of(job, encoder, device)
    dtype = torch.bfloat16 if precision == BFLOAT16 else torch.float32
    with autocast(precision, device):
        # libraries load, threads start
        one_step(_system({**job, "peer_batch": 8}, encoder, lists, min(8, job["size"]), device))
        if job["peer_batch"] == BEST:
            job = {**job, "peer_batch": _best_peer_batch(job, encoder, lists, device)}
        system = _system(job, encoder, lists, job["size"], device)
        before = matmul_rate(device, dtype, seconds=job["rate_seconds"])
        if on_gpu:
            one_step(system)  # its kernels load, and torch takes the memory that it keeps
        steps = [measure(partial(one_step, system), device) for _ in range(5 if on_gpu else 1)]
        (loss, gradient), took = sorted(steps, key=lambda step: step[1]["seconds"])[len(steps) // 2]
        rate = (before + matmul_rate(device, dtype, seconds=job["rate_seconds"])) / 2
    if job.get("gradient"):
        np.save(job["gradient"], gradient)
    facts = system.facts()
    of_peer = {} if SystemName.parse(job["system"]).is_ours else {"peer_batch": str(job["peer_batch"])}
    if "needed_flops" in facts:
        facts["rate_share"] = facts["needed_flops"] / took["seconds"] / rate
        # gradient, both moments and the copy of the gradient; embeddings and their gradients
        others = 16 * len(gradient) + 8 * encoder.dimension * facts["texts"]
        facts["activation_bytes"] = took["bytes"] - others
    return {**took, "matmul_flops": rate, "loss": loss, "precision": precision, **facts, **of_peer}


def _best_peer_batch(job: Mapping[str, Any], encoder: TextEncoder, lists: Lists, device: torch.device) -> int | None:
    """What a peer is fastest with in a step of at most 32 lists."""
    if SystemName.parse(job["system"]).is_ours:
        return None
    size = min(_SEARCHED, job["size"])
    return fastest(lambda n: one_step(_system({**job, "peer_batch": n}, encoder, lists, size, device)), device)


def one_step(system: System) -> tuple[float, np.ndarray]:
    """Loss, backward pass, clipping and AdamW; with a learning rate of 0, so that every step sees the same weights."""
    optimizer = torch.optim.AdamW(system.parameters, lr=0.0, fused=True)
    optimizer.zero_grad()
    loss = system.loss()
    loss.backward()
    gradient = torch.cat([p.grad.flatten().float().cpu() for p in system.parameters if p.grad is not None]).numpy()
    torch.nn.utils.clip_grad_norm_([p for p in system.parameters if p.grad is not None], 1.0)
    optimizer.step()
    return loss.item(), gradient


def _system(job: Mapping[str, Any], encoder: TextEncoder, lists: Lists, size: int, device: torch.device) -> System:
    kind, loss, _ = SystemName.parse(job["system"])
    batch = lists.batch(size)
    if kind == "ours":
        chosen = SameInfoNCE if loss == "infonce" else ListwiseDistillation
        return ours(built(chosen, encoder, job, device), batch.to(device))
    if kind == "plain":
        rows = batch.passage_keys[batch.list_index].T.flatten().numpy()
        return plain_loop(encoder, batch.queries, lists.sources[0].passage_tokens.select(rows), job["peer_batch"])
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
        return sentence_transformers(losses.CachedMultipleNegativesRankingLoss(peer, **options), features, None)
    function = losses.DistillKLDivLoss(peer, student_temperature=STUDENT, teacher_temperature=TEACHER)
    return sentence_transformers(function, features, batch.teacher_scores.to(device))
