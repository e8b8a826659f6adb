"""Stage sample: the passages that queries are written from."""

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datamodules.corpus import Corpus
from datamodules.pipeline.stages.deduplicate import KEPT
from datamodules.pipeline.stages.stage import Blocks, Output, Stage, table_writer
from datamodules.splits import unit_hash
from datamodules.storage.files import lines
from retriever.errors import InputError, require_positive


@dataclass(eq=False)
class Sample(Stage):
    """Uniformly, or so that every length is there alike.

    A passage's place in the draw is a hash of its id and the seed, so that a larger sample holds the smaller one, and a
    passage that is added to the corpus moves no other.

    Output: ``passages.parquet`` (passage_id, in the corpus' order).

    Args:
        corpus: where the texts are.
        deduplicated: output of the stage before.
        size: passages at most (the paper: 100,000); None takes all.
        strata: passages are cut by length into so many groups of equal size, each of which gives an equal share; 1 is
            uniform.
        exclude: ids that are left out, or a file with one id a line.
        include: ids that alone are drawn from, or a file with one id a line; None: all.
        seed: of the draw.
    """

    name = "sample"
    unit = "passages"

    corpus: Corpus
    deduplicated: Output
    _: KW_ONLY
    size: int | None = 100_000
    strata: int = 1
    exclude: str | Path | Sequence[str] = ()
    include: str | Path | Sequence[str] | None = None
    seed: int = 1

    def __post_init__(self) -> None:
        """Check the values, and read the ids that are left out."""
        require_positive(strata=self.strata, size=1 if self.size is None else self.size)
        self.excluded = named_passages("sample.exclude", self.exclude, self.corpus)
        self.included = None if self.include is None else named_passages("sample.include", self.include, self.corpus)

    def settings(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        own = {"size": self.size, "strata": self.strata, "exclude": self.excluded, "seed": self.seed}
        return own if self.included is None else own | {"include": self.included}

    def inputs(self) -> dict[str, str]:
        """See :class:`Stage`."""
        lengths = {"corpus": self.corpus.sha256} if self.strata > 1 else {}
        return {"passages": self.deduplicated.sha256("passages.parquet"), **lengths}

    def block_sizes(self) -> list[int]:
        """One block."""
        return [len(self._ids())]

    def run_block(self, number: int, advance: Callable[[int], None]) -> pa.Table:
        """The ids that are drawn."""
        ids = self._ids()
        allowed = ids.filter(pc.invert(pc.is_in(ids, value_set=pa.array(self.excluded, pa.string()))))
        if self.included is not None:
            allowed = allowed.filter(pc.is_in(allowed, value_set=pa.array(self.included, pa.string())))
        size = len(allowed) if self.size is None else min(self.size, len(allowed))
        place = np.array([unit_hash(f"{self.seed} {i}") for i in allowed.to_pylist()])
        rows = self.corpus.rows(allowed)
        length = pc.utf8_length(self.corpus.passages).to_numpy(zero_copy_only=False)[rows]
        by_length = np.array_split(np.lexsort((rows, length)), self.strata)
        chosen = [g[np.argsort(place[g], kind="stable")] for g in by_length]
        # as many of each group as there are, the rest from the groups that have more
        turn = np.concatenate([np.arange(len(g)) for g in chosen])
        taken = np.concatenate(chosen)[np.lexsort((place[np.concatenate(chosen)], turn))][:size]
        advance(len(ids))
        return pa.table([allowed.take(pa.array(np.sort(taken)))], schema=KEPT)

    def finish(self, blocks: Blocks, folder: Path) -> dict[str, Any]:
        """See :class:`Stage`."""
        count = 0
        with table_writer(folder / "passages.parquet", KEPT) as append:
            for table in blocks:
                append(table)
                count += len(table)
        return {"passages": len(self._ids()), "excluded": len(self.excluded), "drawn": count}

    def _ids(self) -> pa.Array:
        return self.deduplicated.table("passages.parquet")["passage_id"].combine_chunks()


def named_passages(setting: str, named: str | Path | Sequence[str], corpus: Corpus) -> list[str]:
    """Read ids, or the file that has one in each line.

    Raises:
        InputError: the corpus lacks one.
    """
    listed = [line.strip() for _, line in lines(Path(named))] if isinstance(named, str | Path) else named
    found = sorted(map(str, listed))
    unknown = [i for i, row in zip(found, corpus.rows(found), strict=True) if row < 0]
    if unknown:
        raise InputError(f"{setting}: the passage {unknown[0]!r} is not in the corpus {corpus.name!r}.")
    return found
