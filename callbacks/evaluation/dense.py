"""DenseRanker: exact search with embeddings of whole corpora, or of samples of them."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import numpy as np

from callbacks.evaluation.block_search import search_blocks
from callbacks.evaluation.metrics import Run
from callbacks.evaluation.ranker import Ranker, Ranking, tokenized
from callbacks.evaluation.samples import sample_rows
from callbacks.evaluation.sets import OpenedSet
from callbacks.evaluation.vectors import PassageIndex, Vectors
from datamodules.caches import cached_embeddings, embed
from datamodules.corpus import Corpus, EvaluationSet
from datamodules.hidden_states import with_states
from datamodules.sampled_corpus import sampled_set
from datamodules.storage.files import reserve
from retriever.distributed.ranks import rank, world_size
from retriever.encoder.encoding import device_of
from retriever.encoder.text_encoder import TextEncoder
from retriever.encoder.tokens import TokenizedTexts
from retriever.errors import InputError, choose
from retriever.module import RetrieverModule
from retriever.work import Work

DTYPES = ("float32", "float16")
STORAGES = ("memory", "disk")


@dataclass(frozen=True)
class _Prepared:
    """Token ids and base embeddings of a set.

    Attributes:
        queries: token ids.
        passages: token ids of the whole corpus.
        base: embeddings of the whole corpus by the base weights, [N, D], memory-mapped.
        rows: the passages that are searched, as rows of the whole corpus; None: all.
    """

    queries: TokenizedTexts
    passages: TokenizedTexts
    base: np.ndarray
    rows: np.ndarray | None = None


class DenseRanker(Ranker):
    """Ranks by inner products of embeddings: exact search over each corpus.

    Passages are spread over the ranks and the hits merged, some queries at a time. What has not changed (base weights,
    a frozen passage encoder) is encoded once, by all processes together, then read from the cache.

    A data set with ``sample`` is validated on a sample of its corpus (``<set>-sample``): the judged passages, the best
    ``depth`` hits of the base model and of BM25 for each query, and a random rest up to ``size``. The base model, the
    best and the last step are measured on the whole corpus, too, so that the sample's error is known.

    Args:
        embedding_dtype: ``float32`` or ``float16``, in which passage embeddings are stored; scores are float32.
        embedding_storage: where passage embeddings of tuned weights are while they are searched: ``memory``, or
            ``disk``: a temporary file in the cache. Those of base weights are in the cache on disk anyway.
        frozen_passages: whether passages keep the base model's embeddings; a module that trains says so itself.
        passage_encoder: encodes the passages, once, in place of the encoder that is evaluated; None: that one does.
        vectors: how passages are stored for the search; None: as they are.
    """

    draws_samples = True

    def __init__(
        self,
        embedding_dtype: str = "float32",
        embedding_storage: str = "memory",
        frozen_passages: bool = False,
        passage_encoder: TextEncoder | None = None,
        vectors: Vectors | None = None,
    ) -> None:
        super().__init__()
        self.vectors = vectors
        self.embedding_dtype = choose("evaluation.embedding_dtype", embedding_dtype, DTYPES)
        self.embedding_storage = choose("evaluation.embedding_storage", embedding_storage, STORAGES)
        self.frozen_passages = frozen_passages or passage_encoder is not None
        self.passage_encoder = passage_encoder
        self._prepared: dict[str, _Prepared] = {}

    def check(self, module: L.LightningModule) -> None:
        """Refuse a cross-encoder."""
        if not isinstance(module, RetrieverModule):
            raise InputError(
                "This evaluation searches with embeddings; a cross-encoder (module=reranker) needs evaluation=rerank."
            )
        self.frozen_passages = not module.train_passage_encoder

    def encode_passages_by(self, encoder: TextEncoder) -> None:
        """Take another encoder for the passages; they are frozen."""
        self.passage_encoder = encoder
        self.frozen_passages = True

    def prepare(self, sets: Sequence[OpenedSet], encoder: TextEncoder, how: Ranking) -> list[EvaluationSet]:
        """Tokenise and encode; one set is tokenised while the one before it is encoded."""
        of_passages = self.passage_encoder or encoder
        found = []
        for opened, (queries, passages) in tokenized(sets, encoder, how, of_passages):
            data, spec = opened.data, opened.spec.sample
            queries = self._started(queries, encoder, f"frozen layers, {data.name} queries", how)
            if not self.frozen_passages:
                passages = self._started(passages, encoder, f"frozen layers, {data.name}", how)
            base = self._cached(passages, of_passages, f"encode {data.name}", self.embedding_dtype, how)
            whole = self._prepared[data.name] = _Prepared(queries, passages, base)
            found.append(data)
            if spec is not None:

                def embedded(queries: TokenizedTexts = queries, name: str = data.name) -> np.ndarray:
                    return self._cached(queries, encoder, f"encode {name} queries", "float32", how)

                of_base = encoder.fingerprint() + (of_passages.fingerprint() if self.passage_encoder else "")
                made_with = of_base, how.precision, self.embedding_dtype
                rows, facts = sample_rows(data, (queries, passages), made_with, embedded, base, spec, how)
                self.samples[data.name] = facts
                found.append(sampled_set(data, rows))
                self._prepared[found[-1].name] = replace(whole, rows=rows)
        if self.passage_encoder is not None:
            self.passage_encoder.cpu()  # all that it has to encode is encoded
        return found

    def rank(
        self, sets: Sequence[EvaluationSet], encoder: TextEncoder, step: int, how: Ranking
    ) -> Iterator[tuple[EvaluationSet, Iterable[Run]]]:
        """Search; sets over one corpus share its embeddings, which then are let go."""
        by_corpus: dict[int, list[EvaluationSet]] = {}
        for data in sets:
            by_corpus.setdefault(id(data.corpus), []).append(data)
        for group in by_corpus.values():
            passages, first = self._passages(group[0], encoder, step, how), _share(group[0]).start
            index = PassageIndex(
                passages,
                self.vectors,
                (self.passage_encoder or encoder).spec.normalize,
                first,
                how.device,
                normalize_queries=encoder.spec.normalize,
            )
            for data in group:
                queries = self._queries(data, encoder, step, how)
                # one more than asked for: a query's own passage is taken out of its hits
                looked_at = how.looked_at and how.looked_at + 1
                runs = search_blocks(data, queries, index, how.hits + 1, device=how.device, looked_at=looked_at)
                yield data, runs
                self.costs[data.name] = index.costs()
            del passages, index, runs

    def corpora_to_encode(self, sets: Sequence[OpenedSet]) -> dict[tuple[str, str], Corpus]:
        """All of them."""
        return {(opened.data.corpus.name, self.embedding_dtype): opened.data.corpus for opened in sets}

    def work(self, sets: Sequence[OpenedSet], module: RetrieverModule) -> dict[str, Work]:
        """Texts that are encoded and products that are searched.

        Passages that keep the base model's embeddings are not counted: they are encoded once.
        """
        found = {point: Work() for point in ("base", "validation", "end")}
        searched: dict[int, int] = {}
        for opened in sets:
            data, sample = opened.data, opened.spec.sample
            queries, passages = len(data.queries), len(data.corpus)
            looked_at = passages if sample is None else min(passages, sample.size)
            found["base"] += Work(queries=queries, products=queries * passages)
            found["validation"] += Work(queries=queries, products=queries * looked_at)
            # sets over one corpus share its embeddings, but for samples
            searched[id(data.corpus) if sample is None else -len(searched) - 1] = looked_at
            if sample is not None:  # the best and the last step, on the whole corpus
                whole = Work(queries=queries, products=queries * passages)
                whole += Work(passages=passages if module.train_passage_encoder else 0)
                found["end"] += whole + whole
        if module.train_passage_encoder:
            found["validation"] += Work(passages=sum(searched.values()))
        return found

    def _passages(self, data: EvaluationSet, encoder: TextEncoder, step: int, how: Ranking) -> np.ndarray:
        """Embeddings of this rank's share of the passages that are searched, [n, D]."""
        prepared, share = self._prepared[data.name], _share(data)
        rows: Any = share if prepared.rows is None else prepared.rows[share]  # a slice, or row numbers
        if self.frozen_passages or step == 0:
            return prepared.base[rows]
        tokens = prepared.passages
        tokens = tokens.part(share.start, share.stop) if prepared.rows is None else tokens.select(rows)
        out = self._room(len(tokens), encoder.dimension, how)
        with how.autocast():
            return embed(tokens, encoder, how.token_budget, f"encode {data.name}", out)

    def _queries(self, data: EvaluationSet, encoder: TextEncoder, step: int, how: Ranking) -> np.ndarray:
        """Embeddings of all queries by the weights as they are now, float32 [Q, D]."""
        tokens, title = self._prepared[data.name].queries, f"encode {data.name} queries"
        if step == 0:
            return self._cached(tokens, encoder, title, "float32", how)
        with how.autocast():
            return embed(tokens, encoder, how.token_budget, title)

    def _room(self, rows: int, dimension: int, how: Ranking) -> np.ndarray:
        """An array for passage embeddings, where the settings want it."""
        if self.embedding_storage == "memory" or not rows:
            return np.empty((rows, dimension), self.embedding_dtype)
        # without a name: it is gone as soon as nobody looks at it any more, also after a kill
        with tempfile.TemporaryFile(dir=how.cache_dir) as file:
            reserve(file, rows * dimension * np.dtype(self.embedding_dtype).itemsize)
            return np.memmap(file, self.embedding_dtype, "w+", shape=(rows, dimension))

    @staticmethod
    def _started(tokens: TokenizedTexts, encoder: TextEncoder, title: str, how: Ranking) -> TokenizedTexts:
        """Let texts begin behind the frozen layers, where there are any."""
        if not encoder.starts_from_states:
            return tokens
        encoder.to(how.device)
        with how.autocast():
            return with_states(tokens, encoder, how.cache_dir, how.token_budget, title)

    @staticmethod
    def _cached(tokens: TokenizedTexts, encoder: TextEncoder, title: str, dtype: str, how: Ranking) -> np.ndarray:
        """Embeddings by the weights as they are now, from or to the cache."""
        if device_of(encoder) != how.device:  # to() takes a sharded encoder's weights apart
            encoder.to(how.device)
        with how.autocast():
            return cached_embeddings(tokens, encoder, how.cache_dir, how.token_budget, title, dtype)


def _share(data: EvaluationSet) -> slice:
    """This rank's part of the passages that are searched."""
    total, ranks = len(data.corpus), world_size()
    return slice(total * rank() // ranks, total * (rank() + 1) // ranks)
