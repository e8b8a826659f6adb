"""Stage deduplicate: passages that say the same as another one are left out of what queries are written from."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from datamodules.corpus import Corpus
from datamodules.pipeline.stages.stage import Stage, table_writer
from datamodules.text.near_texts import NearTexts, checked_threshold
from datamodules.text.words import METHOD, count_characters, normalize_texts
from retriever.errors import require_positive

KEPT = pa.schema([("passage_id", pa.string())])
REMOVED = pa.schema([("passage_id", pa.string()), ("reason", pa.string()), ("kept_id", pa.string())])
_BLOCK = 10_000


@dataclass(eq=False)
class Deduplicate(Stage):
    """Exact, contained and near duplicates.

    Texts are compared after :func:`~datamodules.text.words.normalize_texts`. A text that a neighbour in sorted order
    begins with, or, sorted by the reversed texts, ends with, is contained in it and falls out (arXiv 2505.19274's
    code); of equal texts the first of the corpus stays. Near duplicates are found by MinHash (``rensa``) and verified
    by the exact Jaccard similarity of their three-word shingles; a letter of a script without spaces is a word there.

    Output: ``passages.parquet`` (passage_id, in the corpus' order) and ``removed.parquet`` (passage_id, reason,
    kept_id: the passage that stays in its place).

    Args:
        corpus: all passages.
        min_characters: normalised texts that are shorter fall out (the paper's code: 10); a Han character, kana or
            Hangul syllable counts as two.
        ignore_digits: count passages that differ in numbers alone as equal (the paper's code does; a defect where
            numbers matter).
        near_jaccard: similarity of shingles from which passages are near duplicates, in (0, 1]; None looks for none.
        permutations: of MinHash; more find more of the pairs just above the threshold.
    """

    name = "deduplicate"
    unit = "passages"

    corpus: Corpus
    _: KW_ONLY
    min_characters: int = 10
    ignore_digits: bool = False
    near_jaccard: float | None = 0.8
    permutations: int = 128

    def __post_init__(self) -> None:
        """Check the values."""
        require_positive(permutations=self.permutations)
        checked_threshold("deduplicate.near_jaccard", self.near_jaccard)

    def settings(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        return self.fields("min_characters", "ignore_digits", "near_jaccard", "permutations") | {"words": METHOD}

    def inputs(self) -> dict[str, str]:
        """See :class:`Stage`."""
        return {"corpus": self.corpus.sha256}

    def block_sizes(self) -> list[int]:
        """One block: every text is compared with all others."""
        return [len(self.corpus)]

    def run_block(self, number: int, advance: Callable[[int], None]) -> pa.Table:
        """Every passage with the reason why it falls out, or null."""
        texts = self._normalized(advance)
        reasons = np.full(len(texts), None, dtype=object)
        stays = np.arange(len(texts))
        short = np.array([count_characters(t) < self.min_characters for t in texts], dtype=bool)
        reasons[short] = f"under {self.min_characters} characters"
        stays[short] = -1
        for row, other, equal in contained_texts(texts, np.flatnonzero(~short)):
            reasons[row], stays[row] = "equal" if equal else "contained", other
        if self.near_jaccard is not None:
            left = [row for row in range(len(texts)) if reasons[row] is None]
            for row, other in near_duplicates(texts, left, self.near_jaccard, self.permutations):
                reasons[row], stays[row] = "nearly equal", other
        ids = self.corpus.ids
        # what stays in a passage's place may have fallen out later itself: follow it to the one that is there
        kept = [None if reasons[r] is None or stays[r] < 0 else ids[_last(stays, r)].as_py() for r in range(len(texts))]
        return pa.table([ids, pa.array(list(reasons), pa.string()), pa.array(kept, pa.string())], schema=REMOVED)

    def finish(self, blocks: Iterator[pa.Table], folder: Path) -> dict[str, Any]:
        """See :class:`Stage`."""
        counts: Counter[str] = Counter()
        with (
            table_writer(folder / "passages.parquet", KEPT) as kept,
            table_writer(folder / "removed.parquet", REMOVED) as removed,
        ):
            for table in blocks:
                stays = table["reason"].is_null()
                kept(table.filter(stays).select(KEPT.names))
                removed(table.filter(table["reason"].is_valid()))
                counts.update(reason or "kept" for reason in table["reason"].to_pylist())
        return {"passages": counts.total(), "kept": counts["kept"], **dict(sorted(counts.items()))}

    def _normalized(self, advance: Callable[[int], None]) -> list[str]:
        texts: list[str] = []
        for start in range(0, len(self.corpus), _BLOCK):
            block = self.corpus.passages[start : start + _BLOCK].to_pylist()
            texts += normalize_texts(block, self.ignore_digits)
            advance(len(block))
        return texts


def contained_texts(texts: list[str], rows: np.ndarray) -> Iterator[tuple[int, int, bool]]:
    """Rows whose text begins or ends a neighbour's in sorted order, or equals an earlier row's.

    Yields:
        (row that falls out, row that stays for it, whether the two are equal), a row once.
    """
    gone: set[int] = set()
    for read in (lambda row: texts[row], lambda row: texts[row][::-1]):
        # the longest of a run of prefixes comes last: from the end, each is compared with the next that stays
        order = sorted((r for r in rows.tolist() if r not in gone), key=lambda r: (read(r), -r))
        stays = None
        for row in reversed(order):
            if stays is not None and read(stays).startswith(read(row)):
                gone.add(row)
                yield row, stays, texts[row] == texts[stays]
            else:
                stays = row


def near_duplicates(
    texts: list[str], rows: list[int], threshold: float, permutations: int
) -> Iterator[tuple[int, int]]:
    """Rows that are nearly equal to an earlier one that stays: (row, the one that stays)."""
    kept = NearTexts(threshold, permutations)
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        for row, hashed in zip(block, kept.hashed([texts[r] for r in block]), strict=True):
            found = kept.find(texts[row], hashed)
            if found is None:
                kept.add(row, texts[row], hashed)
            else:
                yield row, found[0]


def _last(stays: np.ndarray, row: int) -> int:
    while stays[row] != row:
        row = int(stays[row])
    return row
