"""Reads and writes the files of a sentence-transformers folder that say how tokens become a text embedding."""

import json
import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from retriever.encoder.spec import DEFAULT
from retriever.errors import InputError, shown

_log = logging.getLogger(__name__)
_MODULES = ("Transformer", "Pooling", "Dense", "Normalize")
_IDENTITY = "torch.nn.modules.linear.Identity"
# our name → sentence-transformers' since version 6, and the flag of earlier versions
_POOLINGS = {
    "cls": ("cls", "pooling_mode_cls_token"),
    "mean": ("mean", "pooling_mode_mean_tokens"),
    "last": ("lasttoken", "pooling_mode_lasttoken"),
}
_OTHER_FLAGS = (
    "pooling_mode_max_tokens",
    "pooling_mode_mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens",
)
_SPEC_FILE = "encoder_spec.json"  # of models that this project exported before it wrote query_length
_TRANSFORMER_FILES = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_MAIN_FILE = "config_sentence_transformers.json"
_TITLES = "passage_titles"  # there, in folders that this project exported
# names of prompts that models are published with, sentence-transformers' first
_PROMPT_NAMES = {
    "query_prompt": ("query", "search_query"),
    "passage_prompt": ("document", "passage", "corpus", "search_document"),
}


def write_spec(folder: Path, spec: dict[str, Any], width: int, lower_case: bool = False) -> None:
    """Write the files that sentence-transformers reads (modules, pooling, prompts, lengths) beside saved weights.

    A Matryoshka cut becomes a Dense module with a cut identity matrix, so that normalisation comes after it.

    Args:
        folder: the model folder, which must exist.
        spec: fields of ``EncoderSpec``.
        width: the backbone's hidden size.
        lower_case: whether texts are put in lower case first.
    """
    (folder / _SPEC_FILE).unlink(missing_ok=True)  # it would win over what is written here
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    flags = {flag: name == spec["pooling"] for name, (_, flag) in _POOLINGS.items()}
    _write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": width, **flags})
    if spec["truncate_dim"]:
        modules.append(("2_Dense", "Dense"))
        dense = {"in_features": width, "out_features": spec["truncate_dim"], "bias": False}
        _write(folder / "2_Dense" / "config.json", {**dense, "activation_function": _IDENTITY})
        _write_cut(folder / "2_Dense" / "model.safetensors", spec["truncate_dim"], width)
    if spec["normalize"]:
        modules.append((f"{len(modules)}_Normalize", "Normalize"))
        (folder / modules[-1][0]).mkdir(exist_ok=True)
    of_type = "sentence_transformers.models."
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": of_type + kind} for i, (path, kind) in enumerate(modules)
    ]
    _write(folder / "modules.json", listed)
    # encode_query and encode_document cut at the lengths of their kind, encode at max_seq_length
    lengths = {"max_seq_length": spec["passage_max_length"], "query_length": spec["query_max_length"]}
    _write(folder / "sentence_bert_config.json", {**lengths, "do_lower_case": lower_case})
    prompts = _named("query", spec["query_prompt"]) | _named("document", spec["passage_prompt"])
    similarity = "cosine" if spec["normalize"] else "dot"
    main: dict[str, Any] = {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": similarity}
    if not spec["passage_titles"]:  # sentence-transformers joins no titles, and reads over this
        main[_TITLES] = False
    _write(folder / _MAIN_FILE, main)


def read_spec(folder: Path) -> dict[str, Any]:
    """Read the fields of ``EncoderSpec`` that a folder states; empty where it states none.

    Raises:
        InputError: it states what ``TextEncoder`` does not do (several poolings, a projection, a chat template, …), or
            a file is damaged.
    """
    if (folder / _SPEC_FILE).is_file():
        return _read(folder / _SPEC_FILE)
    if not (folder / "modules.json").is_file():
        return {}
    modules = _modules(folder / "modules.json")
    spec: dict[str, Any] = {**_lengths(folder)}
    if "Pooling" in modules:
        spec["pooling"] = _pooling(folder / modules["Pooling"] / "config.json")
    main = _read(folder / _MAIN_FILE) if (folder / _MAIN_FILE).is_file() else {}
    spec |= _prompts(folder / _MAIN_FILE, main) | _similarity(folder / _MAIN_FILE, main, "Normalize" in modules)
    if _TITLES in main:
        spec["passage_titles"] = main[_TITLES]
    cut = _whole(folder / _MAIN_FILE, main, "truncate_dim", 1)
    if "Dense" in modules:
        kept = _kept_dimensions(folder / modules["Dense"])
        cut = kept if cut is None else min(cut, kept)
    if cut is not None:
        spec["truncate_dim"] = cut
    return spec


def lowers_case(folder: Path) -> bool:
    """Tell whether a folder states that texts are put in lower case before they are tokenised."""
    return bool(_transformer(folder)[1].get("do_lower_case"))


def leaves_prompt_out(folder: Path) -> Path | None:
    """Find the file in which a folder states that prompts are left out of the pooling; None where it does not."""
    if not (folder / "modules.json").is_file():
        return None
    path = folder / _modules(folder / "modules.json").get("Pooling", "1_Pooling") / "config.json"
    return path if path.is_file() and _read(path).get("include_prompt", True) is False else None


def _modules(path: Path) -> dict[str, str]:
    """Read kind → subfolder of a folder's modules, and refuse others than a TextEncoder's, or another order."""
    modules = _read(path, list)
    if not all(
        isinstance(m, dict) and isinstance(m.get("type"), str) and isinstance(m.get("path"), str) for m in modules
    ):
        raise InputError(f"{path}: {shown(modules)}; expected objects with type and path.")
    foreign = [m["type"] for m in modules if not m["type"].startswith("sentence_transformers.")]
    if foreign:
        raise InputError(
            f"{path}: {foreign[0]} is Python code that the model brings, which TextEncoder does not run. Name a folder "
            "without modules.json, and state encoder.pooling and the prompts, if the transformer alone is the model."
        )
    kinds = [module["type"].rsplit(".", 1)[-1] for module in modules]
    unknown = sorted(set(kinds) - set(_MODULES))
    if unknown or kinds != [kind for kind in _MODULES if kind in kinds]:
        raise InputError(
            f"{path}: modules {unknown or kinds} are not supported by TextEncoder, which has {', '.join(_MODULES)} in "
            "this order, Dense as a cut alone."
        )
    if modules and modules[0]["path"] not in ("", "."):
        raise InputError(
            f"{path}: the transformer lies in the subfolder {modules[0]['path']}, as old versions wrote it. Write the "
            "folder anew: SentenceTransformer(FOLDER).save(NEW), and name NEW."
        )
    return dict(zip(kinds, (m["path"] for m in modules), strict=True))


def _transformer(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Find the file that says how the first module reads texts, and read it."""
    found = [folder / name for name in _TRANSFORMER_FILES if (folder / name).is_file()]
    return (found[0], _read(found[0])) if found else (folder / _TRANSFORMER_FILES[0], {})


def _lengths(folder: Path) -> dict[str, int]:
    """Read the maximum lengths; sentence-transformers 6 leaves the one for all texts to the tokenizer."""
    path, stated = _transformer(folder)
    read_as = stated.get("modality_config", {"text": {}})
    if stated.get("transformer_task", "feature-extraction") != "feature-extraction" or list(read_as) != ["text"]:
        raise InputError(
            f"{path}: this model reads more than plain texts ({shown(stated)}), which TextEncoder does not: a chat "
            "template, or images. State modality_config for text alone there, if that is how it should be read."
        )
    length = _whole(path, stated, "max_seq_length", 3)
    settings = folder / "tokenizer_config.json"
    if length is None and settings.is_file():
        said = _read(settings).get("model_max_length")
        length = int(said) if isinstance(said, int | float) and 3 <= said < 10**6 else None
    by_kind = {
        "query_max_length": _whole(path, stated, "query_length", 3) or length,
        "passage_max_length": _whole(path, stated, "document_length", 3) or length,
    }
    return {name: value for name, value in by_kind.items() if value is not None}


def _whole(path: Path, stated: dict[str, Any], key: str, least: int) -> int | None:
    value = stated.get(key)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
        raise InputError(f"{path}: {key} is {shown(value)}; expected a whole number of at least {least}.")
    return value


def _pooling(path: Path) -> str:
    config = _read(path)
    modes = config.get("pooling_mode")  # since sentence-transformers 6
    if modes is None:
        names = {flag: theirs for theirs, flag in _POOLINGS.values()} | {flag: flag for flag in _OTHER_FLAGS}
        modes = [names[flag] for flag in names if config.get(flag)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    ours = {theirs: name for name, (theirs, _) in _POOLINGS.items()}
    if not isinstance(modes, list) or len(modes) != 1 or modes[0] not in ours:
        raise InputError(
            f"{path}: the pooling {shown(modes)} is not supported; TextEncoder knows one of {', '.join(_POOLINGS)}."
        )
    return ours[modes[0]]


def _prompts(path: Path, main: dict[str, Any]) -> dict[str, Any]:
    """Read the prompts by their usual names; else take the one that the folder names as its default."""
    prompts = main.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(p, str | None) for p in prompts.values()):
        raise InputError(f"{path}: prompts are {shown(prompts)}; expected name: text.")
    default = main.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise InputError(f"{path}: default_prompt_name is {shown(default)}, which is none of its prompts.")
    found: dict[str, Any] = {}
    for field, names in _PROMPT_NAMES.items():
        others = [n for other, named in _PROMPT_NAMES.items() if other != field for n in named]
        spare = [default] if default is not None and default not in others else []
        found[field] = next((prompts[name] for name in (*names, *spare) if prompts.get(name)), "")
        prefix = f"{names[0]}:"  # of folders that this project exported
        if own := {name.removeprefix(prefix): text for name, text in prompts.items() if name.startswith(prefix)}:
            found[field] = {DEFAULT: found[field], **own}
    if not any(found.values()) and any(prompts.values()):
        _say_unused(path, ", ".join(name for name, text in prompts.items() if text))
    return found


def _named(kind: str, prompt: str | Mapping[str, str]) -> dict[str, str]:
    """Give name → prompt: the default under the kind's name, and the others as ``kind:name``."""
    if isinstance(prompt, str):
        return {kind: prompt}
    others = {f"{kind}:{name}": text for name, text in prompt.items() if name != DEFAULT}
    return {kind: prompt.get(DEFAULT, ""), **others}


@cache  # a folder is read more than once
def _say_unused(path: Path, prompts: str) -> None:
    _log.warning(
        "%s has prompts %s, none of them for queries or passages: none is used. Give encoder.query_prompt and "
        "encoder.passage_prompt where they should be",
        path,
        prompts,
    )


def _similarity(path: Path, main: dict[str, Any], normalized: bool) -> dict[str, bool]:
    """Read whether embeddings are compared by cosine, as they are where a folder says nothing."""
    name = main.get("similarity_fn_name") or "cosine"
    if name not in ("cosine", "dot") and not (normalized and name == "euclidean"):  # which orders unit vectors alike
        raise InputError(
            f"{path}: similarity_fn_name is {shown(name)}; TextEncoder compares by cosine or dot product. State one of "
            "them there, if the model is good for it."
        )
    return {"normalize": normalized or name == "cosine"}


def _write_cut(path: Path, kept: int, width: int) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"linear.weight": torch.eye(kept, width)}, path)


def _kept_dimensions(folder: Path) -> int:
    """Read how many dimensions a Dense module keeps; refuse one that does more than cut."""
    import torch
    from safetensors.torch import load_file

    config = _read(folder / "config.json")
    weights = folder / "model.safetensors"
    kept = config.get("out_features")
    if config.get("activation_function") == _IDENTITY and not config.get("use_residual") and weights.is_file():
        tensors = load_file(weights)
        weight = tensors.get("linear.weight")
        biased = any(name != "linear.weight" and bool(tensor.any()) for name, tensor in tensors.items())
        if weight is not None and not biased and torch.equal(weight.float(), torch.eye(*weight.shape)):
            return int(weight.shape[0])
    raise InputError(
        f"{folder / 'config.json'}: a Dense module that projects embeddings ({shown(config.get('in_features'))} to "
        f"{shown(kept)} dimensions), which TextEncoder has not: embeddings would differ. Choose a model without one."
    )


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
