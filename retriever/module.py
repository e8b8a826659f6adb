"""QueryListModule: how anything is trained on query lists. RetrieverModule: all that is common to the objectives."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torchmetrics.retrieval import RetrievalNormalizedDCG

from retriever.batch import EncodedBatch, RetrievalBatch
from retriever.cross_encoder.cross_encoder import PairSpec
from retriever.diagnostics import top1_agreement
from retriever.distributed.ranks import sum_over_ranks, world_size
from retriever.distributed.sharding import gather_weights, release_weights, shard, whole_weights
from retriever.encoder.encoding import encode
from retriever.encoder.text_encoder import TextEncoder
from retriever.encoder.tokens import TokenizedTexts, micro_batches, padding_share
from retriever.errors import InputError, choose, require_positive
from retriever.losses.listwise import listwise_distillation
from retriever.losses.matryoshka import Matryoshka
from retriever.schedule import DECAYS, default_warmup, learning_rate_factor

# The paper's temperatures; dev/kl is measured at these whatever the objective trains with, so that runs compare.
STUDENT_TEMPERATURE, TEACHER_TEMPERATURE = 0.05, 0.3

_EXAMPLE = EncodedBatch(
    queries=torch.eye(2, 1024),
    passages=torch.eye(3, 1024),
    passage_keys=torch.arange(3),
    list_index=torch.tensor([[0, 1], [2, 1]]),
    list_mask=torch.ones(2, 2, dtype=torch.bool),
    teacher_scores=torch.tensor([[1.0, 0.0], [1.0, 0.5]]),
    positive_index=torch.tensor([0, 2]),
    labelled_keys=torch.tensor([[0], [2]]),
)


class Encoded(NamedTuple):
    """How much was encoded.

    Attributes:
        passages: passages; for a cross-encoder, pairs.
        texts: passages and queries; for a cross-encoder, pairs.
        tokens: tokens of these texts, special tokens included, padding not.
    """

    passages: int = 0
    texts: int = 0
    tokens: int = 0


class Work(NamedTuple):
    """Numbers of texts to encode, of pairs to score, and of inner products of a query and a passage in a search."""

    queries: float = 0
    passages: float = 0
    pairs: float = 0
    products: float = 0

    def __add__(self, other: Work) -> Work:  # type: ignore[override]
        """The sums."""
        return Work(*map(sum, zip(self, other, strict=True)))


class QueryListModule(L.LightningModule):
    """Optimiser, schedule, rank weights and logging of whatever is trained on batches of query lists.

    A subclass defines :meth:`losses` and ``validation_step``, and keeps in ``_encoded`` what they had encoded.

    Attributes:
        encoded_in_step: what all ranks together encoded in the last training step.
        trained_side: what learns, in words.

    Args:
        encoder: what is trained.
        learning_rate: peak learning rate of AdamW.
        weight_decay: AdamW's.
        warmup_steps: optimiser steps of linear warm-up; None takes the paper's rule, capped for short runs.
        decay: ``to_floor`` or ``to_zero``, see :func:`~retriever.schedule.learning_rate_factor`.
        final_learning_rate: the lowest share of the peak behind the warm-up, in [0, 1].
        token_budget: tokens of a micro-batch, padding included; bounds the memory of a step.
        kept_tokens: tokens of a step that are not computed again in the backward pass; None takes ``token_budget``,
            which costs no memory. More of them save time where there is memory.
    """

    trained_side = "pairs of query and passage"
    train_passage_encoder = True
    uses_labels = False  # batches then hold one labelled positive of each query
    uses_all_labels = False  # and here all of them

    def __init__(
        self,
        encoder: torch.nn.Module,
        *,
        learning_rate: float = 2e-4,
        weight_decay: float = 0.01,
        warmup_steps: int | None = None,
        decay: str = "to_floor",
        final_learning_rate: float = 0.1,
        token_budget: int = 16_384,
        kept_tokens: int | None = None,
    ) -> None:
        super().__init__()
        require_positive(learning_rate=learning_rate, token_budget=token_budget)
        if kept_tokens is not None and kept_tokens < 0:
            raise InputError(f"module.kept_tokens is {kept_tokens}; it must not be negative, or null for token_budget.")
        if not 0 <= final_learning_rate <= 1:
            raise InputError(f"final_learning_rate is {final_learning_rate}; it must be in [0, 1].")
        if weight_decay < 0:
            raise InputError(f"weight_decay is {weight_decay}; it must not be negative.")
        if warmup_steps is not None and warmup_steps < 1:
            raise InputError(f"warmup_steps is {warmup_steps}; it must be at least 1, or null for the paper's rule.")
        self.encoder = encoder
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.decay = choose("module.decay", decay, DECAYS)
        self.final_learning_rate = final_learning_rate
        self.token_budget = token_budget
        self.kept_tokens = kept_tokens
        self.encoded_in_step = self._encoded = Encoded()
        self._dev_lists = 0
        self._of_step = -1, 0, torch.zeros(0)  # optimiser step, its queries up to now, means over them
        self._whole_encoder: list[torch.nn.Module] | None = None

    def configure_model(self) -> None:
        """Under FSDP (``trainer=fsdp``), spread the encoder over the ranks.

        Raises:
            InputError: a temperature is learned; FSDP shards no scalars.
        """
        if self.device_mesh is None:
            return
        if self._whole_encoder is not None:
            release_weights(self.encoder)  # the optimiser is made next, and a validation before may have gathered them
            return
        if any(p.requires_grad and p.ndim == 0 for p in self.parameters()):
            raise InputError("module.learnable_temperature: FSDP cannot shard a scalar. Fix it, or train under DDP.")
        self.encoder.cpu()  # evaluation may have moved it; the copy waits there, and what is sharded moves back
        # a list, so that it is no part of this module
        self._whole_encoder = [copy.deepcopy(self.encoder)] if self.trainer.is_global_zero else []
        shard(self.encoder, self.trainer.strategy.root_device)

    def on_validation_start(self) -> None:
        """Under FSDP, have whole weights wherever something is encoded: ranks encode different numbers of texts."""
        gather_weights(self.encoder)

    def on_train_batch_start(self, batch: RetrievalBatch, batch_idx: int) -> None:
        """Likewise; saving a checkpoint took them apart."""
        gather_weights(self.encoder)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Under FSDP, clip and step with the shares."""
        release_weights(self.encoder)

    def on_train_batch_end(self, outputs: Tensor, batch: RetrievalBatch, batch_idx: int) -> None:
        """Under FSDP, have whole weights for what callbacks encode."""
        gather_weights(self.encoder)

    def end_sharding(self) -> None:
        """Under FSDP, give the first rank a whole encoder on the CPU, with the weights as they are; training is over.

        All ranks must take part.
        """
        if self._whole_encoder is None:
            return
        weights = whole_weights(self.encoder)
        for encoder in self._whole_encoder:
            encoder.load_state_dict(weights)
            self.encoder = encoder

    def losses(self, batch: RetrievalBatch) -> dict[str, Tensor]:
        """Name → scalar; each a mean over the batch's own queries. ``loss`` is minimised, the others are logged."""
        raise NotImplementedError

    def shares(self, batch: RetrievalBatch) -> dict[str, float]:
        """Name → what else is logged of a training step."""
        return {}

    def training_step(self, batch: RetrievalBatch, batch_idx: int) -> Tensor:
        """The loss of one batch; what is logged are means over the queries of all ranks.

        DDP averages gradients over ranks, which may hold different numbers of queries; weighted by this rank's share
        of them, the average is the gradient of the mean over all.

        Raises:
            InputError: the loss of a rank is not finite; all ranks raise it.
        """
        parts, shares = self.losses(batch), self.shares(batch)
        own = torch.stack([torch.as_tensor(v, device=self.device).detach() for v in (parts | shares).values()])
        queries, means = self._over_ranks(len(batch), own)
        found = dict(zip(parts | shares, self._over_batches(queries, means), strict=True))
        if not torch.isfinite(found["loss"]):
            of_this = f"the queries {', '.join(batch.query_ids)} of {batch.corpus}"
            raise InputError(
                f"The loss is {found['loss'].item()} at step {self.global_step}, on "
                f"{'the queries of another rank' if torch.isfinite(parts['loss']) else of_this}. Lower "
                "module.learning_rate, raise the temperatures, or look at these queries' teacher scores."
            )
        self.log_dict({f"train/{name}": found[name] for name in parts}, prog_bar=True, batch_size=len(batch))
        self.log_dict({f"train/{name}": found[name] for name in shares}, batch_size=len(batch))
        return parts["loss"] * (len(batch) * world_size() / queries)

    def _over_ranks(self, queries: int, values: Tensor) -> tuple[int, Tensor]:
        """Queries of all ranks, and means over them of values [n] that are means over this rank's; counts texts."""
        self.encoded_in_step = self._encoded
        if world_size() == 1:
            return queries, values
        counts = torch.tensor([queries, *self._encoded], dtype=torch.float64, device=self.device)
        sums = sum_over_ranks(torch.cat([counts, queries * values]))
        total, *encoded = map(int, sums[: len(counts)].tolist())
        self.encoded_in_step = Encoded(*encoded)
        return total, (sums[len(counts) :] / total).to(values.dtype)

    def _over_batches(self, queries: int, means: Tensor) -> Tensor:
        """Means over the batches of this optimiser step up to this one; Lightning writes what the last one logs."""
        step, before, mean = self._of_step
        if step != self.global_step:
            before, mean = 0, torch.zeros_like(means)
        mean = mean + (means - mean) * (queries / (before + queries))
        self._of_step = self.global_step, before + queries, mean
        return mean

    def dev_metrics(self) -> list[str] | None:
        """Names, without ``dev/``, that a validation logs; None where that is not known before one."""
        return None

    def work(self, lists: float, passages: float, labels: float, dev: bool = False) -> Work:
        """What a batch has encoded.

        Args:
            lists: of the batch.
            passages: distinct passages in them.
            labels: labelled positives of a list, in the mean.
            dev: whether it is a batch of dev lists.
        """
        raise NotImplementedError

    def encode_some(
        self, kind: str, queries: Sequence[str], passages: Sequence[str]
    ) -> tuple[np.ndarray, Callable[[np.ndarray], Tensor]]:
        """Prepare texts as a step would encode them, to see how long that takes.

        Args:
            kind: ``queries``, ``passages`` or ``pairs``, whichever :meth:`work` counts.
            queries: some texts.
            passages: as many.

        Returns:
            Tokens of each text or pair, int64 [n]; and what encodes those in ``rows``.
        """
        raise NotImplementedError

    def on_validation_epoch_start(self) -> None:
        """Number the dev lists from 0 again, and log all figures at the number of steps made, as results name them."""
        self._dev_lists = 0
        # what Lightning takes as x axis; by itself it names the step before
        self.log_dict({"step": float(self.trainer.global_step), "epoch": float(self.trainer.current_epoch)})

    def dev_numbers(self, batch: RetrievalBatch) -> Tensor:
        """A number for each dev list, unlike that of any other list of this validation: int64 [Q]."""
        numbers = torch.arange(len(batch), device=self.device) + self._dev_lists + (self.global_rank << 40)
        self._dev_lists += len(batch)
        return numbers

    def configure_optimizers(self) -> dict:
        """AdamW with linear warm-up and linear decay to a floor; learned temperatures get no weight decay."""
        scalars = [p for p in self.parameters() if p.requires_grad and p.ndim == 0]
        others = [p for p in self.parameters() if p.requires_grad and p.ndim > 0]
        optimizer = torch.optim.AdamW(
            [{"params": others}, {"params": scalars, "weight_decay": 0.0}] if scalars else others,
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
            # one pass over the weights; but float16's gradient scaler cannot clip what a fused step unscales
            fused=self.trainer.precision != "16-mixed",
        )
        # by this mark Lightning knows such a step and refuses to clip, also where bfloat16 needs no scaler
        optimizer._step_supports_amp_scaling = False
        total = self.trainer.estimated_stepping_batches
        per_epoch = max(1, self.trainer.num_training_batches // self.trainer.accumulate_grad_batches)
        factor = partial(
            learning_rate_factor,
            warmup_steps=self.warmup_steps or default_warmup(per_epoch, min(total, 2**62)),
            total_steps=total,
            floor=self.final_learning_rate,
            decay=self.decay,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class RetrieverModule(QueryListModule):
    """Encoder, optimiser, encoding in checkpointed micro-batches, ranks, logging and dev-list metrics.

    A subclass defines :meth:`objective` and nothing else.

    Attributes:
        watch: called in a training step with the embedded batch and the parts of the objective, before the backward
            pass, whose graph it must keep; None calls nothing.

    Args:
        encoder: what is trained.
        train_passage_encoder: False keeps the passage side as it is (index-preserving): passage embeddings then come
            with the batch, and only the query side learns.
        matryoshka_dimensions: train these prefixes of the embeddings too (see :mod:`retriever.losses.matryoshka`);
            metrics stay those of the whole embeddings. None trains the whole alone.
        matryoshka_weights: a weight for each of these dimensions; None gives each 1, as the whole has.
        **common: arguments of :class:`QueryListModule`.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        *,
        train_passage_encoder: bool = True,
        matryoshka_dimensions: Sequence[int] | None = None,
        matryoshka_weights: Sequence[float] | None = None,
        **common,
    ) -> None:
        super().__init__(encoder, **common)
        if isinstance(encoder.spec, PairSpec):
            raise InputError("This objective trains an encoder of single texts; a cross-encoder needs module=reranker.")
        self.train_passage_encoder = train_passage_encoder
        self.matryoshka = (
            Matryoshka(encoder, matryoshka_dimensions, matryoshka_weights)
            if matryoshka_dimensions is not None
            else None
        )
        self.watch: Callable[[EncodedBatch, Mapping[str, Tensor]], None] | None = None
        self.dev_ndcg = RetrievalNormalizedDCG(top_k=10, empty_target_action="skip")

    @property
    def uses_labels(self) -> bool:
        """Whether the objective looks at ``positive_index``; batches then hold labelled positives."""
        return False

    def objective(self, batch: EncodedBatch) -> dict[str, Tensor]:
        """Name → scalar; each a mean over the batch's own queries. ``loss`` is minimised, the others are logged."""
        raise NotImplementedError

    def dev_metrics(self) -> list[str] | None:
        """The parts of the objective, as it names them for two made-up queries, and what stands beside them."""
        if self.matryoshka is not None:  # its parts are named by the encoder's width
            return None
        if type(self).validation_step is not RetrieverModule.validation_step:  # it may log others
            return None
        try:
            parts = self._objective_in_full_precision(_EXAMPLE)
        except Exception:  # an objective of a user's that cannot do without a real batch
            return None
        return [*parts, "kl", "top1_agreement", "teacher_ndcg@10"]

    @property
    def trained_side(self) -> str:
        """See :class:`QueryListModule`."""
        if self.train_passage_encoder:
            return "queries and passages"
        return "queries alone (index-preserving: passages keep the base embeddings)"

    def work(self, lists: float, passages: float, labels: float, dev: bool = False) -> Work:
        """See :class:`QueryListModule`."""
        return Work(queries=lists, passages=passages if self.train_passage_encoder else 0)

    def encode_some(
        self, kind: str, queries: Sequence[str], passages: Sequence[str]
    ) -> tuple[np.ndarray, Callable[[np.ndarray], Tensor]]:
        """See :class:`QueryListModule`."""
        queried = kind == "queries"
        tokens = self.encoder.tokenize(queries if queried else passages, "query" if queried else "passage")
        return tokens.lengths, lambda rows: self.encode(tokens.select(rows))

    def encode_batch(self, batch: RetrievalBatch) -> EncodedBatch:
        """Embed the queries and, unless their embeddings are given, the distinct passages, in one schedule."""
        texts = self._texts(batch)
        self._encoded = Encoded(len(texts) - len(batch), len(texts), int(texts.lengths.sum()))
        embeddings = self.encode(texts)
        queries, passages = embeddings[: len(batch)], embeddings[len(batch) :]
        if batch.passage_embeddings is not None:
            passages = batch.passage_embeddings.to(queries.device)
        return EncodedBatch(
            queries=queries,
            passages=passages,
            passage_keys=batch.passage_keys,
            list_index=batch.list_index,
            list_mask=batch.list_mask,
            teacher_scores=batch.teacher_scores,
            positive_index=batch.positive_index,
            labelled_keys=batch.labelled_keys,
        )

    def encode(self, texts: TokenizedTexts) -> Tensor:
        """Embeddings of texts, float32 [n, D], in micro-batches."""
        return encode(self.encoder, texts, self.token_budget, kept_tokens=self.kept_tokens)

    def _texts(self, batch: RetrievalBatch) -> TokenizedTexts:
        """What is encoded for a batch: its queries and, unless their embeddings are given, its passages."""
        return batch.queries if batch.passages is None else TokenizedTexts.concatenate([batch.queries, batch.passages])

    def losses(self, batch: RetrievalBatch) -> dict[str, Tensor]:
        """The objective of the embedded batch."""
        encoded = self.encode_batch(batch)
        parts = self._objective_in_full_precision(encoded)
        if self.watch is not None:
            self.watch(encoded, parts)
        return parts

    def shares(self, batch: RetrievalBatch) -> dict[str, float]:
        """Distinct passages of all that the lists name; padding of all tokens that are encoded."""
        lengths, padding = self._texts(batch).lengths, 0.0
        if not self.encoder.packed:
            parts = micro_batches(lengths, self.token_budget, on_gpu=self.device.type != "cpu")
            padding = padding_share(lengths, parts)
        return {"distinct_share": len(batch.passage_keys) / int(batch.list_mask.sum()), "padding_share": padding}

    def validation_step(self, batch: RetrievalBatch, batch_idx: int) -> None:
        """The objective and the agreement with the teacher, on dev lists."""
        encoded = self.encode_batch(batch)
        parts = self._objective_in_full_precision(encoded)
        with torch.autocast(encoded.queries.device.type, enabled=False):
            scores, teacher, mask = encoded.list_scores, encoded.teacher_scores, encoded.list_mask
        values = {f"dev/{name}": value for name, value in parts.items()}
        values["dev/kl"] = listwise_distillation(scores, teacher, mask, STUDENT_TEMPERATURE, TEACHER_TEMPERATURE).mean()
        values["dev/top1_agreement"] = top1_agreement(scores, teacher, mask).float().mean()
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=len(batch), sync_dist=True)
        number = self.dev_numbers(batch)
        self.dev_ndcg.update(scores[mask], teacher[mask], indexes=number.unsqueeze(1).expand_as(mask)[mask])
        self.log("dev/teacher_ndcg@10", self.dev_ndcg, on_step=False, on_epoch=True, batch_size=len(batch))

    def _objective_in_full_precision(self, encoded: EncodedBatch) -> dict[str, Tensor]:
        # under mixed precision the encoder runs in half precision, but scores and losses never do
        with torch.autocast(encoded.queries.device.type, enabled=False):
            return self.objective(encoded) if self.matryoshka is None else self.matryoshka(self.objective, encoded)
