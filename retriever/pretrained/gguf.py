"""Unpacks a chat model that a Python package carries as one GGUF file into a folder for transformers and vLLM."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from filelock import FileLock

from retriever.errors import InputError
from retriever.pretrained.packaged import packaged_path


def unpacked_gguf(distribution_name: str, file: str, sha256: str, cache_dir: str | Path) -> Path | None:
    """Find a GGUF file inside an installed package, and write it once as safetensors in float32.

    Args:
        distribution_name: name on the package index.
        file: the GGUF file, relative to site-packages.
        sha256: what it must hash to.
        cache_dir: where the unpacked folder is kept.

    Returns:
        The folder (config.json, model.safetensors, tokenizer), or None where the package is not installed.

    Raises:
        InputError: the file is not the expected one, or a package that reads GGUF is missing.
    """
    path = packaged_path(distribution_name, file, sha256)
    if path is None:
        return None
    folder = Path(cache_dir) / "models" / f"{path.stem}-{sha256[:12]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / "model.safetensors").is_file():
            _unpack(path, folder)
    return folder


def _unpack(path: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except ImportError as error:
        raise InputError(f"{path}: reading GGUF needs two more packages: pip install '.[gguf]'") from error
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    with TemporaryDirectory(dir=folder.parent) as temporary:
        made = Path(temporary) / "model"
        tokenizer.save_pretrained(made)
        settings = made / "tokenizer_config.json"
        # vLLM does not know the class that reads GGUF
        settings.write_text(
            json.dumps(json.loads(settings.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}, indent=2)
        )
        model.save_pretrained(made)
        made.replace(folder)
