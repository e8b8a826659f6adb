"""The sentence-transformers folder layout: which files say how token embeddings become a text embedding."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from retriever.errors import InputError, shown

# our name → the flag of sentence-transformers' pooling configuration
_POOLING_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "last": "pooling_mode_lasttoken",
}
_SPEC_FILE = "encoder_spec.json"


def write_spec(folder: Path, spec: dict[str, Any], width: int) -> None:
    """Write what sentence-transformers reads (modules, pooling, prompts, lengths) beside saved weights.

    A Matryoshka cut becomes a Dense module with a cut identity matrix, so that the embedding is normalised behind it.
    ``encoder_spec.json`` holds what that layout has no place for (the query's maximum length).

    Args:
        folder: the model folder, which must exist.
        spec: fields of ``EncoderSpec``.
        width: the backbone's hidden size.
    """
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    flags = {flag: name == spec["pooling"] for name, flag in _POOLING_FLAGS.items()}
    _write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": width, **flags})
    if spec["truncate_dim"]:
        modules.append(("2_Dense", "Dense"))
        dense = {"in_features": width, "out_features": spec["truncate_dim"], "bias": False}
        _write(
            folder / "2_Dense" / "config.json",
            {**dense, "activation_function": "torch.nn.modules.linear.Identity"},
        )
        weight = torch.eye(spec["truncate_dim"], width)
        save_file({"linear.weight": weight}, folder / "2_Dense" / "model.safetensors")
    if spec["normalize"]:
        modules.append((f"{len(modules)}_Normalize", "Normalize"))
        (folder / modules[-1][0]).mkdir(exist_ok=True)
    _write(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(modules)
        ],
    )
    _write(
        folder / "sentence_bert_config.json",
        {"max_seq_length": spec["passage_max_length"], "do_lower_case": False},
    )
    _write(
        folder / "config_sentence_transformers.json",
        {
            "prompts": {"query": spec["query_prompt"], "document": spec["passage_prompt"]},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine" if spec["normalize"] else "dot",
        },
    )
    _write(folder / _SPEC_FILE, spec)


def read_spec(folder: Path) -> dict[str, Any]:
    """Read the fields of ``EncoderSpec`` that a folder states; empty where it states none.

    Raises:
        InputError: a pooling that this project does not know, or a damaged file.
    """
    if (folder / _SPEC_FILE).is_file():
        return _read(folder / _SPEC_FILE)
    if not (folder / "modules.json").is_file():
        return {}
    modules = _read(folder / "modules.json", list)
    if not all(
        isinstance(m, dict) and isinstance(m.get("type"), str) and isinstance(m.get("path"), str) for m in modules
    ):
        raise InputError(f"{folder / 'modules.json'}: {shown(modules)}; expected objects with type and path.")
    kinds = {module["type"].rsplit(".", 1)[-1]: module["path"] for module in modules}
    spec: dict[str, Any] = {"normalize": "Normalize" in kinds}
    unknown = set(kinds) - {"Transformer", "Pooling", "Normalize"}
    if unknown:
        raise InputError(f"{folder / 'modules.json'}: modules {sorted(unknown)} are not supported by TextEncoder.")
    if "Pooling" in kinds:
        spec["pooling"] = _pooling_of(folder / kinds["Pooling"] / "config.json")
    if (folder / "sentence_bert_config.json").is_file():
        length = _read(folder / "sentence_bert_config.json").get("max_seq_length")
        if length is not None and (not isinstance(length, int) or length < 3):
            raise InputError(
                f"{folder / 'sentence_bert_config.json'}: max_seq_length is {shown(length)}; expected a whole number "
                "of at least 3."
            )
        if length:
            spec["passage_max_length"] = length
            spec["query_max_length"] = min(64, length)
    if (folder / "config_sentence_transformers.json").is_file():
        path = folder / "config_sentence_transformers.json"
        prompts = _read(path).get("prompts") or {}
        if not isinstance(prompts, dict) or not all(isinstance(p, str | None) for p in prompts.values()):
            raise InputError(f"{path}: prompts are {shown(prompts)}; expected name: text.")
        spec["query_prompt"] = prompts.get("query") or ""
        spec["passage_prompt"] = prompts.get("document") or prompts.get("passage") or ""
    return spec


def _pooling_of(path: Path) -> str:
    config = _read(path)
    mode = config.get("pooling_mode")  # the layout since sentence-transformers 6
    if mode is not None:
        chosen = ["last" if mode == "lasttoken" else mode]
    else:
        chosen = [name for name, flag in _POOLING_FLAGS.items() if config.get(flag)]
    if len(chosen) != 1 or chosen[0] not in _POOLING_FLAGS:
        raise InputError(f"{path}: this pooling is not supported; TextEncoder knows {', '.join(_POOLING_FLAGS)}.")
    return chosen[0]


def _read(path: Path, kind: type = dict) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a readable JSON file ({error}). Fetch or export the model again.") from error
    if not isinstance(value, kind):
        raise InputError(f"{path}: {shown(value)}; expected a JSON {kind.__name__}. Fetch or export the model again.")
    return value


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
