"""What readers make of damaged files: a verdict on each case, the damages, and plain readings to hold results against.

The plain readings share no code with the product. Each gives what a valid file says, or None where the file is not
valid; then the only admissible outcome is one sentence.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from retriever.errors import InputError

REFUSED = None
LARGEST = float(np.finfo(np.float32).max)
LIST_KEYS = ("query_id", "query", "query_type", "corpus", "positive_ids", "passage_ids", "teacher_scores")


@dataclass
class Tally:
    """Counts of cases, and what was found wrong."""

    cases: int = 0
    right: int = 0
    refused: int = 0
    crashes: list[str] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)

    def judge(
        self, case: str, read: Callable[[], Any], *admissible: Any, where: str = "", may_refuse: bool = True
    ) -> None:
        """Read, and judge.

        Args:
            case: its name.
            read: gives a value that can be compared.
            admissible: right values; none (or ``REFUSED`` alone) where only a sentence will do.
            where: what the sentence must name, as a rule the file.
            may_refuse: whether a sentence will do, too.
        """
        self.cases += 1
        try:
            value = read()
        except InputError as error:
            wrong = "refused what is right" if not may_refuse else unhelpful(str(error), where)
            if wrong:
                self.crashes.append(f"{case}: {wrong}: {str(error)[:400]!r}")
            self.refused += not wrong
        except Exception as error:
            self.crashes.append(f"{case}: {type(error).__name__}: {str(error)[:300]}")
        else:
            if any(value == right for right in admissible if right is not REFUSED):
                self.right += 1
            else:
                self.losses.append(f"{case}: read {str(value)[:200]}, admissible {str(admissible)[:200]}")

    def refuse_findings(self) -> None:
        """Fail with all that was found wrong, once."""
        found = [*self.crashes, *self.losses]
        assert not found, "\n".join(found[:20])

    def __str__(self) -> str:
        return (
            f"fuzz suite: {self.cases:,} cases, {self.right:,} read rightly, {self.refused:,} refused in one sentence, "
            f"{len(self.crashes)} crashes, {len(self.losses)} silent losses"
        )


def unhelpful(message: str, where: str) -> str:
    """What is wrong with a message; empty where it is one line that names the place and is no library's."""
    if "\n" in message or len(message) > 1_500:
        return "not one sentence"
    if where not in message:
        return f"does not name {where}"
    if any(sign in message for sign in ("Traceback", "object at 0x", "<class")):
        return "a library's own words"
    return "" if message.rstrip().endswith((".", ")", "?")) else "no whole sentence"


def damages(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Ways in which real files go wrong, name and bytes; some leave the content as it was."""
    middle = len(data) // 2
    yield "empty", b""
    yield "blank lines alone", b"\n \n\r\n"
    yield "cut in the middle", data[:middle]
    yield "last byte missing", data[:-1]
    yield "first byte missing", data[1:]
    yield "CRLF", data.replace(b"\n", b"\r\n")
    yield "byte order mark", codecs.BOM_UTF8 + data
    yield "two byte order marks", codecs.BOM_UTF8 * 2 + data
    yield "twice", data + data
    yield "twice, with byte order marks", (codecs.BOM_UTF8 + data) * 2
    yield "NUL bytes at the end", data + b"\0" * 16
    yield "NUL bytes at the front", b"\0" * 16 + data
    yield "NUL bytes in the middle", data[:middle] + b"\0\0" + data[middle:]
    yield "NUL page", data[:middle] + b"\0" * 64 + data[middle + 64 :]
    yield "a byte that is no UTF-8", data[:middle] + b"\xe9" + data[middle:]
    yield "last byte no UTF-8", data.rstrip() + b"\xff\n"
    yield "blank lines between", data.replace(b"\n", b"\n\n")
    yield "no newline at the end", data.rstrip(b"\n")
    yield "junk", bytes(range(256)) * 4
    yield "a web page", b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n"
    yield "an LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    yield "deep nesting", b"[" * 100_000
    yield "deep objects", b'{"_id":' * 50_000
    yield "a list", b"[1, 2]\n"
    yield "null", b"null\n"
    yield "a number", b"1e999\n"
    yield "a huge integer", b"9" * 5_000 + b"\n"
    yield "gzip", gzip.compress(data)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return
    for encoding in ("utf-16", "utf-16-le", "utf-32", "shift-jis", "latin-1"):
        other = text.encode(encoding, "ignore")
        if other != text.encode(errors="ignore") and not _is_ascii(other):  # else nobody can see it
            yield encoding, other


def _is_ascii(data: bytes) -> bool:
    return data.isascii() and b"\0" not in data


def plain_text(data: bytes) -> str | None:
    """UTF-8, a byte order mark aside."""
    try:
        return data.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError:
        return None


def plain_lines(data: bytes) -> list[tuple[int, str]] | None:
    """Lines that are not blank, with their numbers."""
    text = plain_text(data)
    if text is None:
        return None
    rows = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [(number, row) for number, row in enumerate(rows, 1) if row.strip()]


def plain_objects(data: bytes) -> list[tuple[int, dict]] | None:
    """Objects of JSON Lines without repeated keys and halves of characters."""
    rows = plain_lines(data)
    if rows is None:
        return None
    found = []
    for number, row in rows:
        try:
            pairs = json.loads(row, object_pairs_hook=_pairs)
            json.dumps(pairs, ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            return None
        if not isinstance(pairs, dict):
            return None
        found.append((number, pairs))
    return found


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError
    return dict(pairs)


def plain_gzip(data: bytes) -> bytes | None:
    """Decompressed, or None."""
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error):
        return None


def plain_bzip2(data: bytes) -> bytes | None:
    """Decompressed, or None."""
    found = b""
    while data:
        stream = bz2.BZ2Decompressor()
        try:
            found += stream.decompress(data)
        except OSError:
            return None
        if not stream.eof:
            return None
        data = stream.unused_data
    return found


def _identifier(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    value = str(value)
    return value if value.strip() and "\0" not in value else None


def plain_corpus(data: bytes) -> list[tuple[str, str, str]] | None:
    """Id, title and text of each passage."""
    found = plain_objects(data)
    if not found:
        return None
    rows = []
    for _, record in found:
        passage = _identifier(record.get("_id"))
        title, text = (record.get(key) if record.get(key) is not None else "" for key in ("title", "text"))
        if passage is None or not isinstance(title, str) or not isinstance(text, str) or not (title + text).strip():
            return None
        rows.append((passage, title, text))
    return rows if len({row[0] for row in rows}) == len(rows) else None


def plain_queries(data: bytes) -> dict[str, str] | None:
    """Id → text; an empty file says of no query."""
    found = plain_objects(data)
    if found is None:
        return None
    texts = [(_identifier(record.get("_id")), record.get("text")) for _, record in found]
    if any(name is None or not isinstance(text, str) or not text.strip() for name, text in texts):
        return None
    return dict(texts) if len(dict(texts)) == len(texts) else None


def plain_qrels(data: bytes) -> dict[str, dict[str, int]] | None:
    """Query id → passage id → grade, of BEIR's three columns and what is behind them, or of TREC's four."""
    rows = plain_lines(data)
    if rows is None:
        return None
    spaced = [row if "\t" in row or len(row.split()) != 4 else "\t".join(row.split()) for _, row in rows]
    table = [(number, row.split("\t")) for (number, _), row in zip(rows, spaced, strict=True)]
    places, beir = None, {}
    if table and table[0][0] == 1:
        names = [name.strip() for name in table[0][1] if name.strip()]
        if "score" in (names[2:3] + names[-1:]) and not any(map(_is_grade, names)):
            passage = names.index("corpus-id") if "corpus-id" in names else 1
            places = passage, names.index("score")
            named = "corpus-id" in names or places == (1, 2)
            table = table[1:]
    trec: dict[str, dict[str, int]] = {}
    could_be = {"beir", "trec"}
    for _, columns in table:
        while len(columns) > 3 and not columns[-1].strip():
            columns = columns[:-1]
        if len(columns) < 3 or not columns[0].strip() or not columns[1].strip() or "\0" in "\t".join(columns):
            return None
        if places and named:
            at, grade = places
            if len(columns) <= grade or not all(map(str.strip, columns[:grade])) or not _is_grade(columns[grade]):
                return None
            if not _put(beir, columns[0], columns[at], columns[grade]):
                return None
            continue
        query, second, third, *more = columns
        zero = second.strip() in ("0", "Q0")
        plainly = len(columns) == 3 or (not zero and not any(map(_is_grade, more)))
        if not (plainly and _is_grade(third) and _put(beir, query, second, third)):
            could_be -= {"beir"}
        four = len(more) == 1 and (zero or (_is_grade(second) and not _is_grade(third)))
        if not (
            four and columns[2].strip() and _is_grade(columns[3]) and _put(trec, columns[0], columns[2], columns[3])
        ):
            could_be -= {"trec"}
    if places and named:
        return beir
    return {} if not table else beir if could_be == {"beir"} else trec if could_be == {"trec"} else None


def _is_grade(text: str) -> bool:
    text = text.strip()
    digits = text[1:] if text[:1] in ("-", "+") else text
    return digits.isascii() and digits.isdigit() and len(digits) < 10 and int(digits) <= 1_000_000


def _put(found: dict[str, dict[str, int]], query: str, passage: str, grade: str) -> bool:
    """Note a judgement; False where the pair was judged already."""
    new = passage not in found.setdefault(query, {})
    found[query].setdefault(passage, int(grade))
    return new


def plain_lists(data: bytes) -> list[tuple] | None:
    """Line and content of each list as it stands in the file, scores in 32 bits."""
    found = plain_objects(data)
    if not found:
        return None
    rows = []
    for number, record in found:
        if any(key not in record for key in LIST_KEYS):
            return None
        texts = [record[key] for key in LIST_KEYS[:4]]
        if not all(isinstance(text, str) and text.strip() for text in texts):
            return None
        positives, passages, scores = (record[key] for key in LIST_KEYS[4:])
        if not all(isinstance(ids, list) and all(isinstance(i, str) for i in ids) for ids in (positives, passages)):
            return None
        if not isinstance(scores, list) or not all(type(score) in (int, float) for score in scores):
            return None
        rows.append((number, *texts, tuple(positives), tuple(passages), tuple(map(in_32_bits, scores))))
    return rows


def in_32_bits(score: float) -> float:
    """As float32 holds it."""
    if score != score:
        return float("nan")
    if abs(score) > 2 * LARGEST:
        return float("inf") if score > 0 else float("-inf")
    with np.errstate(over="ignore"):
        return float(np.float32(score))


def passes(row: tuple, corpus: str, known: set[str]) -> bool:
    """Whether a list passes the checks of training."""
    _, _, _, _, _, positives, passages, scores = row
    return (
        len(passages) == len(scores) >= 2
        and set(passages) <= known
        and set(positives) <= known
        and len(set(passages)) == len(passages)
        and all(abs(score) <= LARGEST for score in scores)
        and len(set(scores)) > 1
    )


def best_first(row: tuple) -> tuple:
    """A list as training takes it; ties stay in the file's order."""
    number, query_id, query, query_type, _, positives, passages, scores = row
    order = sorted(range(len(scores)), key=lambda at: -scores[at])
    ranked = tuple(passages[at] for at in order), tuple(scores[at] for at in order)
    return (number, query_id, query, query_type, positives, *ranked)
