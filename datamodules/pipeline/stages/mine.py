"""Stage mine: candidates of every query, from any number of retrievers, fused into one list."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from datamodules.caches import cached_embeddings, cached_tokens, embed
from datamodules.corpus import Corpus
from datamodules.hits import Hits, fuse_ranks, fuse_scores
from datamodules.pipeline.searchers import SEARCHED, Bm25, Searcher
from datamodules.pipeline.stages.sample import named_passages
from datamodules.pipeline.stages.stage import BLOCK_ROWS, Blocks, Output, Stage, table_writer
from datamodules.prompted import query_tokens
from datamodules.query_lists.files import to_ragged
from datamodules.storage.parquet import ParquetRows
from retriever.encoder.encoding import device_of
from retriever.encoder.precision import FLOAT32, autocast
from retriever.encoder.text_encoder import TextEncoder
from retriever.errors import InputError, choose, require_positive
from retriever.search import exact_search, merge_hits

NOWHERE = 2**31  # the rank of a positive that is not among the hits
RUN = pa.schema([("rows", pa.list_(pa.int32())), ("scores", pa.list_(pa.float32()))])
_METHOD = 2  # raise it where the same settings give other candidates
_QUERIES = "queries.parquet"
_CANDIDATES = ""  # no retriever is called so
_NAMING = ("query_id", "query_type", "positive_ids")
FUSIONS = ("reciprocal_rank", "score")


@dataclass(eq=False)
class Dense(Searcher):
    """Exact search with encoders, chunk by chunk: encode, search, forget.

    Args:
        encoder: of queries, and of passages.
        cache_dir: where token ids and embeddings are kept.
        chunk: passages encoded and searched at a time; bounds the memory.
        token_budget: tokens of a micro-batch; None takes the machine's.
        keep_embeddings: whether passage embeddings stay in the cache, for training and evaluation to find.
        passage_encoder: of passages, where a model was tuned for queries alone; None takes ``encoder``.
        precision: in which the encoder runs: ``32-true``, ``bf16-mixed`` or ``16-mixed``.
    """

    encoder: TextEncoder
    cache_dir: str | Path
    _: KW_ONLY
    chunk: int = 100_000
    token_budget: int | None = None
    keep_embeddings: bool = True
    passage_encoder: TextEncoder | None = None
    precision: str = FLOAT32

    def __post_init__(self) -> None:
        """Check the values."""
        require_positive(chunk=self.chunk, token_budget=self.token_budget)

    def settings(self) -> dict[str, Any]:
        """See :class:`Searcher`."""
        of_passages = {} if self.passage_encoder is None else {"passages": _identity(self.passage_encoder)}
        precision = {} if self.precision == FLOAT32 else {"precision": self.precision}
        return _identity(self.encoder, chunk=self.chunk) | of_passages | precision

    def describe(self) -> str:
        """See :class:`Searcher`."""
        encoder, passages = self.encoder, self.passage_encoder or self.encoder
        name = encoder.origin if encoder.name in encoder.origin else f"{encoder.name}, from {encoder.origin}"
        of_passages = "" if passages is encoder else f"; passages by {passages.origin}"
        return (
            f"{name}, {encoder.dimension} dimensions, pooling {encoder.spec.pooling}, prompts "
            f"{encoder.spec.query_prompt!r} and {passages.spec.passage_prompt!r}, at most "
            f"{encoder.spec.query_max_length} tokens of a query and {passages.spec.passage_max_length} of a passage"
            f"{'' if passages.spec.passage_titles else ' without its title'}, on {device_of(encoder)} in "
            f"{self.precision}{of_passages}"
        )

    def parts(self, passages: int) -> list[range]:
        """See :class:`Searcher`."""
        return [range(s, min(s + self.chunk, passages)) for s in range(0, passages, self.chunk)]

    def search(
        self, corpus: Corpus, part: range, queries: pa.Array, k: int, types: pa.Array | None = None
    ) -> Iterator[Hits]:
        """See :class:`Searcher`."""
        asked = self._queries(queries, types, corpus)
        title = f"encode {corpus.name}" + ("" if len(part) == len(corpus) else f" {part.start:,} to {part.stop:,}")
        passages = self._passages(corpus, part, title)
        for start in range(0, len(asked), SEARCHED):
            yield Hits(*exact_search(asked[start : start + SEARCHED], passages, k, first_row=part.start))

    def _queries(self, queries: pa.Array, types: pa.Array | None, corpus: Corpus) -> np.ndarray:
        tokens = query_tokens(queries, self.encoder, self.cache_dir, [corpus.name], types)
        with autocast(self.precision, device_of(self.encoder)):
            return cached_embeddings(tokens, self.encoder, self.cache_dir, self.token_budget, "encode queries")

    def _passages(self, corpus: Corpus, part: range, title: str) -> np.ndarray:
        encoder = (self.passage_encoder or self.encoder).prompted_for(corpus.name)
        texts = corpus.read_by(encoder)[part.start : part.stop]
        with autocast(self.precision, device_of(encoder)):
            if not self.keep_embeddings:
                return embed(encoder.tokenize(texts.to_pylist(), "passage"), encoder, self.token_budget, title)
            tokens = cached_tokens(texts, encoder, "passage", self.cache_dir)
            return cached_embeddings(tokens, encoder, self.cache_dir, self.token_budget, title)


def _identity(encoder: TextEncoder, **more: Any) -> dict[str, Any]:
    """What decides its embeddings."""
    spec = encoder.spec
    lengths = [spec.query_prompt, spec.passage_prompt, spec.query_max_length, spec.passage_max_length]
    titles = {} if spec.passage_titles else {"passage_titles": False}
    return {"encoder": encoder.fingerprint(), "prompts_and_lengths": lengths, **more} | titles


@dataclass(eq=False)
class Mine(Stage):
    """Hits of every retriever, and the fused candidates.

    Output: ``run.<retriever>.parquet`` and ``candidates.parquet`` (rows, scores: lists, best first, in the order of the
    collected queries; rows are those of the corpus).

    Args:
        corpus: searched whole.
        collected: output of stage queries.
        deduplicated: output of stage deduplicate, for ``drop_near_duplicates``.
        retrievers: name → retriever.
        depth: hits of each retriever (the paper: 100).
        candidates: of a query, after fusion.
        fusion: ``reciprocal_rank`` (k = 60) or ``score`` (min-max scaled, weighted).
        weights: retriever → weight; None weighs all alike.
        drop_near_duplicates: leave out passages that stage deduplicate takes for the same as a positive, which would
            be false negatives.
        drop_identical_ids: leave out the passage whose id is the query's (as BEIR does), unless it is a positive, or
            the query was written from a passage, so that its id was made here.
        drop_duplicates: take all passages that stage deduplicate removed out of every retriever's hits, before ranks
            are counted (the paper's code); a query's positives stay.
        exclude: ids that are taken out of every retriever's hits likewise, or a file with one id a line: passages that
            are held out.
    """

    name = "mine"
    unit = "passages"

    corpus: Corpus
    collected: Output
    deduplicated: Output | None
    retrievers: Mapping[str, Searcher]
    _: KW_ONLY
    depth: int = 100
    candidates: int = 100
    fusion: str = "reciprocal_rank"
    weights: Mapping[str, float] | None = None
    drop_near_duplicates: bool = True
    drop_identical_ids: bool = True
    drop_duplicates: bool = False
    exclude: str | Path | Sequence[str] = ()

    def __post_init__(self) -> None:
        """Check the values, and give each retriever its weight."""
        require_positive(depth=self.depth, candidates=self.candidates)
        choose("mine.fusion", self.fusion, FUSIONS)
        if not self.retrievers:
            raise InputError("mine.retrievers is empty; name at least one.")
        given = self.weights or {}
        for name in given:
            choose("mine.weights: the retriever", name, self.retrievers)
        self.weights = {name: given.get(name, 1.0) for name in self.retrievers}
        self.deduplicated = self.deduplicated if self.drop_near_duplicates or self.drop_duplicates else None
        self.excluded = named_passages("mine.exclude", self.exclude, self.corpus)

    def settings(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        own = self.fields("depth", "candidates", "fusion", "weights", "drop_identical_ids")
        searchers = {name: r.settings() for name, r in self.retrievers.items()}
        dropped: dict[str, Any] = {"drop_duplicates": True} if self.drop_duplicates else {}
        dropped |= {"exclude": self.excluded} if self.excluded else {}
        if self.drop_duplicates and not self.drop_near_duplicates:
            dropped["drop_near_duplicates"] = False  # else that their file is an input says it
        parts = len(Bm25().parts(len(self.corpus)))
        if parts > 1 and any(isinstance(searcher, Bm25) for searcher in self.retrievers.values()):
            dropped["bm25_parts"] = parts  # it was one: blocks of older versions are no part
        return {"retrievers": searchers, **own, "method": _METHOD, **dropped}

    def inputs(self) -> dict[str, str]:
        """See :class:`Stage`."""
        found = {"corpus": self.corpus.sha256, "queries": self.collected.sha256(_QUERIES)}
        if self.deduplicated:
            found["removed"] = self.deduplicated.sha256("removed.parquet")
        return found

    def block_sizes(self) -> list[int]:
        """A block per retriever and part of the corpus."""
        return [len(part) for _, part in self._parts]

    def run_block(self, number: int, advance: Callable[[int], None]) -> Iterator[pa.Table]:
        """One retriever's hits in one part of the corpus, for all queries."""
        name, part = self._parts[number]
        table = self.collected.table(_QUERIES, ["query", "query_type"])
        queries, types = (column.combine_chunks() for column in table.columns)
        hits = self.retrievers[name].search(self.corpus, part, queries, self.depth, types)
        yield from map(hits_to_table, hits)
        advance(len(part))

    def finish(self, blocks: Blocks, folder: Path) -> dict[str, Any]:
        """See :class:`Stage`."""
        counts, lengths = Counter[str](), []
        queries = ParquetRows(self.collected.file(_QUERIES), _NAMING)
        with ExitStack() as files:
            names = {name: f"run.{name}.parquet" for name in self.retrievers}
            append = {
                name: files.enter_context(table_writer(folder / file, RUN))
                for name, file in {**names, _CANDIDATES: "candidates.parquet"}.items()
            }
            for start in range(0, len(queries), BLOCK_ROWS):
                asked = self._asked(queries, start)
                runs = self._runs(blocks, asked)
                fused = self._fused(runs, asked)
                for name, hits in {**runs, _CANDIDATES: fused}.items():
                    append[name](hits_to_table(hits))
                lengths.append((fused.rows >= 0).sum(1))
                for name, hits in runs.items():
                    ranks = first_ranks(hits, asked.positives)
                    counts[f"positive in {name}"] += int((ranks <= self.depth).sum())
                if self.drop_identical_ids:
                    hit = np.any([(hits.rows == asked.own[:, None]).any(1) for hits in runs.values()], axis=0)
                    counts["left out: of the query's id"] += int((hit & (asked.own >= 0)).sum())
        found = np.concatenate(lengths)
        of_lists = {"queries": len(found), "candidates": int(found.sum()), "fewest": int(found.min())}
        return of_lists | {name: count for name, count in counts.items() if count or name.startswith("positive")}

    def _asked(self, queries: ParquetRows, start: int) -> "_Asked":
        table = queries.rows(start, start + BLOCK_ROWS)
        return _Asked(start, positive_rows(table, self.corpus), self._own(table))

    def _runs(self, blocks: Blocks, asked: "_Asked") -> dict[str, Hits]:
        """Each retriever's hits for some queries in the whole corpus, without what is dropped."""
        runs: dict[str, Hits] = {}
        for number, (name, _) in enumerate(self._parts):
            found = table_to_hits(blocks.rows(number, asked.start, asked.start + len(asked.own)))
            if name in runs:
                parts = [(runs[name].scores, runs[name].rows), (found.scores, found.rows)]
                found = Hits(*merge_hits(parts, self.depth))
            runs[name] = found
        if not len(self._dropped):
            return runs
        return {name: self._without(hits, asked.positives) for name, hits in runs.items()}

    def _fused(self, runs: Mapping[str, Hits], asked: "_Asked") -> Hits:
        """The candidates of some queries."""
        fuse = fuse_ranks if self.fusion == "reciprocal_rank" else fuse_scores
        weights = [(self.weights or {})[name] for name in runs]
        # dropped passages leave gaps, so more are fused than are kept
        fused = fuse(list(runs.values()), weights, self.depth * len(runs))
        return self._without_dropped(fused, asked)

    @cached_property
    def _parts(self) -> list[tuple[str, range]]:
        return [(name, part) for name, r in self.retrievers.items() for part in r.parts(len(self.corpus))]

    @cached_property
    def _dropped(self) -> np.ndarray:
        """Rows that are no hit of any retriever, int64."""
        ids = list(self.excluded)
        if self.deduplicated and self.drop_duplicates:
            ids += self.deduplicated.table("removed.parquet")["passage_id"].to_pylist()
        return self.corpus.rows(ids)

    def _without(self, hits: Hits, positives: list[np.ndarray]) -> Hits:
        """Take out what is dropped; the hits behind it move up."""
        out = np.isin(hits.rows, self._dropped)
        for query, rows in enumerate(positives):
            out[query] &= ~np.isin(hits.rows[query], rows)
        order = np.argsort(out, axis=1, kind="stable")
        gone = np.take_along_axis(out, order, 1)
        scores, rows = (np.take_along_axis(values, order, 1) for values in (hits.scores, hits.rows))
        return Hits(np.where(gone, -np.inf, scores).astype(np.float32), np.where(gone, -1, rows))

    @cached_property
    def _same(self) -> np.ndarray:
        """Row → the row that stands for it, int64 [N]."""
        same = np.arange(len(self.corpus))
        if self.deduplicated and self.drop_near_duplicates:
            removed = self.deduplicated.table("removed.parquet")
            removed = removed.filter(removed["kept_id"].is_valid())
            left, stays = (self.corpus.rows(removed[n].combine_chunks()) for n in ("passage_id", "kept_id"))
            same[left] = stays
        return same

    def _own(self, queries: pa.Table) -> np.ndarray:
        """The row whose id is the query's and which is therefore taken for it, int64 [Q]; −1 where there is none."""
        rows = self.corpus.rows(queries["query_id"].combine_chunks())
        for number in np.flatnonzero(rows >= 0):
            query_id, kind, positives = (queries[name][number].as_py() for name in _NAMING)
            if query_id in positives or query_id in {f"{kind}-{passage}" for passage in positives}:
                rows[number] = -1
        return rows

    def _without_dropped(self, hits: Hits, asked: "_Asked") -> Hits:
        scores = np.full((len(hits.rows), self.candidates), -np.inf, np.float32)
        rows = np.full((len(hits.rows), self.candidates), -1, np.int64)
        for query, (found, positives) in enumerate(zip(hits.rows, asked.positives, strict=True)):
            keep = found >= 0
            keep &= np.isin(found, positives) | ~np.isin(self._same[found], self._same[positives])
            if self.drop_identical_ids:
                keep &= found != asked.own[query]
            at = np.flatnonzero(keep)[: self.candidates]
            scores[query, : len(at)], rows[query, : len(at)] = hits.scores[query, at], found[at]
        return Hits(scores, rows)


@dataclass(frozen=True)
class _Asked:
    """Some queries: the number of the first, and of each the rows of its positives and of the passage of its id."""

    start: int
    positives: list[np.ndarray]
    own: np.ndarray


def positive_rows(queries: pa.Table, corpus: Corpus) -> list[np.ndarray]:
    """Rows of each query's positives that are in the corpus."""
    ids, lengths = to_ragged(queries["positive_ids"])
    return [rows[rows >= 0] for rows in np.split(corpus.rows(ids), np.cumsum(lengths)[:-1])]


def first_ranks(hits: Hits, positives: list[np.ndarray]) -> np.ndarray:
    """Rank (from 1) of the first positive among each query's hits, int64 [Q]; ``NOWHERE`` where none is there."""
    ranks = np.full(len(hits.rows), NOWHERE, np.int64)
    for query, (found, wanted) in enumerate(zip(hits.rows, positives, strict=True)):
        at = np.flatnonzero(np.isin(found, wanted))
        if len(at):
            ranks[query] = at[0] + 1
    return ranks


def hits_to_table(hits: Hits) -> pa.Table:
    """Ragged lists: what is not there (row −1) is left out."""
    there = hits.rows >= 0
    offsets = pa.array(np.concatenate([[0], np.cumsum(there.sum(1))]), pa.int32())
    columns = [
        pa.ListArray.from_arrays(offsets, pa.array(hits.rows[there], pa.int32())),
        pa.ListArray.from_arrays(offsets, pa.array(hits.scores[there], pa.float32())),
    ]
    return pa.table(columns, schema=RUN)


def table_to_hits(table: pa.Table) -> Hits:
    """The reverse of :func:`hits_to_table`."""
    (rows, lengths), (scores, _) = to_ragged(table["rows"]), to_ragged(table["scores"])
    there = np.arange(lengths.max(initial=0))[None, :] < lengths[:, None]
    hits = Hits(np.full(there.shape, -np.inf, np.float32), np.full(there.shape, -1, np.int64))
    hits.rows[there], hits.scores[there] = rows.to_numpy(), scores.to_numpy()
    return hits
