"""CrossEncoderRanker: a cross-encoder re-ranks BM25's best passages, beside other orders of the same candidates."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import numpy as np

from callbacks.evaluation.block_search import run_of
from callbacks.evaluation.metrics import MAIN, Metrics, Run, score_run
from callbacks.evaluation.orders import dense_orders, oracle, print_orders, without_own
from callbacks.evaluation.ranker import Ranker, Ranking, tokenized
from callbacks.evaluation.sets import OpenedSet
from datamodules.caches import cached_array, update_with_tokens
from datamodules.corpus import EvaluationSet
from datamodules.hits import Hits, bm25_search
from datamodules.storage.files import write_json
from retriever.cross_encoder.cross_encoder import CrossEncoder
from retriever.cross_encoder.module import CrossEncoderModule
from retriever.distributed.ranks import rank
from retriever.encoder.encoding import encode, evaluating
from retriever.encoder.text_encoder import TextEncoder
from retriever.encoder.tokens import TokenizedTexts
from retriever.errors import InputError, require_positive
from retriever.work import Work

_BLOCK = 10  # queries whose scores are kept together; a killed evaluation loses at most one block


@dataclass(eq=False)
class CrossEncoderRanker(Ranker):
    """Ranks BM25's best passages by a cross-encoder's logits, once at the end; step 0 is BM25's own order.

    A table puts beside it what others make of the same candidates (a dense retriever, its fusion with BM25, the oracle
    that knows the judgements) and of the whole corpus; it is kept in ``reranking.json``, per-query values under
    ``per_query``. Scores are kept in the cache block by block, by the content of weights and pairs, so an evaluation
    that was killed goes on where it stopped.

    Args:
        depth: candidates of BM25 that are re-ranked.
        k1: BM25's term frequency saturation.
        b: BM25's length normalisation.
        dense: a retriever to compare with; None leaves out dense and fused.
        dense_weight: its share in the fusion, in (0, 1); BM25 has the rest.
        every_validation: re-rank at every validation, too (slow without a GPU).
    """

    points = ("best",)
    finishes = True

    depth: int = 100
    k1: float = 0.9
    b: float = 0.4
    dense: TextEncoder | None = None
    dense_weight: float = 0.5
    every_validation: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        super().__init__()
        require_positive(depth=self.depth)
        if not 0 < self.dense_weight < 1:
            raise InputError(f"evaluation.dense_weight is {self.dense_weight}; it must be above 0 and below 1.")
        self._tokens: dict[str, tuple[TokenizedTexts, TokenizedTexts]] = {}
        self._sets: list[EvaluationSet] = []
        self._candidates: dict[str, Hits] = {}

    def check(self, module: L.LightningModule) -> None:
        """Refuse a module that trains no cross-encoder."""
        if not isinstance(module, CrossEncoderModule):
            raise InputError("evaluation=rerank re-ranks by a cross-encoder; it needs module=reranker.")

    def prepare(self, sets: Sequence[OpenedSet], encoder: CrossEncoder, how: Ranking) -> list[EvaluationSet]:
        """Tokenise queries and passages."""
        self._sets = [opened.data for opened in sets]
        self._tokens = {opened.data.name: tokens for opened, tokens in tokenized(sets, encoder, how)}
        return self._sets

    def rank(
        self, sets: Sequence[EvaluationSet], encoder: CrossEncoder, step: int, how: Ranking
    ) -> Iterator[tuple[EvaluationSet, Iterable[Run]]]:
        """Re-rank; step 0 is BM25's order."""
        for data in sets:
            hits = self.candidates(data, how) if step == 0 else self._reranked(data, encoder, how)
            yield data, [run_of(data.corpus, data.queries, hits)] if rank() == 0 else []

    def finish(self, encoder: CrossEncoder, step: int, how: Ranking, metrics: Metrics, folder: Path) -> None:
        """Compare orders of the candidates, write ``reranking.json`` and print the table."""
        table = {data.name: self._compare(data, encoder, how, metrics, folder) for data in self._sets}
        if rank() == 0:
            write_json(folder / "reranking.json", {"step": step, "depth": self.depth, MAIN: table})
            print_orders(table, self.depth)

    def work(self, sets: Sequence[OpenedSet], module: CrossEncoderModule) -> dict[str, Work]:
        """Pairs that are scored; BM25 and the dense retriever are not counted."""
        pairs = Work(pairs=self.depth * sum(len(opened.data.queries) for opened in sets))
        return {"base": Work(), "validation": pairs if self.every_validation else Work(), "end": pairs}

    def candidates(self, data: EvaluationSet, how: Ranking) -> Hits:
        """BM25's best passages, in its order; [Q, depth]."""
        if data.name not in self._candidates:
            queries = list(data.queries.values())
            hits = bm25_search(data.corpus.passages.to_pylist(), queries, self.depth + 1, self.k1, self.b)
            self._candidates[data.name] = without_own(data, hits, self.depth, how.ignore_identical_ids)
        return self._candidates[data.name]

    def _reranked(self, data: EvaluationSet, encoder: CrossEncoder, how: Ranking) -> Hits:
        """The candidates with the cross-encoder's logits, in BM25's order."""
        rows, (query_tokens, passage_tokens) = self.candidates(data, how).rows, self._tokens[data.name]
        encoder.to(how.device)
        whole = how.cache_dir / "reranking" / self._key(data, encoder, how, rows) / "scores.npy"

        def logits(queries: np.ndarray, advance: Callable[[int], None]) -> np.ndarray:
            # a query with fewer candidates is filled with row −1; what is scored there is left out of the run
            asked, passages = np.repeat(queries, rows.shape[1]), np.maximum(rows[queries], 0).ravel()
            pairs = encoder.pairs(query_tokens, passage_tokens, asked, passages)
            with evaluating(encoder):
                scores = encode(encoder, pairs, how.token_budget)
            advance(len(queries))
            return scores.cpu().numpy().reshape(len(queries), -1)

        in_order = np.zeros(len(rows), np.int64)
        with how.autocast():
            title = f"re-rank {data.name}"
            scores = cached_array(
                whole, in_order, _BLOCK, logits, rows.shape, "float32", lambda queries: queries, title
            )
        return Hits(scores, rows)

    def _key(self, data: EvaluationSet, encoder: CrossEncoder, how: Ranking, rows: np.ndarray) -> str:
        """What the scores depend on: weights, lengths, precision, token ids and candidates."""
        digest = hashlib.sha256(f"{encoder.fingerprint()} {how.precision} {_BLOCK} {rows.shape}".encode())
        for texts in self._tokens[data.name]:
            update_with_tokens(digest, texts)
        digest.update(np.ascontiguousarray(rows).tobytes())
        return digest.hexdigest()[:32]

    def _compare(
        self, data: EvaluationSet, encoder: CrossEncoder, how: Ranking, metrics: Metrics, folder: Path
    ) -> dict[str, dict[str, float | None]]:
        """Order → its nDCG@10 on the candidates, and of its own ranking of the corpus (None where it has none)."""
        bm25 = self.candidates(data, how)
        orders: dict[str, tuple[Hits, Hits | None]] = {"bm25": (bm25, bm25)}
        if self.dense is not None:
            orders |= dense_orders(self.dense, self.dense_weight, data, bm25, how)
        orders["cross-encoder"] = self._reranked(data, encoder, how), None
        orders["oracle"] = oracle(data, bm25), None
        table: dict[str, dict[str, float | None]] = {}
        for name, pair in orders.items():
            table[name] = {"candidates": None, "corpus": None}
            for where, hits in zip(table[name], pair, strict=True):
                if hits is not None:
                    means, per_query = score_run(
                        data.qrels, run_of(data.corpus, data.queries, hits), metrics, data.relevance_level
                    )
                    table[name][where] = means[MAIN]
                    if rank() == 0:
                        write_json(folder / "per_query" / data.name / f"{name}-{where}.json", per_query)
        return table
