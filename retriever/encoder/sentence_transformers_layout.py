"""Reads and writes the files of a sentence-transformers folder that say how tokens become a text embedding."""

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retriever.encoder.model_files import read_json, write_json
from retriever.encoder.spec import DEFAULT
from retriever.errors import InputError, shown

if TYPE_CHECKING:
    from retriever.encoder.dense import Dense

_log = logging.getLogger(__name__)
_MODULES = ("Transformer", "Pooling", "Dense", "Normalize")
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


def write_spec(
    folder: Path, spec: dict[str, Any], width: int, lower_case: bool = False, head: "Sequence[Dense]" = ()
) -> None:
    """Write the files that sentence-transformers reads (modules, pooling, prompts, lengths) beside saved weights.

    A Matryoshka cut becomes a Dense module with a cut identity matrix, so that normalisation comes after it.

    Args:
        folder: the model folder, which must exist.
        spec: fields of ``EncoderSpec``.
        width: the backbone's hidden size.
        lower_case: whether texts are put in lower case first.
        head: what pooled embeddings go through.
    """
    (folder / _SPEC_FILE).unlink(missing_ok=True)  # it would win over what is written here
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    flags = {flag: name == spec["pooling"] for name, (_, flag) in _POOLINGS.items()}
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": width, **flags})
    cut = [_cut(head[-1].linear.out_features if head else width, spec["truncate_dim"])] if spec["truncate_dim"] else []
    for dense in (*head, *cut):
        modules.append((f"{len(modules)}_Dense", "Dense"))
        dense.write(folder / modules[-1][0])
    if spec["normalize"]:
        modules.append((f"{len(modules)}_Normalize", "Normalize"))
        (folder / modules[-1][0]).mkdir(exist_ok=True)
    of_type = "sentence_transformers.models."
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": of_type + kind} for i, (path, kind) in enumerate(modules)
    ]
    write_json(folder / "modules.json", listed)
    # encode_query and encode_document cut at the lengths of their kind, encode at max_seq_length
    lengths = {"max_seq_length": spec["passage_max_length"], "query_length": spec["query_max_length"]}
    write_json(folder / "sentence_bert_config.json", {**lengths, "do_lower_case": lower_case})
    prompts = _named("query", spec["query_prompt"]) | _named("document", spec["passage_prompt"])
    similarity = "cosine" if spec["normalize"] else "dot"
    main: dict[str, Any] = {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": similarity}
    if not spec["passage_titles"]:  # sentence-transformers joins no titles, and reads over this
        main[_TITLES] = False
    write_json(folder / _MAIN_FILE, main)


def read_spec(folder: Path) -> dict[str, Any]:
    """Read the fields of ``EncoderSpec`` that a folder states; empty where it states none.

    Raises:
        InputError: it states what ``TextEncoder`` does not do (several poolings, a chat template, …), or a file is
            damaged.
    """
    if (folder / _SPEC_FILE).is_file():
        return read_json(folder / _SPEC_FILE)
    if not (folder / "modules.json").is_file():
        return {}
    modules = _modules(folder / "modules.json")
    spec: dict[str, Any] = {**_lengths(folder)}
    if "Pooling" in modules:
        spec["pooling"] = _pooling(folder / modules["Pooling"][0] / "config.json")
    main = read_json(folder / _MAIN_FILE) if (folder / _MAIN_FILE).is_file() else {}
    spec |= _prompts(folder / _MAIN_FILE, main) | _similarity(folder / _MAIN_FILE, main, "Normalize" in modules)
    if _TITLES in main:
        spec["passage_titles"] = main[_TITLES]
    cut = _whole(folder / _MAIN_FILE, main, "truncate_dim", 1)
    _, kept = _dense(folder, modules)
    stated = [number for number in (cut, kept) if number is not None]
    if stated:
        spec["truncate_dim"] = min(stated)
    return spec


def read_head(folder: Path) -> "list[Dense]":
    """Read the Dense modules that a folder's pooled embeddings go through; a cut alone is in :func:`read_spec`.

    Raises:
        InputError: a module is damaged, or one that ``TextEncoder`` does not have.
    """
    if not (folder / "modules.json").is_file():
        return []
    return _dense(folder, _modules(folder / "modules.json"))[0]


def lowers_case(folder: Path) -> bool:
    """Tell whether a folder states that texts are put in lower case before they are tokenised."""
    return bool(_transformer(folder)[1].get("do_lower_case"))


def leaves_prompt_out(folder: Path) -> Path | None:
    """Find the file in which a folder states that prompts are left out of the pooling; None where it does not."""
    if not (folder / "modules.json").is_file():
        return None
    path = folder / _modules(folder / "modules.json").get("Pooling", ["1_Pooling"])[0] / "config.json"
    return path if path.is_file() and read_json(path).get("include_prompt", True) is False else None


def _modules(path: Path) -> dict[str, list[str]]:
    """Read kind → subfolders of a folder's modules, and refuse others than a TextEncoder's, or another order."""
    modules = read_json(path, list)
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
    several = {kind for kind in kinds if kinds.count(kind) > 1}
    if unknown or several - {"Dense"} or [k for k, _ in groupby(kinds)] != [k for k in _MODULES if k in kinds]:
        raise InputError(
            f"{path}: modules {unknown or kinds} are not supported by TextEncoder, which has {', '.join(_MODULES)} in "
            "this order, and several of Dense alone."
        )
    if modules and modules[0]["path"] not in ("", "."):
        raise InputError(
            f"{path}: the transformer lies in the subfolder {modules[0]['path']}, as old versions wrote it. Write the "
            "folder anew: SentenceTransformer(FOLDER).save(NEW), and name NEW."
        )
    return {kind: [m["path"] for m, of in zip(modules, kinds, strict=True) if of == kind] for kind in kinds}


def _dense(folder: Path, modules: Mapping[str, list[str]]) -> "tuple[list[Dense], int | None]":
    """Read the Dense modules; where the last one is a cut, the number of dimensions that it keeps in its place."""
    if "Dense" not in modules:
        return [], None
    from retriever.encoder.dense import Dense

    head = [Dense.read(folder / path) for path in modules["Dense"]]
    kept = head.pop().linear.out_features if head[-1].is_cut else None
    return head, kept


def _cut(width: int, kept: int) -> "Dense":
    from retriever.encoder.dense import Dense

    return Dense.cut(width, kept)


def _transformer(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Find the file that says how the first module reads texts, and read it."""
    found = [folder / name for name in _TRANSFORMER_FILES if (folder / name).is_file()]
    return (found[0], read_json(found[0])) if found else (folder / _TRANSFORMER_FILES[0], {})


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
        said = read_json(settings).get("model_max_length")
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
    config = read_json(path)
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
