"""Two caches on disk, by content: token ids of texts, and embeddings of token ids."""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from filelock import FileLock

from datamodules.storage.blocks import run_free_blocks
from datamodules.storage.columns import update_digest
from datamodules.storage.files import atomic_path, remove_leftovers, reserve
from datamodules.storage.progress import progress_bar
from retriever.encoder.encoding import device_of, encode, evaluating
from retriever.encoder.text_encoder import TextEncoder
from retriever.encoder.tokens import TokenizedTexts

Part = TypeVar("Part", range, np.ndarray)
_TEXT_BLOCK = 10_000  # texts whose token ids are one file until all are merged
_EMBEDDING_BLOCK = 2_048  # texts whose embeddings are, of many; of few, a twentieth
_LEAST_EMBEDDING_BLOCK = 256
_EMBED_PART = 65_536  # texts whose embeddings a device holds
_HASHED_IDS = 2**24  # token ids that are hashed at a time


def cached_tokens(texts: Sequence[str], encoder: TextEncoder, kind: str, cache_dir: str | Path) -> TokenizedTexts:
    """Tokenise once per (texts, tokenizer, prompt, maximum length); afterwards memory-mapped files.

    Tokenises in blocks that any process takes which nobody else has taken, so ranks share the work. Each finished block
    is kept, so that a killed run goes on where it stopped.

    Args:
        texts: N texts (a list, or an Arrow string array).
        encoder: whose tokenizer and specification are used.
        kind: ``query`` or ``passage``.
        cache_dir: the cache's folder.

    Returns:
        Ids as uint16 where no token has a higher one than 65,535, else as int32.
    """
    folder, dtype = _tokens_folder(texts, encoder, kind, cache_dir)

    def tokenize(part: range, advance: Callable[[int], None]) -> list[np.ndarray]:
        block = texts[part.start : part.stop]
        tokens = encoder.tokenize(block.to_pylist() if hasattr(block, "to_pylist") else list(block), kind)
        advance(len(part))
        return [tokens.lengths, tokens.ids]

    def merge(blocks: Sequence[Path]) -> None:
        lengths = [np.zeros(1, np.int64)]
        with atomic_path(folder / "ids.bin") as temporary, open(temporary, "wb") as merged:
            for block in blocks:
                with open(block, "rb") as file:
                    lengths.append(np.load(file))
                    merged.write(np.load(file).astype(dtype).data)
        with atomic_path(folder / "offsets.npy") as temporary, open(temporary, "wb") as file:
            np.save(file, np.cumsum(np.concatenate(lengths)))

    starts = range(0, len(texts), _TEXT_BLOCK)
    parts = [range(start, min(start + _TEXT_BLOCK, len(texts))) for start in starts]
    _make_in_blocks(folder, lambda: _is_whole(folder, dtype), parts, tokenize, merge, f"tokenise {kind} texts")
    return _open_tokens(folder, dtype)


def find_tokens(texts: Sequence[str], encoder: TextEncoder, kind: str, cache_dir: str | Path) -> TokenizedTexts | None:
    """What :func:`cached_tokens` would find in the cache; None where it would tokenise."""
    folder, dtype = _tokens_folder(texts, encoder, kind, cache_dir)
    return _open_tokens(folder, dtype) if _is_whole(folder, dtype) else None


def _tokens_folder(
    texts: Sequence[str], encoder: TextEncoder, kind: str, cache_dir: str | Path
) -> tuple[Path, np.dtype]:
    # a vocabulary may have gaps, so its size says too little
    dtype = np.dtype(np.uint16 if max(encoder.tokenizer.get_vocab().values()) < 2**16 else np.int32)
    digest = hashlib.sha256(f"{dtype} {_tokenizer_fingerprint(encoder, kind)}".encode())
    update_digest(digest, texts)
    return Path(cache_dir) / "tokens" / digest.hexdigest()[:32], dtype


def _open_tokens(folder: Path, dtype: np.dtype) -> TokenizedTexts:
    offsets = np.load(folder / "offsets.npy", mmap_mode="r")
    return TokenizedTexts(np.memmap(folder / "ids.bin", dtype, "r") if offsets[-1] else np.zeros(0, dtype), offsets)


def _is_whole(folder: Path, dtype: np.dtype) -> bool:
    """Whether the offsets are there, which are written last, and all the ids that they speak of."""
    ids, offsets = folder / "ids.bin", folder / "offsets.npy"
    if not (ids.is_file() and offsets.is_file()):
        return False
    return ids.stat().st_size == np.load(offsets, mmap_mode="r")[-1] * dtype.itemsize


def _make_in_blocks(
    folder: Path,
    is_whole: Callable[[], bool],
    parts: Sequence[Part],
    make: Callable[[Part, Callable[[int], None]], list[np.ndarray]],
    merge: Callable[[Sequence[Path]], None],
    title: str,
) -> None:
    """Make what a folder caches, in blocks that processes share; those that a killed one left are used.

    Args:
        folder: of the cache.
        is_whole: whether all of it is there.
        parts: the texts of each block.
        make: arrays of a block; calls what it is given with numbers of texts as they are done.
        merge: makes the whole of the blocks' files.
        title: what the progress bar says.
    """
    if not is_whole():
        # their sizes are in their names: another version may have left blocks of others
        blocks = [folder / "blocks" / f"{number:06d}-{len(part)}.npy" for number, part in enumerate(parts)]
        with progress_bar(title, sum(map(len, parts)), "texts") as advance:

            def run(number: int) -> None:
                # in this order: another process may just have merged and be deleting the blocks
                if blocks[number].is_file() or is_whole():
                    advance(len(parts[number]))
                    return
                arrays = make(parts[number], advance)
                with atomic_path(blocks[number]) as temporary, open(temporary, "wb") as file:
                    for array in arrays:
                        np.save(file, array)

            held = run_free_blocks(folder / "locks", range(len(parts)), run)
            # by now only others are at work: wait for them, and do what a killed one left undone
            run_free_blocks(folder / "locks", held, run, wait_for_others=True)
        with FileLock(folder / "lock"):
            if not is_whole():
                remove_leftovers(folder)
                merge(blocks)
    if (folder / "blocks").is_dir():  # the locks stay: another process may just take one
        shutil.rmtree(folder / "blocks", ignore_errors=True)


def cached_embeddings(
    tokens: TokenizedTexts,
    encoder: TextEncoder,
    cache_dir: str | Path,
    token_budget: int | None,
    title: str,
    dtype: str = "float32",
) -> np.memmap:
    """Encode once per (weights, specification, precision, dtype, token ids); afterwards a memory-mapped file.

    Encodes in blocks of texts of nearly one length; each finished block is kept, so that a killed run goes on where it
    stopped. Processes that want the same embeddings at the same time share the blocks. In evaluation mode and without
    gradient, whatever mode the encoder is in.

    Args:
        tokens: N texts.
        encoder: stays as it is.
        cache_dir: the cache's folder; several processes share the work where they share it.
        token_budget: as for :func:`retriever.encoder.encoding.encode`.
        title: what the progress bar says.
        dtype: ``float32`` or ``float16``, of the file.

    Returns:
        [N, D] of ``dtype``, memory-mapped, read-only.
    """
    whole = embeddings_file(tokens, encoder, cache_dir, dtype, tokens.states is not None)

    def embedded(rows: np.ndarray, advance: Callable[[int], None]) -> np.ndarray:
        with evaluating(encoder):
            embeddings = encode(encoder, tokens.select(rows), token_budget, on_micro_batch=advance)
        return embeddings.float().cpu().numpy().astype(dtype, copy=False)

    shape = len(tokens), encoder.dimension
    block = min(_EMBEDDING_BLOCK, max(_LEAST_EMBEDDING_BLOCK, len(tokens) // 20))
    return cached_array(whole, tokens.lengths, block, embedded, shape, dtype, lambda rows: rows, title)


def cached_array(
    whole: Path,
    lengths: np.ndarray,
    block_size: int,
    make: Callable[[np.ndarray, Callable[[int], None]], np.ndarray],
    shape: tuple[int, int],
    dtype: str,
    place: Callable[[np.ndarray], np.ndarray],
    title: str,
) -> np.memmap:
    """Make what is computed of texts, once, in blocks of texts of nearly one length, into one file.

    Each finished block is kept, so that a killed run goes on where it stopped; processes share the blocks.

    Args:
        whole: the file.
        lengths: tokens of each of N texts.
        block_size: texts of a block.
        make: texts as row numbers, and what is called with numbers of texts as they are done → the block's array.
        shape: of the whole.
        dtype: of the whole.
        place: texts as row numbers → where their part of the block belongs in the whole.
        title: what the progress bar says.

    Returns:
        The whole, memory-mapped, read-only.
    """
    order = np.argsort(-lengths, kind="stable") if not whole.is_file() else np.zeros(0, np.int64)
    parts = [order[start : start + block_size] for start in range(0, len(order), block_size)]

    def merge(blocks: Sequence[Path]) -> None:
        with atomic_path(whole) as temporary:
            merged = np.lib.format.open_memmap(temporary, "w+", np.dtype(dtype), shape)
            with open(temporary, "rb+") as file:
                reserve(file, temporary.stat().st_size)
            for block, rows in zip(blocks, parts, strict=True):
                merged[place(rows)] = np.load(block, mmap_mode="r")
            merged.flush()

    _make_in_blocks(whole.parent, whole.is_file, parts, lambda *block: [make(*block)], merge, title)
    return np.load(whole, mmap_mode="r")


def embeddings_file(
    tokens: TokenizedTexts, encoder: TextEncoder, cache_dir: str | Path, dtype: str, from_states: bool
) -> Path:
    """Name the file of :func:`cached_embeddings`, for texts with stored states or without."""
    digest = hashlib.sha256(f"{encoder.fingerprint()} {precision_of(encoder)} {dtype}".encode())
    if from_states:  # in float16, so that embeddings are others by a rounding
        digest.update(b" from stored states")
    update_with_tokens(digest, tokens)
    return Path(cache_dir) / "embeddings" / digest.hexdigest()[:32] / "embeddings.npy"


def embed(
    tokens: TokenizedTexts,
    encoder: TextEncoder,
    token_budget: int | None,
    title: str | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Encode in evaluation mode, without gradient; with a progress bar where ``title`` is given.

    Args:
        tokens: N texts.
        encoder: stays as it is.
        token_budget: as for :func:`retriever.encoder.encoding.encode`.
        title: what the progress bar says.
        out: [N, D] of any floating type, to be filled (may be memory-mapped); None makes a float32 array.

    Returns:
        ``out``.
    """
    if out is None:
        out = np.empty((len(tokens), encoder.dimension), np.float32)
    with evaluating(encoder), progress_bar(title, len(tokens), "texts") as advance:
        # the encoder's device holds the embeddings of one part at a time
        for start in range(0, len(tokens), _EMBED_PART):
            part = tokens.part(start, min(start + _EMBED_PART, len(tokens)))
            embeddings = encode(encoder, part, token_budget, on_micro_batch=advance)
            out[start : start + _EMBED_PART] = embeddings.float().cpu().numpy()
    return out


def update_with_tokens(digest: "hashlib._Hash", tokens: TokenizedTexts) -> None:
    """Feed texts' token ids to a hash, some at a time: they may be more than the memory holds."""
    digest.update(np.ascontiguousarray(tokens.offsets).data)
    for start in range(0, len(tokens.ids), _HASHED_IDS):
        digest.update(np.ascontiguousarray(tokens.ids[start : start + _HASHED_IDS], dtype=np.int32).data)


def precision_of(encoder: TextEncoder) -> str:
    """Name the floating type that an encoder's products are computed in here."""
    device = device_of(encoder).type
    return str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else "float32"


def _tokenizer_fingerprint(encoder: TextEncoder, kind: str) -> str:
    tokenizer = encoder.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        content = sorted(tokenizer.get_vocab().items())
    else:
        # truncation and padding are what the last call left behind
        content = json.loads(backend.to_str()) | {"truncation": None, "padding": None}
    return json.dumps([content, type(tokenizer).__name__, encoder.spec.prompt(kind), encoder.spec.max_length(kind)])
