"""Reading compressed files in a stream, and telling by its first bytes what a file is."""

import gzip
import io
import zlib
from pathlib import Path
from typing import IO, Any

from retriever.errors import InputError

ENDINGS = (".gz", ".zst", ".bz2")
MOST_TIMES = 100  # that a file may grow; text grows by 3 to 5
SMALL = 2**24  # bytes that are no bomb, however they were packed
_HEAD = 512
# First bytes → what begins so, and what to do with it.
_KINDS = (
    (b"\x1f\x8b", "a gzip file", "Let its name end in .gz."),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive", "Let its name end in .zst."),
    *((b"BZh%d1AY&SY" % level, "a bzip2 file", "Let its name end in .bz2.") for level in range(1, 10)),
    (b"\xfd7zXZ\0", "an xz file", "Decompress it: xz --decompress FILE."),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "Unpack it first."),
    (b"PK\x03\x04", "a zip archive (as Excel's files are, too)", "Unpack it, or save it as CSV."),
    (b"PAR1\x15", "a Parquet file", "Let its name end in .parquet."),
    (b"ARROW1\0\0", "an Arrow file", "Let its name end in .arrow."),
    (b"\xff\xff\xff\xff", "an Arrow stream", "Let its name end in .arrow."),
    (b"SQLite format 3\0", "an SQLite database", "Export its table as CSV."),
    (b"\x89HDF", "an HDF5 file", "Write its table as Parquet."),
    (b"\x93NUMPY", "an array of NumPy", "Write it as JSON Lines or Parquet."),
    (b"%PDF", "a PDF document", "Write its text as JSON Lines."),
    *((bytes([0x80, number]), "a pickle, which is never read here", "Write it as Parquet.") for number in range(2, 6)),
)


def split_ending(path: Path) -> tuple[str, str]:
    """The ending that says what a file holds, and the ending of its compression: ``('.jsonl', '.gz')``, or ``''``."""
    packed = path.suffix if path.suffix in ENDINGS else ""
    return Path(path.name.removesuffix(packed)).suffix, packed


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file for reading; one whose name ends in one of ``ENDINGS`` is decompressed as it is read.

    Raises:
        EOFError: on reading, where the file is cut off or damaged.
        InputError: on reading, where it grows beyond all texts (``MOST_TIMES``).
    """
    packed = split_ending(path)[1]
    if not packed:
        return path.open("rb")
    stream = gzip.GzipFile(path) if packed == ".gz" else _arrows(path, packed)
    return io.BufferedReader(_Decompressed(path, stream), 2**17)


def _arrows(path: Path, packed: str) -> Any:
    import pyarrow as pa

    return pa.CompressedInputStream(pa.OSFile(str(path), "rb"), {".zst": "zstd", ".bz2": "bz2"}[packed])


class _Decompressed(io.RawIOBase):
    """What a decompressor gives, as long as it is no bomb."""

    def __init__(self, path: Path, stream: Any) -> None:
        self._path, self._stream = path, stream
        self._left = max(SMALL, MOST_TIMES * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except zlib.error as error:
            raise EOFError(str(error)) from error
        except OSError as error:
            if error.errno is not None:  # the disk's
                raise
            raise EOFError(str(error)) from error
        self._left -= len(data)
        if self._left < 0:
            packed = self._path.stat().st_size
            raise InputError(
                f"{self._path}: its {packed:,} bytes become more than {max(SMALL, MOST_TIMES * packed):,}, which no "
                "text does. It is not read further; if it is right, decompress it."
            )
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


def what_it_is(path: Path) -> str:
    """What a file is that is no text, and what to do about it, in two sentences; empty where that cannot be told."""
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    for begin, kind, remedy in _KINDS:
        if head.startswith(begin):
            return f"this is {kind}, whatever its name says. {remedy}"
    if head[257:262] == b"ustar":
        return "this is a tar archive. Unpack it first."
    return ""


def is_binary(path: Path) -> bool:
    """Whether the beginning of a file holds bytes that stand in no text, in whatever 8-bit encoding."""
    with open_bytes(path) as file:
        head = file.read(_HEAD)
    return b"\0" in head and not head.startswith((b"\xff\xfe", b"\xfe\xff"))
