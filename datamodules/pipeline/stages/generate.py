"""Stage generate: an LLM writes queries of several types for each sampled passage."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from datamodules.corpus import Corpus
from datamodules.pipeline.engines import Answer, Engine
from datamodules.pipeline.engines.engine import Conversation
from datamodules.pipeline.query_cleaning import clean_query, language_notes
from datamodules.pipeline.query_types import QueryType
from datamodules.pipeline.stages.stage import Blocks, Output, Stage, table_writer
from datamodules.text.words import METHOD
from retriever.errors import InputError, require_positive

QUERIES = pa.schema([(name, pa.string()) for name in ("query_id", "query", "query_type", "passage_id")])
REJECTED = pa.schema([(name, pa.string()) for name in ("passage_id", "query_type", "answer", "reason")])
_BLOCK = pa.schema([*QUERIES, ("answer", pa.string()), ("reason", pa.string())])
DUPLICATE = "another passage has this query"
_BLOCKS_LOOKED_AT = 20  # whose prompts' tokens are counted
_LOOKED_AT = 50  # passages by which the corpus' language is told

_Task = tuple[QueryType, str, str]  # what to write, a passage's id and its text


@dataclass(eq=False)
class Generate(Stage):
    """Queries from passages.

    Output: ``queries.parquet`` (query_id ``<type>-<passage id>``, query, query_type, passage_id) and
    ``rejected.parquet`` (passage_id, query_type, answer as it came, reason).

    Args:
        corpus: where the texts are.
        sample: output of the stage before; ``passages.parquet`` names the passages.
        engine: the chat model.
        types: what to write, one query per passage and type.
        system: first message of each conversation; None leaves it out.
        max_characters: of a passage; what is longer is cut (the paper: 2,048).
        block_size: passages of a block; a kill loses at most one block.
        attempts: how often a rejected answer is asked for anew, with another seed.
        titles: whether a passage's title stands before its text (the paper: the text alone).
        shots_by_passage: draw examples for each passage, as the paper does; else for each block, which an engine with
            a prefix cache reads once.
        language: ISO 639-1 code that queries must be in; None lets any pass.
        seed: of examples and sampling.
    """

    name = "generate"
    unit = "queries"

    corpus: Corpus
    sample: Output
    engine: Engine
    types: Sequence[QueryType]
    _: KW_ONLY
    system: str | None = None
    max_characters: int = 2048
    block_size: int = 256
    attempts: int = 1
    language: str | None = "en"
    titles: bool = True
    shots_by_passage: bool = False
    seed: int = 1

    def __post_init__(self) -> None:
        """Check the values."""
        require_positive(max_characters=self.max_characters, block_size=self.block_size, attempts=self.attempts)
        if not self.types:
            raise InputError("generate.types is empty; name at least one query type.")

    def settings(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        types = {t.name: hashlib.sha256(repr(t).encode()).hexdigest() for t in self.types}
        own = self.fields("system", "max_characters", "block_size", "attempts", "language", "seed")
        changed = {} if self.titles else {"titles": False}
        changed |= {"shots_by_passage": True} if self.shots_by_passage else {}
        return {"types": types, "engine": self.engine.settings(), **own, "words": METHOD, **changed}

    def notes(self) -> list[str]:
        """What to know before it runs, see :func:`~datamodules.pipeline.query_cleaning.language_notes`."""
        rows = range(0, len(self.corpus), max(1, len(self.corpus) // _LOOKED_AT))
        return language_notes([self.corpus.passages[row].as_py() for row in rows], self.language)

    def inputs(self) -> dict[str, str]:
        """See :class:`Stage`."""
        return {"corpus": self.corpus.sha256, "passages": self.sample.sha256("passages.parquet")}

    def block_sizes(self) -> list[int]:
        """See :class:`Stage`."""
        starts = range(0, len(self._passage_ids), self.block_size)
        return [len(self._passage_ids[s : s + self.block_size]) * len(self.types) for s in starts]

    def begin(self, folder: Path, blocks: Sequence[int]) -> None:
        """See :class:`Stage`; an engine that asks ahead is asked for all blocks, attempt by attempt."""
        self.engine.open(folder / "answers")
        for attempt in range(self.attempts if self.engine.asks_ahead else 0):
            self.engine.ask_ahead(self._conversations(number, attempt) for number in blocks)

    def estimate(self) -> dict[str, Any]:
        """Prompts and tokens of first attempts, before any is made.

        Returns:
            ``prompts``, ``passages``, ``prompt_tokens``, by all prompts of up to 20 blocks, and ``answer_tokens``, at
            most (None where the sampling has no maximum).
        """
        sizes = self.block_sizes()
        looked_at = range(0, len(sizes), -(-len(sizes) // _BLOCKS_LOOKED_AT) or 1)
        counts = [self.engine.prompt_tokens.count(self._conversations(number, 0)[0]) for number in looked_at]
        mean = sum(map(sum, counts)) / max(1, sum(map(len, counts)))
        longest = self.engine.sampling.get("max_tokens")
        return {
            "prompts": sum(sizes),
            "passages": len(self._passage_ids),
            "prompt_tokens": round(mean * sum(sizes)),
            "answer_tokens": longest and longest * sum(sizes),
        }

    def run_block(self, number: int, advance: Callable[[int], None]) -> pa.Table:
        """One query of each type for each passage of the block, accepted or rejected, each attempt a row."""
        tasks = self._tasks(number)
        rows = []
        for attempt in range(self.attempts):
            found = self._attempt(tasks, number, attempt, advance if attempt == 0 else lambda _: None)
            rejected = []
            for (kind, passage_id, text), (answer, query, reason) in zip(tasks, found, strict=True):
                query_id = f"{kind.name}-{passage_id}"
                rows.append((query_id, query, kind.name, passage_id, answer, reason))
                if reason:
                    rejected.append((kind, passage_id, text))
            tasks = rejected
        columns = list(zip(*rows, strict=True))
        return pa.table([pa.array(c, pa.string()) for c in columns], schema=_BLOCK)

    def finish(self, blocks: Blocks, folder: Path) -> dict[str, Any]:
        """See :class:`Stage`."""
        seen: set[str] = set()
        counts: dict[str, Counter] = {kind.name: Counter() for kind in self.types}
        with (
            table_writer(folder / "queries.parquet", QUERIES) as queries,
            table_writer(folder / "rejected.parquet", REJECTED) as rejected,
        ):
            for table in blocks:
                table = _mark_duplicates(table, seen)
                accepted = pc.is_null(table["reason"])
                queries(table.filter(accepted).select(QUERIES.names))
                rejected(table.filter(pc.invert(accepted)).select(REJECTED.names))
                for kind, reason in zip(table["query_type"].to_pylist(), table["reason"].to_pylist(), strict=True):
                    counts[kind][reason or "accepted"] += 1
        return {
            "passages": len(self._passage_ids),
            "asked": sum(c.total() for c in counts.values()),
            "accepted": sum(c["accepted"] for c in counts.values()),
            **self.engine.usage(),
            "by_type": {name: dict(sorted(c.items())) for name, c in counts.items()},
        }

    @cached_property
    def _passage_ids(self) -> list[str]:
        return self.sample.table("passages.parquet")["passage_id"].to_pylist()

    def _tasks(self, number: int) -> list[_Task]:
        ids = self._passage_ids[number * self.block_size : (number + 1) * self.block_size]
        passages = self.corpus.passages if self.titles else self.corpus.texts
        texts = [passages[int(row)].as_py() for row in self.corpus.rows(ids)]
        # type by type: an engine with a prefix cache then computes the shared examples once
        return [
            (kind, i, text[: self.max_characters]) for kind in self.types for i, text in zip(ids, texts, strict=True)
        ]

    def _conversations(self, number: int, attempt: int) -> tuple[list[Conversation], list[int]]:
        """Conversations and seeds of a block's attempt; the attempts before it must be answered."""
        tasks = self._tasks(number)
        for before in range(attempt):
            found = self._attempt(tasks, number, before, lambda _: None)
            tasks = [task for task, (_, _, reason) in zip(tasks, found, strict=True) if reason]
        return self._asked(tasks, self._draws(tasks, number, attempt), attempt)

    def _draws(self, tasks: list[_Task], number: int, attempt: int) -> list[list[tuple[str, str]]]:
        """Examples in the prompt of each task."""
        return [
            kind.draw(f"{self.seed} {kind.name} {passage_id if self.shots_by_passage else number} {attempt}")
            for kind, passage_id, _ in tasks
        ]

    def _asked(
        self, tasks: list[_Task], draws: list[list[tuple[str, str]]], attempt: int
    ) -> tuple[list[Conversation], list[int]]:
        asked = zip(tasks, draws, strict=True)
        conversations = [kind.conversation(self.system, text, drawn) for (kind, _, text), drawn in asked]
        return conversations, [_seed(self.seed, kind.name, passage_id, attempt) for kind, passage_id, _ in tasks]

    def _attempt(
        self, tasks: list[_Task], number: int, attempt: int, advance: Callable[[int], None]
    ) -> list[tuple[str, str, str | None]]:
        """Answer as it came, query, reason of rejection, for each task."""
        if not tasks:
            return []
        draws = self._draws(tasks, number, attempt)
        conversations, seeds = self._asked(tasks, draws, attempt)
        answers: list[Answer] = self.engine.answer(conversations, seeds, advance)
        found = []
        for (kind, _, text), answer, drawn in zip(tasks, answers, draws, strict=True):
            query, reason = clean_query(answer.text, answer.finished, text, kind, drawn, self.language)
            found.append((answer.text, query, reason))
        return found


def _seed(*parts: Any) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big") >> 1


def _mark_duplicates(table: pa.Table, seen: set[str]) -> pa.Table:
    """Queries that an earlier passage has already say nothing of their own."""
    reasons = []
    for query, reason in zip(table["query"].to_pylist(), table["reason"].to_pylist(), strict=True):
        reasons.append(reason or (DUPLICATE if query.lower() in seen else None))
        if reasons[-1] is None:
            seen.add(query.lower())
    return table.set_column(table.schema.get_field_index("reason"), "reason", pa.array(reasons, pa.string()))
