"""QueryListModule trains anything on query lists; RetrieverModule adds what all objectives of text encoders share."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics.retrieval import RetrievalNormalizedDCG

from retriever.agreement import agreement_with_teacher
from retriever.batch import BatchNeeds, EncodedBatch, RetrievalBatch
from retriever.cross_encoder.spec import PairSpec
from retriever.distributed.ranks import gather_rows, gather_sizes, sum_over_ranks, world_size
from retriever.distributed.sharded_module import ShardedModule
from retriever.encoder.budget import fastest_token_budget, tokens_that_fit
from retriever.encoder.encoding import device_of, encode
from retriever.encoder.text_encoder import TextEncoder
from retriever.encoder.tokens import TokenizedTexts, micro_batches, padding_share
from retriever.errors import InputError, require_positive
from retriever.losses.matryoshka import Matryoshka
from retriever.losses.orthogonal import global_orthogonal
from retriever.optimizer import MakeOptimizer, MakeScheduler, make_optimizer, make_scheduler
from retriever.schedule import linear_with_warmup
from retriever.work import Encoded, Work

PAPER_LEARNING_RATE, PAPER_BATCH_SIZE = 2e-4, 4096

_EXAMPLE = EncodedBatch(
    queries=torch.eye(2, 1024),
    passages=torch.eye(3, 1024),
    passage_keys=torch.arange(3),
    list_index=torch.tensor([[0, 1], [2, 1]]),
    list_mask=torch.ones(2, 2, dtype=torch.bool),
    teacher_scores=torch.tensor([[1.0, 0.0], [1.0, 0.5]]),
    positive_index=torch.tensor([0, 2]),
    labelled_keys=torch.tensor([[0], [2]]),
    all_scores=torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 1.0]]),
    log_weights=torch.zeros(3),
    guide_queries=torch.eye(2, 1024),
    guide_passages=torch.eye(3, 1024),
)


class QueryListModule(ShardedModule):
    """Trains an encoder on batches of query lists: optimiser, schedule, weighting of ranks, logging.

    One training step is :meth:`training_step`. A subclass defines :meth:`losses` and ``validation_step``, and counts in
    ``_encoded`` what they encoded.

    Attributes:
        encoded_in_step: how much all ranks together encoded in the last training step.
        trained_side: what is trained, in words.

    Args:
        encoder: what is trained.
        learning_rate: the peak; None follows the lists of a step (:meth:`peak_learning_rate`).
        weight_decay: the optimiser's; learned temperatures get none.
        optimizer: see :func:`~retriever.optimizer.make_optimizer`.
        scheduler: see :func:`~retriever.optimizer.make_scheduler`.
        token_budget: tokens of a micro-batch, padding included; bounds the memory of a step. None takes the machine's.
        uncheckpointed_tokens: tokens of a step that are not computed again in the backward pass: they take memory and
            save time. None keeps as many as fit (:meth:`keep_what_fits`).
    """

    train_passage_encoder = True

    def __init__(
        self,
        encoder: torch.nn.Module,
        *,
        learning_rate: float | None = None,
        weight_decay: float = 0.01,
        optimizer: MakeOptimizer = torch.optim.AdamW,
        scheduler: MakeScheduler = linear_with_warmup,
        token_budget: int | None = None,
        uncheckpointed_tokens: int | None = None,
    ) -> None:
        super().__init__()
        require_positive(learning_rate=learning_rate, token_budget=token_budget)
        if uncheckpointed_tokens is not None and uncheckpointed_tokens < 0:
            raise InputError(
                f"module.uncheckpointed_tokens is {uncheckpointed_tokens}; it must not be negative, or null for as "
                "many as fit."
            )
        if weight_decay < 0:
            raise InputError(f"weight_decay is {weight_decay}; it must not be negative.")
        self.encoder = encoder
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self._token_budget = token_budget
        self._uncheckpointed_tokens = uncheckpointed_tokens
        self.encoded_in_step = self._encoded = Encoded()
        self._dev_lists = 0
        self._of_step = -1, 0, torch.zeros(0)  # optimiser step, its queries up to now, means over them

    @property
    def token_budget(self) -> int:
        """Return the tokens of a micro-batch."""
        return self._token_budget or fastest_token_budget(self.encoder, device_of(self.encoder), with_gradient=True)

    @property
    def uncheckpointed_tokens(self) -> int:
        """Return the tokens of a step that are not computed again; a micro-batch's until :meth:`keep_what_fits`."""
        return self.token_budget if self._uncheckpointed_tokens is None else self._uncheckpointed_tokens

    def keep_what_fits(self, device: torch.device, ranks: int = 1) -> None:
        """Choose micro-batches, and keep the activations of as many tokens as fit into memory; figures stay equal.

        Numbers that were given stay.

        Args:
            device: on which the module is trained; the encoder need not be there yet.
            ranks: on this machine.
        """
        self._token_budget = self._token_budget or fastest_token_budget(self.encoder, device, with_gradient=True)
        if self._uncheckpointed_tokens is None:
            self._uncheckpointed_tokens = max(self.token_budget, tokens_that_fit(self.encoder, device, ranks))

    def setup(self, stage: str) -> None:
        """Look at the memory once, before a step has filled it."""
        self.keep_what_fits(self.trainer.strategy.root_device, self.trainer.world_size // self.trainer.num_nodes)

    @property
    def needs(self) -> BatchNeeds:
        """Declare what batches must hold; :class:`~datamodules.QueryListDataModule` is given it."""
        return BatchNeeds()

    @property
    def trained_side(self) -> str:
        """Say in words what learns."""
        return "pairs of query and passage"

    def losses(self, batch: RetrievalBatch) -> dict[str, Tensor]:
        """Compute name → scalar, each a mean over this rank's queries; ``loss`` is minimised, all are logged."""
        raise NotImplementedError

    def shares(self, batch: RetrievalBatch) -> dict[str, float]:
        """Compute name → number of what else a training step logs."""
        return {}

    def training_step(self, batch: RetrievalBatch, batch_idx: int) -> Tensor:
        """Compute the loss of one batch, and log means over the queries of all ranks.

        DDP averages gradients over ranks, which may hold different numbers of queries. This rank's loss is therefore
        weighted by its share of the queries: then the average is the gradient of the mean over all queries.

        Raises:
            InputError: the loss of a rank is not finite; all ranks raise it.
        """
        parts, shares = self.losses(batch), self.shares(batch)
        values = torch.stack([torch.as_tensor(v, device=self.device).detach() for v in (parts | shares).values()])
        queries, means = self._over_ranks(len(batch), values)
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
        """Average over the queries of all ranks, and count what all ranks encoded.

        Args:
            queries: of this rank.
            values: means over them, [n].

        Returns:
            The number of queries of all ranks, and the means over them, [n].
        """
        self.encoded_in_step = self._encoded
        if world_size() == 1:
            return queries, values
        counts = torch.tensor([queries, *self._encoded], dtype=torch.float64, device=self.device)
        sums = sum_over_ranks(torch.cat([counts, queries * values]))
        total, *encoded = map(int, sums[: len(counts)].tolist())
        self.encoded_in_step = Encoded(*encoded)
        return total, (sums[len(counts) :] / total).to(values.dtype)

    def _over_batches(self, queries: int, means: Tensor) -> Tensor:
        """Average over the batches of this optimiser step so far; Lightning writes what the last of them logs."""
        step, before, mean = self._of_step
        if step != self.global_step:
            before, mean = 0, torch.zeros_like(means)
        mean = mean + (means - mean) * (queries / (before + queries))
        self._of_step = self.global_step, before + queries, mean
        return mean

    def dev_metrics(self) -> list[str] | None:
        """Return the names, without ``dev/``, that a validation logs; None where they are not known before one."""
        return None

    def work(self, lists: float, passages: float, labels: float, dev: bool = False) -> Work:
        """Count what is encoded for a batch.

        Args:
            lists: number of lists of the batch.
            passages: distinct passages in them.
            labels: labelled positives of a list, on average.
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
            Tokens of each text or pair, int64 [n]; and a function that encodes the texts or pairs of given rows.
        """
        raise NotImplementedError

    def on_validation_epoch_start(self) -> None:
        """Number the dev lists from 0 again, and log all figures at the number of steps done, as results name them."""
        self._dev_lists = 0
        # Lightning takes this as x axis; by itself it names the step before
        self.log_dict({"step": float(self.trainer.global_step), "epoch": float(self.trainer.current_epoch)})

    def dev_numbers(self, batch: RetrievalBatch) -> Tensor:
        """Number dev lists, so that no two of a validation have one number: int64 [Q]."""
        numbers = torch.arange(len(batch), device=self.device) + self._dev_lists + (self.global_rank << 40)
        self._dev_lists += len(batch)
        return numbers

    def peak_learning_rate(self, lists: int) -> float:
        """Return the peak that was asked for, or 2e-4 · √(lists / 4096): the paper's at its batch size.

        With Adam, the noise of a step's gradient falls with the square root of the lists that it is the mean of.

        Args:
            lists: of an optimiser step, over all ranks.
        """
        if self.learning_rate is not None:
            return self.learning_rate
        return PAPER_LEARNING_RATE * math.sqrt(lists / PAPER_BATCH_SIZE)

    def configure_optimizers(self) -> dict:
        """Make the optimiser, and the schedule that is stepped with it."""
        lists = getattr(getattr(self.trainer, "datamodule", None), "lists_of_step", PAPER_BATCH_SIZE)
        optimizer = make_optimizer(
            self.make_optimizer,
            [p for p in self.parameters() if p.requires_grad],
            self.peak_learning_rate(lists * self.trainer.accumulate_grad_batches),
            self.weight_decay,
            # float16's gradient scaler cannot clip what a fused step unscales
            fused=self.trainer.precision != "16-mixed",
        )
        # by this mark Lightning knows such a step and refuses to clip, also where bfloat16 needs no scaler
        optimizer._step_supports_amp_scaling = False
        per_epoch = max(1, self.trainer.num_training_batches // self.trainer.accumulate_grad_batches)
        scheduler = make_scheduler(self.make_scheduler, optimizer, self.trainer.estimated_stepping_batches, per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class RetrieverModule(QueryListModule):
    """Trains a text encoder: adds to :class:`QueryListModule` encoding in checkpointed micro-batches and dev metrics.

    A subclass defines :meth:`objective`, and :attr:`needs` where it reads labels.

    Attributes:
        watch: called in a training step with the embedded batch and the parts of the objective, before the backward
            pass, whose graph it must keep; None calls nothing.

    Args:
        encoder: what is trained.
        train_passage_encoder: False keeps the passage side as it is (index-preserving): passage embeddings then come
            with the batch, and only the query side learns.
        matryoshka_dimensions: train these prefixes of the embeddings too (see :mod:`retriever.losses.matryoshka`);
            metrics stay those of the whole embeddings. None trains only the whole.
        matryoshka_weights: a weight for each of these dimensions; None gives each 1, as the whole has.
        orthogonal_weight: add so much of the :func:`~retriever.losses.orthogonal.global_orthogonal` term of the batch's
            queries, of all ranks, and of its passages where these are trained.
        **common: arguments of :class:`QueryListModule`.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        *,
        train_passage_encoder: bool = True,
        matryoshka_dimensions: Sequence[int] | None = None,
        matryoshka_weights: Sequence[float] | None = None,
        orthogonal_weight: float = 0.0,
        **common,
    ) -> None:
        super().__init__(encoder, **common)
        if not 0 <= orthogonal_weight < float("inf"):
            raise InputError(
                f"module.orthogonal_weight is {orthogonal_weight}; it must be a finite number that is not negative."
            )
        self.orthogonal_weight = orthogonal_weight
        if isinstance(getattr(encoder, "spec", None), PairSpec):
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
    def needs(self) -> BatchNeeds:
        """Declare what batches must hold; an objective that looks at ``positive_index`` adds ``labels``."""
        labels = getattr(self, "uses_labels", False)  # how objectives said it before
        if labels:
            said = f"{type(self).__name__}.uses_labels counts in this release alone: say it in its property needs."
            warnings.warn(said, FutureWarning, stacklevel=2)
        return BatchNeeds(labels=labels, frozen_passages=not self.train_passage_encoder)

    def objective(self, batch: EncodedBatch) -> dict[str, Tensor]:
        """Compute name → scalar, each a mean over this rank's queries; ``loss`` is minimised, all are logged."""
        raise NotImplementedError

    def dev_metrics(self) -> list[str] | None:
        """See :class:`QueryListModule`; the parts are those that the objective returns for two made-up queries."""
        if self.matryoshka is not None:  # its parts are named by the encoder's width
            return None
        if type(self).validation_step is not RetrieverModule.validation_step:  # a user's may log other names
            return None
        try:
            parts = self._objective_in_full_precision(_EXAMPLE)
        except Exception:  # a user's objective may need a real batch
            return None
        over_corpus = ["corpus_kl"] if self.needs.frozen_passages and self.needs.all_scores else []
        return [*parts, *over_corpus, "kl", "top1_agreement", "teacher_ndcg@10"]

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
        """Embed the queries and, unless their embeddings are given, the distinct passages, in one schedule.

        Raises:
            InputError: the passage encoder is frozen, and the batch has no passage embeddings.
        """
        if not self.train_passage_encoder and batch.passage_embeddings is None:
            raise InputError(
                "module.train_passage_encoder is false, but batches hold no passage embeddings. Give the data module "
                "what the module needs: data.needs = module.needs."
            )
        texts = TokenizedTexts.concatenate(self._texts(batch))
        self._encoded = Encoded(len(texts) - len(batch), len(texts), int(texts.lengths.sum()))
        embeddings = self.encode(texts)
        queries, passages = embeddings[: len(batch)], embeddings[len(batch) :]
        if batch.passage_embeddings is not None:
            passages = batch.passage_embeddings.to(queries.device)
        return batch.encoded(queries, passages)

    def encode(self, texts: TokenizedTexts) -> Tensor:
        """Embed texts in micro-batches, float32 [n, D]."""
        return encode(self.encoder, texts, self.token_budget, uncheckpointed_tokens=self.uncheckpointed_tokens)

    def _texts(self, batch: RetrievalBatch) -> list[TokenizedTexts]:
        """Collect what is encoded for a batch: its queries and, unless their embeddings are given, its passages."""
        return [batch.queries] if batch.passages is None else [batch.queries, batch.passages]

    def losses(self, batch: RetrievalBatch) -> dict[str, Tensor]:
        """Embed the batch and compute the objective."""
        encoded = self.encode_batch(batch)
        parts = self._objective_in_full_precision(encoded)
        if self.watch is not None:
            self.watch(encoded, parts)
        return parts

    def shares(self, batch: RetrievalBatch) -> dict[str, float]:
        """Compute the share of list entries that are distinct passages, and of encoded tokens that are padding."""
        lengths, padding = np.concatenate([texts.lengths for texts in self._texts(batch)]), 0.0
        if not self.encoder.packed:
            parts = micro_batches(lengths, self.token_budget, on_gpu=self.device.type != "cpu")
            padding = padding_share(lengths, parts)
        return {"distinct_share": len(batch.passage_keys) / int(batch.list_mask.sum()), "padding_share": padding}

    def validation_step(self, batch: RetrievalBatch, batch_idx: int) -> None:
        """Log the objective and the agreement with the teacher, on dev lists."""
        encoded = self.encode_batch(batch)
        parts = self._objective_in_full_precision(encoded)
        with torch.autocast(encoded.queries.device.type, enabled=False):
            agreement = agreement_with_teacher(encoded, over_corpus=not self.train_passage_encoder)
            scores, teacher, mask = encoded.list_scores, encoded.teacher_scores, encoded.list_mask
        values = {f"dev/{name}": value for name, value in {**parts, **agreement}.items()}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=len(batch), sync_dist=True)
        number = self.dev_numbers(batch)
        self.dev_ndcg.update(scores[mask], teacher[mask], indexes=number.unsqueeze(1).expand_as(mask)[mask])
        self.log("dev/teacher_ndcg@10", self.dev_ndcg, on_step=False, on_epoch=True, batch_size=len(batch))

    def _objective_in_full_precision(self, encoded: EncodedBatch) -> dict[str, Tensor]:
        # under mixed precision the encoder runs in half precision, but scores and losses never do
        with torch.autocast(encoded.queries.device.type, enabled=False):
            parts = self.objective(encoded) if self.matryoshka is None else self.matryoshka(self.objective, encoded)
            if self.orthogonal_weight:
                term = self._orthogonal(encoded)
                parts = {**parts, "loss": parts["loss"] + self.orthogonal_weight * term, "orthogonal": term}
            return parts

    def _orthogonal(self, batch: EncodedBatch) -> Tensor:
        """Compute the term of the embeddings of all ranks; the same number on each."""
        sizes = gather_sizes(len(batch.queries), batch.queries.device)
        term = global_orthogonal(gather_rows(batch.queries, sizes))
        if self.train_passage_encoder:
            pool = batch.pool()
            # a passage that two ranks hold is one passage
            distinct, rows, counts = torch.unique(pool.keys, return_inverse=True, return_counts=True)
            sums = torch.zeros(len(distinct), pool.embeddings.shape[1]).to(pool.embeddings)
            term = term + global_orthogonal(sums.index_add(0, rows, pool.embeddings) / counts.unsqueeze(1))
        return term
