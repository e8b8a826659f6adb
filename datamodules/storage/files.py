"""Reading lines with their numbers, and writing files that are whole or not there."""

import errno
import io
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from filelock import FileLock

from datamodules.storage.compressed import is_binary, open_bytes, split_ending, what_it_is
from retriever.errors import InputError, causes, require_text, shown

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_ROOM = 2**20


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary name beside ``path``; rename it to ``path`` if the block ends without an error.

    What was written is on the disk before it has its name, so that a power cut leaves no empty file of that name.

    Raises:
        InputError: the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # containers that share a folder may share process numbers, too
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        if temporary.is_file():
            sync(temporary)
        temporary.replace(path)
    except Exception as error:
        if not isinstance(error, InputError) and is_disk_full(error, path.parent):
            raise InputError(disk_full(path)) from error
        raise
    finally:
        if temporary.is_file():
            temporary.unlink()


@contextmanager
def lock_beside(path: Path) -> Iterator[None]:
    """Have the processes that would make ``path`` wait for each other; who comes next looks first whether it is there.

    Neither the lock nor a folder that has stayed empty is left.
    """
    lock = path.with_name(f".{path.name}.lock")
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
            with suppress(OSError):  # it is not empty
                for folder in made:  # the innermost first; another's stays
                    folder.rmdir()


def sync(path: Path) -> None:
    """Have a file's content on the disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def reserve(file: IO[bytes], size: int) -> None:
    """Take room on the disk for so many bytes of a file, written or not: mapped to a full disk, they mean SIGBUS."""
    if size and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)


def remove_leftovers(folder: Path, below: bool = True, names: str = "*") -> None:
    """Remove what killed processes left of files of these names, where no other process is writing them.

    Args:
        folder: where.
        below: also in the folders below it.
        names: a pattern.
    """
    for left in (folder.rglob if below else folder.glob)(f".{names}.tmp"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def is_disk_full(error: BaseException, folder: Path | None = None) -> bool:
    """Whether an error, or what it came from, is that there is no room left; libraries say it in many ways.

    Args:
        error: what was raised.
        folder: where something could not be written; so little room there is the reason, whatever the error says.
    """
    said = ("No space left on device", "database or disk is full")  # the latter by SQLite
    if any(getattr(e, "errno", None) in _FULL or any(words in str(e) for words in said) for e in causes(error)):
        return True
    return folder is not None and shutil.disk_usage(folder).free < _NO_ROOM


def disk_full(path: str | Path) -> str:
    """What to tell the user where there is no room for a file."""
    return (
        f"{path}: cannot be written, for the disk is full, or a quota or a limit of file sizes is reached. Make room "
        "and go on: nothing that was finished is lost."
    )


def write_text(path: str | Path, text: str) -> None:
    """Write a text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_json_lines(path: str | Path, records: Iterable[Mapping[str, Any]]) -> int:
    """Write objects atomically, one a line; return how many."""
    count = 0
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    return count


def file_name(what: str, name: str) -> str:
    """Return a name that files are called by; refuse one that is a path, and so could lead elsewhere."""
    require_text(what, name)
    if name in ("", ".", "..") or any(c in name for c in "/\\\0\n") or len(name) > 200:
        raise InputError(
            f"{what} is {name!r}; files are called by it, so it is at most 200 characters without slashes or line ends."
        )
    return name


def open_text(path: Path, errors: str = "strict", newline: str | None = None) -> IO[str]:
    """Open a UTF-8 text file for reading: decompressed (``.gz``, ``.zst``, ``.bz2``), without a byte order mark."""
    return io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", errors=errors, newline=newline)


def require_file(path: Path) -> Path:
    """Return ``path``, of an existing file.

    Raises:
        InputError: nothing is there, or a folder.
    """
    if is_file(path):
        return path
    raise InputError(f"{path}: {'a folder, where a file is expected' if is_folder(path) else 'no such file'}.")


def is_file(path: str | Path) -> bool:
    """Whether a file is there; a name that is too long for any is none."""
    try:
        return Path(path).is_file()
    except OSError:
        return False


def is_folder(path: str | Path) -> bool:
    """Whether a folder is there; a name that is too long for any is none."""
    try:
        return Path(path).is_dir()
    except OSError:
        return False


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of every line that is not blank.

    Raises:
        InputError: the file is missing, a folder, incomplete, not UTF-8, or may not be read.
    """
    number = 0
    with text_errors(path, lambda: number + 1), open_text(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line.rstrip("\r\n")


@contextmanager
def text_errors(path: Path, line: Callable[[], int]) -> Iterator[None]:
    """Say in words why a text file cannot be read; ``line`` is the one that is being read.

    Raises:
        InputError: as :func:`lines`.
    """
    require_file(path)
    packed = split_ending(path)[1]
    try:
        kind = what_it_is(path) if not packed else ""
        if kind:
            raise InputError(f"{path}:1: {kind}")
        yield
    except UnicodeDecodeError as error:
        remedy = (
            "It seems to be no text; write it as JSON Lines or Parquet."
            if is_binary(path)
            else "Save it as UTF-8, for example with iconv -f LATIN1 -t UTF-8 (or -f UTF-16)."
        )
        raise InputError(f"{path}:{_first_undecodable(path)}: not UTF-8 ({error.reason}). {remedy}") from error
    except EOFError as error:
        kind = what_it_is(path)
        remedy = (
            kind
            if kind and packed not in kind
            else f"The file is incomplete or not {packed[1:]}; fetch or write it again."
        )
        raise InputError(f"{path}:{line()}: cannot be decompressed further ({error}): {remedy}") from error
    except OSError as error:
        raise InputError(
            f"{path}:{line()}: cannot be read on ({error.strerror or error}). Look at its permissions and its disk."
        ) from error


def _first_undecodable(path: Path) -> int:
    """The line: what is decoded is read ahead, so the error comes before the lines in front of it have been seen."""
    with open_text(path, errors="surrogateescape") as file:
        return next(number for number, line in enumerate(file, 1) if _is_broken(line))


def _is_broken(text: str) -> bool:
    """Whether a string holds half a character (a lone surrogate), which no file and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number (from 1) and object of every line of a JSON Lines file.

    Raises:
        InputError: a line is not a JSON object, has a key twice, or a text with half a character.
    """
    for number, line in lines(path):
        yield number, _json_object(f"{path}:{number}", line, "Correct or remove this line.")


def read_json(path: Path, remedy: str = "Remove it, and make it again.") -> dict[str, Any]:
    """The object that a JSON file holds.

    Args:
        path: the file.
        remedy: what to do about a damaged one, a sentence.

    Raises:
        InputError: the file is missing, cannot be read, or holds no JSON object.
    """
    require_file(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a whole JSON file ({error}). {remedy}") from error
    return _json_object(str(path), text, remedy)


def read_kept(path: Path) -> dict[str, Any]:
    """The object of a JSON file of what can be measured again; {} where it is missing or damaged."""
    try:
        return read_json(path)
    except InputError:
        return {}


def _json_object(where: str, text: str, remedy: str) -> dict[str, Any]:
    try:
        value = _DECODER.decode(text)
    except RecursionError as error:
        raise InputError(f"{where}: not JSON that can be read (nested too deeply). {remedy}") from error
    except ValueError as error:
        raise InputError(f"{where}: not JSON ({error}). {remedy}") from error
    if not isinstance(value, dict):
        raise InputError(f"{where}: a JSON {type(value).__name__}, where an object is expected. {remedy}")
    # only an escape makes half a character
    if ("\\ud" in text or "\\uD" in text) and _is_broken(json.dumps(value, ensure_ascii=False)):
        raise InputError(f"{where}: a text has half a character in it (a lone surrogate, \\ud800 to \\udfff). {remedy}")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; JSON itself would silently keep the last of two equal keys."""
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for number, key in enumerate(keys) if key in keys[:number])
        raise ValueError(f"the key {shown(twice)} is twice in one object")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_without_repeats)  # json.loads would make one for every line
