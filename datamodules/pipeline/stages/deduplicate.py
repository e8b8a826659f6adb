"""Stage deduplicate: passages that say the same as another one are left out of what queries are written from."""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datamodules.corpus import Corpus
from datamodules.pipeline.stages.stage import Blocks, Stage, table_writer
from datamodules.storage.parquet import ROW_GROUP, regrouped
from datamodules.storage.sorted_texts import SortedTexts
from datamodules.text.near_texts import NearTexts, band_hashes, checked_threshold, groups_with_bands_in_common
from datamodules.text.words import METHOD, count_characters, normalize_texts
from retriever.errors import require_positive

KEPT = pa.schema([("passage_id", pa.string())])
REMOVED = pa.schema([("passage_id", pa.string()), ("reason", pa.string()), ("kept_id", pa.string())])
_BLOCK = 10_000
_WRITTEN = 131_072  # passages whose verdicts are written together
_KEPT, _SHORT, _EQUAL, _CONTAINED, _NEAR = range(5)


@dataclass(eq=False)
class Deduplicate(Stage):
    """Exact, contained and near duplicates.

    Texts are compared after :func:`~datamodules.text.words.normalize_texts`. A text that a neighbour in sorted order
    begins with, or, sorted by the reversed texts, ends with, is contained in it and falls out (arXiv 2505.19274's
    code); of equal texts the first of the corpus stays. Near duplicates are found by MinHash (``rensa``) and verified
    by the exact Jaccard similarity of their three-word shingles; a letter of a script without spaces is a word there.

    Texts are normalised and hashed in blocks; sorted and compared they are on the disk, which takes their size three
    times and 8 bytes a passage and band of MinHash. In memory are a few numbers for each passage, and no texts but
    those that are being compared: of passages that resemble one another, those that stay.

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
        """Passages of each block."""
        return [min(_BLOCK, len(self.corpus) - start) for start in range(0, len(self.corpus), _BLOCK)]

    def run_block(self, number: int, advance: Callable[[int], None]) -> pa.Table:
        """The normalised texts, null where one is too short, and the hashes of their MinHash' bands, [n · bands]."""
        passages = self.corpus.passages[number * _BLOCK : (number + 1) * _BLOCK].to_pylist()
        texts = normalize_texts(passages, self.ignore_digits)
        short = np.array([count_characters(t) < self.min_characters for t in texts], dtype=bool)
        table = pa.table({"text": pa.array(texts, pa.string(), mask=short)})
        if self.near_jaccard is not None:
            hashes = band_hashes(texts, self.near_jaccard, self.permutations)
            bands = pa.FixedSizeListArray.from_arrays(pa.array(hashes.ravel()), hashes.shape[1])
            table = table.append_column("bands", bands)
        advance(len(texts))
        return table

    def finish(self, blocks: Blocks, folder: Path) -> dict[str, Any]:
        """See :class:`Stage`."""
        verdict, stays = np.full(len(self.corpus), _SHORT, np.int8), np.arange(len(self.corpus))
        with (
            tempfile.TemporaryDirectory(dir=folder, prefix=".compared-", suffix=".tmp") as scratch,
            SortedTexts(Path(scratch)) as texts,
        ):
            bands = _write_texts(blocks, texts, Path(scratch), verdict)
            for row, other, equal in contained_texts(texts, len(verdict)):
                verdict[row], stays[row] = _EQUAL if equal else _CONTAINED, other
            if self.near_jaccard is not None:
                for rows in groups_with_bands_in_common(bands, np.flatnonzero(verdict == _KEPT), _BLOCK):
                    for row, other in near_duplicates(texts, rows.tolist(), self.near_jaccard, self.permutations):
                        verdict[row], stays[row] = _NEAR, other
        with (
            table_writer(folder / "passages.parquet", KEPT) as write_kept,
            table_writer(folder / "removed.parquet", REMOVED) as write_removed,
        ):
            for table in regrouped(self._kept(verdict), ROW_GROUP):
                write_kept(table)
            for table in regrouped(self._removed(verdict, stays), ROW_GROUP):
                write_removed(table)
        counts = Counter({self._reason(code): int((verdict == code).sum()) for code in np.unique(verdict)})
        return {"passages": counts.total(), "kept": counts["kept"], **dict(sorted(counts.items()))}

    def _kept(self, verdict: np.ndarray) -> Iterator[pa.Table]:
        for start in range(0, len(verdict), _WRITTEN):
            ids = self.corpus.ids[start : start + _WRITTEN]
            yield pa.table([ids.filter(pa.array(verdict[start : start + _WRITTEN] == _KEPT))], schema=KEPT)

    def _removed(self, verdict: np.ndarray, stays: np.ndarray) -> Iterator[pa.Table]:
        for start in range(0, len(verdict), _WRITTEN):
            rows = start + np.flatnonzero(verdict[start : start + _WRITTEN] != _KEPT)
            # what stays in a passage's place may have fallen out later itself: follow it to the one that is there
            last = np.array([_last(stays, row) for row in rows.tolist()], np.int64)
            kept = self.corpus.ids.take(pa.array(last, mask=verdict[rows] == _SHORT))
            reasons = pa.array([self._reason(code) for code in verdict[rows]], pa.string())
            yield pa.table([self.corpus.ids.take(pa.array(rows)), reasons, kept], schema=REMOVED)

    def _reason(self, code: int) -> str:
        return ("kept", f"under {self.min_characters} characters", "equal", "contained", "nearly equal")[code]


def _write_texts(blocks: Iterable[pa.Table], texts: SortedTexts, folder: Path, verdict: np.ndarray) -> list[np.ndarray]:
    """Put the texts of all blocks where they are sorted; return each band's hashes, memory-mapped uint64 [N]."""
    start, bands = 0, 0
    for table in blocks:
        rows = start + np.flatnonzero(pc.is_valid(table["text"]).to_numpy())
        texts.append(zip(rows.tolist(), table["text"].drop_null().to_pylist(), strict=True))
        verdict[rows] = _KEPT
        if "bands" in table.column_names:
            bands = table.schema.field("bands").type.list_size
            values = table["bands"].combine_chunks().flatten().to_numpy().reshape(len(table), bands)
            for number in range(bands):
                with open(folder / f"{number}.band", "ab") as file:
                    file.write(np.ascontiguousarray(values[:, number]).data)
        start += len(table)
    return [np.memmap(folder / f"{number}.band", np.uint64, "r") for number in range(bands)]


def contained_texts(texts: SortedTexts, rows: int) -> Iterator[tuple[int, int, bool]]:
    """Rows whose text begins or ends a neighbour's in sorted order, or equals an earlier row's.

    Args:
        texts: of some of the rows.
        rows: how many there are.

    Yields:
        (row that falls out, row that stays for it, whether the two are equal), a row once.
    """
    gone = np.zeros(rows, dtype=bool)
    for reverse in (False, True):
        # the longest of a run of prefixes comes first: each is compared with the last that stays
        stays, longest = -1, ""
        for row, text in texts.descending(reverse):
            if gone[row]:
                continue
            if stays >= 0 and longest.startswith(text):
                gone[row] = True
                yield row, stays, text == longest
            else:
                stays, longest = row, text


def near_duplicates(
    texts: SortedTexts, rows: list[int], threshold: float, permutations: int
) -> Iterator[tuple[int, int]]:
    """Rows that are nearly equal to an earlier one that stays: (row, the one that stays)."""
    kept = NearTexts(threshold, permutations)
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        found = texts.read(block)
        for row, text, hashed in zip(block, found, kept.hashed(found), strict=True):
            near = kept.find(text, hashed)
            if near is None:
                kept.add(row, text, hashed)
            else:
                yield row, near[0]


def _last(stays: np.ndarray, row: int) -> int:
    while stays[row] != row:
        row = int(stays[row])
    return row
