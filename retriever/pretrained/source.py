"""Finds where a named model is loaded from: an installed package, a folder, or the hub at one commit."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from retriever.errors import InputError, did_you_mean
from retriever.pretrained.packaged import packaged_path

# what says how a model is used, and its Dense modules; other weights are fetched by transformers, those that it needs
_SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*_Dense/*")
_NOT_THE_MODEL = ("onnx/*", "openvino/*")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
_WITHOUT_VOCABULARY = re.compile(r'"tokenizer_class": "(ByT5|Canine|Perceiver)Tokenizer"')
_COMMIT = re.compile(r"[0-9a-f]{40}")
_EXPECTED = "a folder that holds config.json, model.safetensors and tokenizer.json"


@dataclass(frozen=True)
class ModelSource:
    """A model's files.

    Attributes:
        load_from: what ``transformers`` loads: a folder, or a hub name.
        revision: the commit on the hub; None for a folder.
        files: the folder that holds the files that say how the model is used.
        origin: where the weights come from, in words.
    """

    load_from: str
    revision: str | None
    files: Path
    origin: str


def find_model(
    model: str, revision: str | None = None, packaged: Mapping[str, str] | None = None, setting: str = "encoder.model"
) -> ModelSource:
    """Find a model that a user names.

    Args:
        model: a folder, or a name on the hub.
        revision: branch, tag or commit on the hub; None takes the newest.
        packaged: ``distribution``, ``folder`` and ``sha256`` of a Python package that carries these weights; used where
            it is installed and no revision is asked for.
        setting: how the user names the model, for messages.

    Raises:
        InputError: no such folder, or one without a model in it; nothing of this name on the hub or in its cache.
    """
    if packaged and revision is None:
        place = packaged["distribution"], packaged["folder"], packaged["sha256"]
        folder = packaged_path(*place, "model.safetensors")
        if folder is not None:
            name = packaged["distribution"]
            return ModelSource(str(folder), None, folder, f"package {name} {version(name)}")
    folder = local_folder(model, revision, setting)
    if folder is not None:
        _check_folder(folder, setting)
        return ModelSource(str(folder), None, folder, f"folder {folder.absolute()}")
    files = _snapshot(model, revision, setting)
    commit = files.name if _COMMIT.fullmatch(files.name) else revision
    return ModelSource(model, commit, files, f"hub {model} at {commit or 'an unknown revision'}")


def local_folder(model: str, revision: str | None = None, setting: str = "encoder.model") -> Path | None:
    """Find the folder that a user names as a model; None where the name is one for the hub.

    What looks like a path is never looked for on the hub: what begins with ``/``, ``.`` or ``~``, has more than one
    slash, or begins with the name of a folder that is there.

    Raises:
        InputError: it looks like a path and is no folder; it is a folder, and a revision is asked for; or it can be
            neither a folder nor a name on the hub.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        if revision is not None:
            raise InputError(
                f"{_beside(setting)} is {revision!r}, but {setting} is the folder {path}, which has no revisions. Say "
                f"{_beside(setting)}=null."
            )
        return path
    if path.exists():
        raise InputError(f"{setting} is {model!r}, a file. Name {_EXPECTED}.")
    first, *others = model.split("/")
    if first in ("", ".", "..") or first.startswith("~") or len(others) > 1 or (others and Path(first).is_dir()):
        around = path.parent if path.parent.is_dir() else None
        near = did_you_mean(path.name, (p.name for p in around.iterdir() if p.is_dir())) if around else ""
        raise InputError(f"{setting} is {model!r}: no such model folder. Name {_EXPECTED}.{near}")
    try:
        validate_repo_id(model)
    except HFValidationError as error:
        raise InputError(
            f"{setting} is {model!r}: no such model folder, and no name that a model on the hub can have. Name "
            f"{_EXPECTED}, or a model on the hub, as in BAAI/bge-base-en-v1.5."
        ) from error
    return None


def _check_folder(folder: Path, setting: str) -> None:
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        base = re.search(r'"base_model_name_or_path": "([^"]*)"', adapter.read_text(encoding="utf-8", errors="replace"))
        name = base[1] if base else "BASE"
        raise InputError(
            f"{folder} holds adapters for {name} (adapter_config.json), no whole model. Merge them into it, and name "
            f'{setting}=MERGED: python -c "from transformers import AutoModel, AutoTokenizer; from peft import '
            f"PeftModel; base = AutoModel.from_pretrained('{name}'); PeftModel.from_pretrained(base, '{folder}')"
            f".merge_and_unload().save_pretrained('MERGED'); AutoTokenizer.from_pretrained('{name}')"
            ".save_pretrained('MERGED')\""
        )
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: no config.json, so this is no model folder. Check {setting}.")
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES) and not _reads_bytes(folder):
        raise InputError(
            f"{folder}: no tokenizer ({', '.join(_TOKENIZER_FILES)}). Save it beside the model: "
            "AutoTokenizer.from_pretrained(BASE).save_pretrained(FOLDER)"
        )


def _reads_bytes(folder: Path) -> bool:
    """Tell whether a folder's tokenizer takes bytes or characters for tokens, and so has no vocabulary file."""
    path = folder / "tokenizer_config.json"
    return path.is_file() and bool(_WITHOUT_VOCABULARY.search(path.read_text(encoding="utf-8", errors="replace")))


def hub_origin(model: str, revision: str | None) -> str:
    """Say where a model's weights come from, as far as its name tells."""
    path = Path(model).expanduser()
    return f"folder {path.absolute()}" if path.is_dir() else f"hub {model} at {revision or 'its newest revision'}"


def _snapshot(model: str, revision: str | None, setting: str) -> Path:
    """Fetch a model's small files at one commit, and return their folder in the hub's cache."""
    try:
        return Path(
            snapshot_download(
                model, revision=revision, allow_patterns=list(_SMALL_FILES), ignore_patterns=list(_NOT_THE_MODEL)
            )
        )
    except (OSError, ValueError) as error:  # what the hub's client raises is one of these
        at = f" at revision {revision!r}" if revision is not None else ""
        if constants.HF_HUB_OFFLINE:
            why = "it is not in the hub's cache, and HF_HUB_OFFLINE says not to ask the hub"
        else:
            why = f"the hub gave no such model ({' '.join(str(error).split())[:300].rstrip('.')})"
        raise InputError(
            f"{setting} is {model!r}{at}: there is no folder {Path(model).absolute()}, and {why}. Name {_EXPECTED}, or "
            "a model on the hub that this machine can reach or has in its cache."
        ) from error


def _beside(setting: str) -> str:
    """Name the setting ``revision`` beside a setting ``model``."""
    return f"{setting.rpartition('.')[0]}.revision".lstrip(".")
