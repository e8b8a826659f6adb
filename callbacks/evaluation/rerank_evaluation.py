"""RerankEvaluation: a cross-encoder re-ranks BM25's best passages, beside other orders of the same candidates."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from callbacks.evaluation.beir_evaluation import BeirEvaluation, PreparedSet
from callbacks.evaluation.metrics import PerQuery, Run, score_run
from callbacks.reliability.best_checkpoint import best_checkpoint_step, load_best_weights
from datamodules.caches import cached_embeddings, cached_tokens, update_with_tokens
from datamodules.corpus import EvaluationSet
from datamodules.hits import Hits, bm25_search, fuse_scores
from datamodules.storage.files import atomic_path, write_json
from datamodules.storage.progress import progress_bar
from retriever.cross_encoder.cross_encoder import score_pairs
from retriever.cross_encoder.module import CrossEncoderModule
from retriever.encoder.text_encoder import TextEncoder
from retriever.errors import InputError, require_positive
from retriever.module import Work
from retriever.printable import printable
from retriever.search import exact_search

log = logging.getLogger(__name__)
_BLOCK = 10  # queries whose scores are kept together; a killed evaluation loses at most one block


class RerankEvaluation(BeirEvaluation):
    """Re-ranking of BM25's candidates, once at the end by the best checkpoint; BM25's order stands as the base.

    Files, data sets and metrics are those of :class:`BeirEvaluation`: ``step-000000`` holds BM25, the chosen step the
    cross-encoder. A table puts beside it what others make of the same candidates (a dense retriever, its fusion with
    BM25, the oracle that knows the judgements) and of the whole corpus; it is kept in ``reranking.json``, per-query
    values under ``per_query``. Scores are kept in the cache block by block, by the content of weights and pairs, so an
    evaluation that was killed goes on where it stopped.

    Args:
        datasets: as in :class:`BeirEvaluation`.
        folder: the run folder.
        depth: candidates of the first stage that are re-ranked.
        k1: BM25's term frequency saturation.
        b: BM25's length normalisation.
        dense: a retriever to compare with; None leaves out dense and fused.
        dense_weight: its share in the fusion, in (0, 1); BM25 has the rest.
        every_validation: re-rank at every validation, too (slow without a GPU), and log ``val/<dataset>/…``.
        **common: further arguments of :class:`BeirEvaluation`.
    """

    module_class = CrossEncoderModule
    searches = False
    mismatch = "evaluation=rerank re-ranks by a cross-encoder; it needs module=reranker."
    options = ("split", "name", "queries")

    def __init__(
        self,
        datasets: Sequence[Mapping],
        folder: str | Path,
        *,
        depth: int = 100,
        k1: float = 0.9,
        b: float = 0.4,
        dense: TextEncoder | None = None,
        dense_weight: float = 0.5,
        every_validation: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(datasets, folder, **common)
        require_positive(depth=depth)
        if not 0 < dense_weight < 1:
            raise InputError(f"evaluation.dense_weight is {dense_weight}; it must be above 0 and below 1.")
        self.depth, self.k1, self.b = depth, k1, b
        self.dense, self.dense_weight = dense, dense_weight
        self.every_validation = every_validation
        self._candidates: dict[str, Hits] = {}
        self._latest: dict[str, Hits] = {}  # the candidates with the logits of the latest evaluation

    def work(self, module: CrossEncoderModule) -> dict[str, Work]:
        """See :class:`BeirEvaluation`; BM25 and the dense retriever are not counted."""
        pairs = Work(pairs=self.depth * sum(len(data.queries) for data in self.data))
        return {"base": Work(), "validation": pairs if self.every_validation else Work(), "end": pairs}

    def on_train_start(self, trainer: L.Trainer, pl_module: CrossEncoderModule) -> None:
        """Nothing: the base is BM25, and an untrained head's order means nothing."""

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: CrossEncoderModule) -> None:
        """Evaluate and log, where asked for."""
        if self.every_validation and trainer.global_step and not trainer.sanity_checking:
            pl_module.log_dict(self._evaluate_step(trainer, pl_module, trainer.global_step))

    def on_train_end(self, trainer: L.Trainer, pl_module: CrossEncoderModule) -> None:
        """Evaluate the best checkpoint, compare, and print the table."""
        load_best_weights(trainer, pl_module)
        step = best_checkpoint_step(trainer)
        figures = self._evaluate_step(trainer, pl_module, step)
        for logger in trainer.loggers:
            logger.log_metrics(figures, trainer.global_step)
        table = {prepared.data.name: self._compare(trainer, prepared.data) for prepared in self._prepared}
        if trainer.is_global_zero:
            write_json(self.folder / "reranking.json", {"step": step, "depth": self.depth, "ndcg@10": table})
            _print(table, self.depth)

    def evaluate(self, trainer: L.Trainer, module: CrossEncoderModule, step: int) -> dict[str, dict[str, float]]:
        """Re-rank by the module as it is now: data set → metric → value, in [0, 1]. Files are written for ``step``."""
        results = {}
        for prepared in self._prepared:
            self._latest[prepared.data.name] = self._reranked(trainer, module, prepared)
            run = self._run(prepared.data, self._latest[prepared.data.name])
            results[prepared.data.name], per_query = score_run(prepared.data.qrels, run)
            if trainer.is_global_zero:
                self._write(prepared.data.name, step, run, per_query)
        return results

    def _evaluate_step(self, trainer: L.Trainer, module: CrossEncoderModule, step: int) -> dict[str, float]:
        """Evaluate, remember, and give what to log."""
        if not self.base:
            self.base = {prepared.data.name: self._first_stage(trainer, prepared) for prepared in self._prepared}
        results = self.evaluate(trainer, module, step)
        self.history = [h for h in self.history if h["step"] != step] + [{"step": step, "metrics": results}]
        return {key: value for name in results for key, value in self._to_log(name, results[name]).items()}

    def _first_stage(self, trainer: L.Trainer, prepared: PreparedSet) -> dict[str, float]:
        """BM25's figures; its files are written as those of step 0."""
        run = self._run(prepared.data, self._bm25(prepared.data))
        metrics, per_query = score_run(prepared.data.qrels, run)
        if trainer.is_global_zero:
            self._write(prepared.data.name, 0, run, per_query)
        return metrics

    def _bm25(self, data: EvaluationSet) -> Hits:
        """The candidates in BM25's order."""
        if data.name not in self._candidates:
            queries = list(data.queries.values())
            hits = bm25_search(data.corpus.passages.to_pylist(), queries, self.depth + 1, self.k1, self.b)
            self._candidates[data.name] = self._without_own(data, hits, self.depth)
        return self._candidates[data.name]

    def _without_own(self, data: EvaluationSet, hits: Hits, depth: int) -> Hits:
        """The best ``depth`` hits, the query's own passage taken out where the evaluation does so."""
        own = data.corpus.rows(list(data.queries))[:, None] if self.ignore_identical_ids else -1
        own = np.where([[data.is_query_itself(query)] for query in data.queries], own, -1)
        is_own = (hits.rows == own) & (hits.rows >= 0)
        order = np.argsort(is_own, axis=1, kind="stable")  # own ids to the end
        # a corpus as small as the depth may have no other passage to put in its place
        kept = order[:, : min(depth, hits.rows.shape[1] - int(is_own.any()))]
        return Hits(np.take_along_axis(hits.scores, kept, 1), np.take_along_axis(hits.rows, kept, 1))

    def _reranked(self, trainer: L.Trainer, module: CrossEncoderModule, prepared: PreparedSet) -> Hits:
        """The candidates with the cross-encoder's logits, in BM25's order."""
        candidates = self._bm25(prepared.data)
        module.encoder.to(trainer.strategy.root_device)
        folder = self.cache_dir / "reranking" / self._key(trainer, module, prepared, candidates.rows)
        own = range(trainer.global_rank, -(-len(candidates.rows) // _BLOCK), trainer.world_size)
        blocks = self._blocks(trainer, module, prepared, folder, own)
        if trainer.world_size > 1:
            parts: list = [None] * trainer.world_size
            dist.all_gather_object(parts, blocks)
            blocks = {number: scores for part in parts for number, scores in part.items()}
        return Hits(np.concatenate([blocks[number] for number in sorted(blocks)]), candidates.rows)

    def _blocks(
        self, trainer: L.Trainer, module: CrossEncoderModule, prepared: PreparedSet, folder: Path, numbers: range
    ) -> dict[int, np.ndarray]:
        """Number of a block of queries → its logits, float32 [n, depth]; read from the folder or put there."""
        rows, encoder = self._candidates[prepared.data.name].rows, module.encoder
        of_block = {number: np.arange(number * _BLOCK, min((number + 1) * _BLOCK, len(rows))) for number in numbers}
        blocks, training = {}, encoder.training
        total = sum(map(len, of_block.values())) * rows.shape[1]
        encoder.eval()
        with (
            torch.inference_mode(),
            trainer.precision_plugin.forward_context(),
            progress_bar(f"re-rank {prepared.data.name}", total, "pairs") as advance,
        ):
            for number, queries in of_block.items():
                path = folder / f"block-{number:06d}.npy"
                if path.is_file():
                    blocks[number] = np.load(path)
                    advance(blocks[number].size)
                    continue
                # a query with fewer candidates is filled with row −1; what is scored there is left out of the run
                asked, passages = np.repeat(queries, rows.shape[1]), np.maximum(rows[queries], 0).ravel()
                pairs = encoder.pairs(prepared.queries, prepared.passages, asked, passages)
                scores = score_pairs(encoder, pairs, self.token_budget, on_micro_batch=advance)
                blocks[number] = scores.cpu().numpy().reshape(len(queries), -1)
                with atomic_path(path) as temporary, open(temporary, "wb") as file:
                    np.save(file, blocks[number])
        encoder.train(training)
        return blocks

    def _key(self, trainer: L.Trainer, module: CrossEncoderModule, prepared: PreparedSet, rows: np.ndarray) -> str:
        """What the scores depend on: weights, lengths, precision, token ids and candidates."""
        digest = hashlib.sha256(f"{module.encoder.fingerprint()} {trainer.precision} {_BLOCK} {rows.shape}".encode())
        for texts in (prepared.queries, prepared.passages):
            update_with_tokens(digest, texts)
        digest.update(np.ascontiguousarray(rows).tobytes())
        return digest.hexdigest()[:32]

    def _compare(self, trainer: L.Trainer, data: EvaluationSet) -> dict[str, dict[str, float | None]]:
        """Order → its nDCG@10 on the candidates, and of its own ranking of the corpus (None where it has none)."""
        bm25 = self._bm25(data)
        orders: dict[str, tuple[Hits, Hits | None]] = {"bm25": (bm25, bm25)}
        if self.dense is not None:
            orders |= self._dense_orders(self.dense, trainer, data, bm25)
        orders["cross-encoder"] = self._latest[data.name], None
        orders["oracle"] = _oracle(data, bm25), None
        table: dict[str, dict[str, float | None]] = {}
        for name, pair in orders.items():
            table[name] = {}
            for where, hits in zip(("candidates", "corpus"), pair, strict=True):
                table[name][where] = None
                if hits is None:
                    continue
                means, per_query = score_run(data.qrels, self._run(data, hits))
                table[name][where] = means["ndcg@10"]
                if trainer.is_global_zero:
                    write_json(self.folder / "per_query" / data.name / f"{name}-{where}.json", per_query)
        return table

    def _dense_orders(
        self, dense: TextEncoder, trainer: L.Trainer, data: EvaluationSet, bm25: Hits
    ) -> dict[str, tuple[Hits, Hits]]:
        """The dense retriever and its fusion with BM25: order of the candidates, best of the corpus."""
        encoder = dense.to(trainer.strategy.root_device)
        tokens = {
            "passage": cached_tokens(data.corpus.passages, encoder, "passage", self.cache_dir),
            "query": cached_tokens(list(data.queries.values()), encoder, "query", self.cache_dir),
        }
        with trainer.precision_plugin.forward_context():
            passages, queries = (
                cached_embeddings(t, encoder, self.cache_dir, self.token_budget, f"encode {data.name} ({kind})")
                for kind, t in tokens.items()
            )
        found = Hits(*exact_search(queries, passages, max(self.hits, self.depth) + 1))
        whole = self._without_own(data, found, self.hits)
        cosines = np.einsum("qd,qkd->qk", queries, passages[bm25.rows])
        same = Hits(np.where(bm25.rows >= 0, cosines, -np.inf).astype(np.float32), bm25.rows)
        weights, depth = [1 - self.dense_weight, self.dense_weight], bm25.rows.shape[1]
        # min-max scaling looks at a retriever's own best hits: as many of the one as of the other
        best = Hits(whole.scores[:, :depth], whole.rows[:, :depth])
        fused = fuse_scores([bm25, same], weights, depth), fuse_scores([bm25, best], weights, 2 * depth)
        return {"dense": (same, whole), "fused": fused}

    def _with_base(self, trainer: L.Trainer, module: CrossEncoderModule, prepared: PreparedSet) -> PreparedSet:
        """As it is: a cross-encoder has no embeddings."""
        return prepared

    def _write(self, name: str, step: int, run: Run, per_query: PerQuery) -> None:
        write_json(self._per_query_file(name, step), per_query)
        with self._run_file(name, step) as keep_run:
            keep_run(run)

    def _run(self, data: EvaluationSet, hits: Hits) -> Run:
        """Query id → passage id → score."""
        run = {}
        for number, query in enumerate(data.queries):
            real = hits.rows[number] >= 0
            ids = data.corpus.ids.take(hits.rows[number][real]).to_pylist()
            run[query] = dict(zip(ids, hits.scores[number][real].tolist(), strict=True))
        return run


def _oracle(data: EvaluationSet, candidates: Hits) -> Hits:
    """The candidates scored by their judgements."""
    grades = np.zeros(candidates.rows.shape, np.float32)
    for number, judged in enumerate(data.qrels[query] for query in data.queries):
        for row, grade in zip(data.corpus.rows(list(judged)), judged.values(), strict=True):
            grades[number][candidates.rows[number] == row] = grade
    return Hits(grades, candidates.rows)


def _print(table: dict[str, dict[str, dict[str, float | None]]], depth: int) -> None:
    console = Console(width=None if sys.stdout.isatty() else 132)
    for name, orders in table.items():
        title = f"{name}: nDCG@10 of several orders of BM25's best {depth}, and of their own best of the corpus"
        console.print(escape(printable(title)))
        view = Table()
        view.add_column("order", no_wrap=True)
        view.add_column("candidates", justify="right")
        view.add_column("corpus", justify="right")
        for order, figures in orders.items():
            view.add_row(order, *("" if value is None else f"{value:.4f}" for value in figures.values()))
        console.print(view)
