"""Two caches on disk, by content: token ids of texts, and embeddings of token ids."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout

from datamodules.columns import update_digest
from datamodules.files import atomic_path
from datamodules.progress import progress_bar
from retriever.encoder import TextEncoder
from retriever.encoding import device_of, encode
from retriever.tokens import TokenizedTexts

_TEXT_BLOCK = 10_000
_EMBEDDING_BLOCK = 2_048


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
    # a vocabulary may have gaps, so its size says too little
    dtype = np.dtype(np.uint16 if max(encoder.tokenizer.get_vocab().values()) < 2**16 else np.int32)
    digest = hashlib.sha256(f"{dtype} {_tokenizer_fingerprint(encoder, kind)}".encode())
    update_digest(digest, texts)
    folder = Path(cache_dir) / "tokens" / digest.hexdigest()[:32]
    if not _is_whole(folder, dtype):
        _tokenize_blocks(texts, encoder, kind, folder, dtype)
        with FileLock(folder / "lock"):
            if not _is_whole(folder, dtype):
                _merge_tokens(folder, -(-len(texts) // _TEXT_BLOCK), dtype)
    offsets = np.load(folder / "offsets.npy", mmap_mode="r")
    return TokenizedTexts(np.memmap(folder / "ids.bin", dtype, "r") if offsets[-1] else np.zeros(0, dtype), offsets)


def _tokenize_blocks(texts: Sequence[str], encoder: TextEncoder, kind: str, folder: Path, dtype: np.dtype) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    left = list(range(-(-len(texts) // _TEXT_BLOCK)))
    with progress_bar(f"tokenise {kind} texts", len(texts), "texts") as advance:
        for patience in (0, -1):  # first what nobody has taken; then wait for the others, and do what a dead one left
            for number in left.copy():
                block = texts[number * _TEXT_BLOCK : (number + 1) * _TEXT_BLOCK]
                with suppress(Timeout), FileLock(folder / f"{number:06d}.lock", timeout=patience):
                    if not (_token_block(folder, number).is_file() or _is_whole(folder, dtype)):
                        tokens = encoder.tokenize(_strings(block), kind)
                        with atomic_path(_token_block(folder, number)) as temporary, open(temporary, "wb") as file:
                            np.save(file, tokens.lengths)
                            np.save(file, tokens.ids)
                    left.remove(number)
                    advance(len(block))


def _merge_tokens(folder: Path, blocks: int, dtype: np.dtype) -> None:
    lengths = [np.zeros(1, np.int64)]
    with atomic_path(folder / "ids.bin") as temporary, open(temporary, "wb") as merged:
        for number in range(blocks):
            with open(_token_block(folder, number), "rb") as file:
                lengths.append(np.load(file))
                merged.write(np.load(file).astype(dtype).data)
    with atomic_path(folder / "offsets.npy") as temporary, open(temporary, "wb") as file:
        np.save(file, np.cumsum(np.concatenate(lengths)))
    shutil.rmtree(folder / "blocks", ignore_errors=True)
    for lock in folder.glob("*[0-9].lock"):
        lock.unlink()


def _is_whole(folder: Path, dtype: np.dtype) -> bool:
    """Whether the offsets are there, which are written last, and all the ids that they speak of."""
    ids, offsets = folder / "ids.bin", folder / "offsets.npy"
    if not (ids.is_file() and offsets.is_file()):
        return False
    return ids.stat().st_size == np.load(offsets, mmap_mode="r")[-1] * dtype.itemsize


def _token_block(folder: Path, number: int) -> Path:
    return folder / "blocks" / f"{number:06d}.npy"


def cached_embeddings(
    tokens: TokenizedTexts, encoder: TextEncoder, cache_dir: str | Path, token_budget: int, title: str
) -> np.ndarray:
    """Encode once per (weights, specification, precision, token ids); afterwards a memory-mapped file.

    Encodes in blocks of texts of nearly one length; each finished block is kept, so that a killed run goes on where it
    stopped. In evaluation mode and without gradient, whatever mode the encoder is in.

    Args:
        tokens: N texts.
        encoder: stays as it is.
        cache_dir: the cache's folder.
        token_budget: as for :func:`retriever.encoding.encode`.
        title: what the progress bar says.

    Returns:
        float32 [N, D], memory-mapped, read-only.
    """
    digest = hashlib.sha256(f"{encoder.fingerprint()} {_precision(encoder)}".encode())
    digest.update(np.ascontiguousarray(tokens.offsets).tobytes())
    digest.update(np.ascontiguousarray(tokens.ids).tobytes())
    folder = Path(cache_dir) / "embeddings" / digest.hexdigest()[:32]
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / "embeddings.npy"
    with FileLock(folder / "lock"):
        if not whole.is_file():
            _encode_in_blocks(tokens, encoder, folder, whole, token_budget, title)
    return np.load(whole, mmap_mode="r")


def embed(tokens: TokenizedTexts, encoder: TextEncoder, token_budget: int, title: str | None = None) -> np.ndarray:
    """Encode in evaluation mode, without gradient: float32 [N, D]; with a progress bar where ``title`` is given."""
    training = encoder.training
    encoder.eval()
    try:
        with torch.inference_mode(), progress_bar(title, len(tokens), "texts") as advance:
            return encode(encoder, tokens, token_budget, on_micro_batch=advance).float().cpu().numpy()
    finally:
        encoder.train(training)


def _encode_in_blocks(
    tokens: TokenizedTexts, encoder: TextEncoder, folder: Path, whole: Path, token_budget: int, title: str
) -> None:
    order = np.argsort(-tokens.lengths, kind="stable")
    blocks = [order[start : start + _EMBEDDING_BLOCK] for start in range(0, len(order), _EMBEDDING_BLOCK)]
    names = [folder / f"block-{number:06d}.npy" for number in range(len(blocks))]
    training = encoder.training
    encoder.eval()
    with torch.inference_mode(), progress_bar(title, len(tokens), "texts") as advance:
        for name, rows in zip(names, blocks, strict=True):
            if name.is_file():
                advance(len(rows))
                continue
            embeddings = encode(encoder, tokens.select(rows), token_budget, on_micro_batch=advance)
            with atomic_path(name) as temporary, open(temporary, "wb") as file:
                np.save(file, embeddings.float().cpu().numpy())
    encoder.train(training)
    with atomic_path(whole) as temporary:
        merged = np.lib.format.open_memmap(temporary, "w+", np.float32, (len(tokens), encoder.dimension))
        for name, rows in zip(names, blocks, strict=True):
            merged[rows] = np.load(name)
        merged.flush()
    for name in names:
        name.unlink()


def _precision(encoder: TextEncoder) -> str:
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


def _strings(texts: Sequence[str]) -> list[str]:
    return texts.to_pylist() if hasattr(texts, "to_pylist") else list(texts)
