"""RetrieverModule trains a text encoder on query lists: what all its objectives share."""

import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics.retrieval import RetrievalNormalizedDCG

from retriever.agreement import agreement_with_teacher
from retriever.batch import BatchNeeds, EncodedBatch, RetrievalBatch
from retriever.cross_encoder.spec import PairSpec
from retriever.distributed.ranks import gather_rows, gather_sizes
from retriever.encoder.encoding import encode
from retriever.encoder.text_encoder import TextEncoder
from retriever.encoder.tokens import TokenizedTexts, micro_batches, padding_share
from retriever.errors import InputError
from retriever.losses.matryoshka import Matryoshka
from retriever.losses.orthogonal import global_orthogonal
from retriever.query_list_module import QueryListModule
from retriever.work import Encoded, Work

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
