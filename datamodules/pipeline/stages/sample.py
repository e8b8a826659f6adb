"""Stage sample: the passages that queries are written from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datamodules.corpus import Corpus
from datamodules.pipeline.stages.deduplicate import KEPT
from datamodules.pipeline.stages.stage import Output, Stage, table_writer
from datamodules.storage.files import lines
from datamodules.storage.parquet import read_parquet
from retriever.errors import InputError, require_positive


class Sample(Stage):
    """Uniformly, or so that every length is there alike.

    A passage's place in the draw is a hash of its id and the seed, so that a larger sample holds the smaller one, and a
    passage that is added to the corpus moves no other.

    Output: ``passages.parquet`` (passage_id, in the corpus' order).

    Args:
        corpus: where the texts are.
        corpus_sha256: its content.
        deduplicated: output of the stage before.
        size: passages at most (the paper: 100,000); None takes all.
        strata: passages are cut by length into so many groups of equal size, each of which gives an equal share; 1 is
            uniform.
        exclude: ids that are left out, or a file with one id a line.
        seed: of the draw.
    """

    name = "sample"
    unit = "passages"

    def __init__(
        self,
        corpus: Corpus,
        corpus_sha256: str,
        deduplicated: Output,
        *,
        size: int | None = 100_000,
        strata: int = 1,
        exclude: str | Path | Sequence[str] = (),
        seed: int = 1,
    ) -> None:
        require_positive(strata=strata, size=1 if size is None else size)
        self.corpus = corpus
        self.corpus_sha256 = corpus_sha256
        self.deduplicated = deduplicated
        self.size = size
        self.strata = strata
        listed = [line.strip() for _, line in lines(Path(exclude))] if isinstance(exclude, str | Path) else exclude
        self.exclude = sorted(map(str, listed))
        self.seed = seed
        unknown = [i for i, row in zip(self.exclude, corpus.rows(self.exclude), strict=True) if row < 0]
        if unknown:
            raise InputError(f"sample.exclude: the passage {unknown[0]!r} is not in the corpus {corpus.name!r}.")

    def settings(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        return {name: getattr(self, name) for name in ("size", "strata", "exclude", "seed")}

    def inputs(self) -> dict[str, str]:
        """See :class:`Stage`."""
        lengths = {"corpus": self.corpus_sha256} if self.strata > 1 else {}
        return {"passages": self.deduplicated.sha256("passages.parquet"), **lengths}

    def block_sizes(self) -> list[int]:
        """One block."""
        return [len(self._ids())]

    def run_block(self, number: int, advance: Callable[[int], None]) -> pa.Table:
        """The ids that are drawn."""
        ids = self._ids()
        allowed = ids.filter(pc.invert(pc.is_in(ids, value_set=pa.array(self.exclude, pa.string()))))
        size = len(allowed) if self.size is None else min(self.size, len(allowed))
        place = np.array([_hash(i, self.seed) for i in allowed.to_pylist()])
        rows = self.corpus.rows(allowed)
        length = pc.utf8_length(self.corpus.passages).to_numpy(zero_copy_only=False)[rows]
        by_length = np.array_split(np.lexsort((rows, length)), self.strata)
        chosen = [g[np.argsort(place[g], kind="stable")] for g in by_length]
        # as many of each group as there are, the rest from the groups that have more
        turn = np.concatenate([np.arange(len(g)) for g in chosen])
        taken = np.concatenate(chosen)[np.lexsort((place[np.concatenate(chosen)], turn))][:size]
        advance(len(ids))
        return pa.table([allowed.take(pa.array(np.sort(taken)))], schema=KEPT)

    def finish(self, blocks: Iterator[pa.Table], folder: Path) -> dict[str, Any]:
        """See :class:`Stage`."""
        count = 0
        with table_writer(folder / "passages.parquet", KEPT) as append:
            for table in blocks:
                append(table)
                count += len(table)
        return {"passages": len(self._ids()), "excluded": len(self.exclude), "drawn": count}

    def _ids(self) -> pa.Array:
        return read_parquet(self.deduplicated.file("passages.parquet"))["passage_id"].combine_chunks()


def _hash(passage_id: str, seed: int) -> float:
    return int.from_bytes(hashlib.sha256(f"{seed} {passage_id}".encode()).digest()[:8], "big") / 2**64
