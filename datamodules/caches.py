"""Two caches on disk, by content: token ids of texts, and embeddings of token ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from datamodules.files import atomic_path
from datamodules.progress import progress_bar
from retriever.encoder import TextEncoder
from retriever.encoding import device_of, encode
from retriever.tokens import TokenizedTexts

_TEXT_BLOCK = 10_000
_EMBEDDING_BLOCK = 2_048


def cached_tokens(texts: Sequence[str], encoder: TextEncoder, kind: str, cache_dir: str | Path) -> TokenizedTexts:
    """Tokenise once per (texts, tokenizer, prompt, maximum length); afterwards a memory-mapped file.

    Args:
        texts: N texts (a list, or an Arrow string array).
        encoder: whose tokenizer and specification are used.
        kind: ``query`` or ``passage``.
        cache_dir: the cache's folder.
    """
    digest = hashlib.sha256(_tokenizer_fingerprint(encoder, kind).encode())
    for start in range(0, len(texts), _TEXT_BLOCK):
        for text in _strings(texts[start : start + _TEXT_BLOCK]):
            digest.update(hashlib.sha256(text.encode()).digest())
    folder = Path(cache_dir) / "tokens" / digest.hexdigest()[:32]
    return _load_or_make(folder, lambda: _tokenize(texts, encoder, kind, folder))


def _tokenize(texts: Sequence[str], encoder: TextEncoder, kind: str, folder: Path) -> TokenizedTexts:
    lengths = []
    with (
        atomic_path(folder / "ids.bin") as temporary,
        open(temporary, "wb") as file,
        progress_bar(f"tokenise {kind} texts", len(texts), "texts") as advance,
    ):
        for start in range(0, len(texts), _TEXT_BLOCK):
            tokens = encoder.tokenize(_strings(texts[start : start + _TEXT_BLOCK]), kind)
            file.write(tokens.ids.astype(np.int32).tobytes())
            lengths.append(tokens.lengths)
            advance(len(tokens))
    with atomic_path(folder / "offsets.npy") as temporary, open(temporary, "wb") as file:
        np.save(file, np.concatenate([[0], np.cumsum(np.concatenate(lengths or [[]]))]).astype(np.int64))
    return _open_tokens(folder)


def _load_or_make(folder: Path, make: Callable[[], TokenizedTexts]) -> TokenizedTexts:
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        # the offsets are written last: where they are, all is
        return _open_tokens(folder) if (folder / "offsets.npy").is_file() else make()


def _open_tokens(folder: Path) -> TokenizedTexts:
    offsets = np.load(folder / "offsets.npy")
    ids = np.memmap(folder / "ids.bin", np.int32, "r") if offsets[-1] else np.zeros(0, np.int32)
    return TokenizedTexts(ids, offsets)


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
