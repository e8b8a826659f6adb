"""QueryListModule trains anything on query lists: optimiser, schedule, weighting of ranks, logging."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from retriever.batch import BatchNeeds, RetrievalBatch
from retriever.distributed.ranks import sum_over_ranks, world_size
from retriever.distributed.sharded_module import ShardedModule
from retriever.encoder.budget import fastest_token_budget, tokens_that_fit
from retriever.encoder.encoding import device_of
from retriever.errors import InputError, require_positive
from retriever.optimizer import MakeOptimizer, MakeScheduler, make_optimizer, make_scheduler
from retriever.schedule import linear_with_warmup
from retriever.work import Encoded, Work

PAPER_LEARNING_RATE, PAPER_BATCH_SIZE = 2e-4, 4096


class QueryListModule(ShardedModule):
    """Trains an encoder on batches of query lists: optimiser, schedule, weighting of ranks, logging.

    One training step is :meth:`training_step`. A subclass defines :meth:`losses` and ``validation_step``, and counts in
    ``_encoded`` what they encoded.

    Attributes:
        encoded_in_step: how much all ranks together encoded in the last training step.
        trained_side: what is trained, in words.
        imitates_guide: whether the objective draws embeddings to another encoder's, whose width they must have.

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
    imitates_guide = False

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
