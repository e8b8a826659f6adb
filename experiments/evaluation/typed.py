"""What is typed behind ``python -m experiments.evaluate``: models by name, and sets by name or folder."""

import re
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

from callbacks.reporting.results import RESULTS
from datamodules.pipeline.searchers import Bm25
from experiments.cli.arguments import value_text
from experiments.conf import CONF
from retriever.errors import InputError, did_you_mean

BM25 = "bm25"
_WITH_VALUE = ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd")


def as_overrides(arguments: Sequence[str]) -> list[str]:
    """Turn a command line into one for Hydra: what has no ``=`` names a model, and ``sets=`` takes names and folders.

    With ``-m``, each model becomes a job.
    """
    options, models, rest = _told_apart(arguments)
    folders = [Path(value) for flag, value in options if value is not None and flag in ("--config-dir", "-cd")]
    found: dict[str, list[str]] = {}
    for name in models:
        _add(name, found, [CONF, *folders])
    typed = [word for pair in options for word in pair if word is not None]
    typed += [override for overrides in found.values() for override in overrides]
    typed += [override for argument in rest for override in _sets(argument)]
    if found and not any(argument.startswith("order=") for argument in rest):
        typed.append(f"order=[{','.join(found)}]")  # Hydra composes groups before all else
    sweeps = any(flag in ("-m", "--multirun") for flag, _ in options)
    if sweeps and found and not any(argument.startswith("only=") for argument in rest):
        typed.append(f"only={','.join(found)}")
    return typed


def _told_apart(arguments: Sequence[str]) -> tuple[list[tuple[str, str | None]], list[str], list[str]]:
    """Hydra's options with their values, models, and overrides."""
    options: list[tuple[str, str | None]] = []
    models, rest = [], []
    words = iter(arguments)
    for word in words:
        if Path(word).expanduser().exists():
            models.append(word)
        elif word.startswith("-"):
            options.append((word, next(words, None) if word in _WITH_VALUE else None))
        elif "=" in word or word.startswith("~"):
            rest.append(word)
        else:
            models.append(word)
    return options, models, rest


def _add(name: str, found: dict[str, list[str]], folders: Sequence[Path]) -> str:
    """Add the overrides that make a model known; return the key that it has there."""
    if name in found:
        return name
    parts = name.split("+")
    if len(parts) > 1 and not Path(name).exists():
        members = [_add(part, found, folders) for part in parts]
        weights = dict.fromkeys(members, 1 / len(members))
        return _put("_".join(members), [value_text({"fusion": weights})], found)
    if name == BM25:
        return _put(BM25, [value_text({"bm25": vars(Bm25())})], found)
    folder = Path(name).expanduser()
    run = folder.parent if folder.name == "model" and (folder.parent / RESULTS).is_file() else folder
    if (run / RESULTS).is_file() or (run / "config.yaml").is_file():
        return _put(run.absolute().name, [value_text({"run": str(run)})], found)
    if re.fullmatch(r"[\w-]+", name) and any((f / "encoder" / f"{name}.yaml").is_file() for f in folders):
        return _put(name, [name], found, of_group=True)
    if re.fullmatch(r"\w+", name) and not folder.exists():  # models of the hub are called OWNER/NAME
        presets = [path.stem for f in folders for path in (f / "encoder").glob("[!_]*.yaml")]
        if near := did_you_mean(name, [BM25, *presets]):
            raise InputError(
                f"{name!r} is no model: no folder, and none of {BM25}, {', '.join(sorted(presets))}.{near}"
            )
    runs = sorted(folder.glob(f"*/{RESULTS}"))
    if runs and not (folder / "config.json").is_file():
        raise InputError(f"{name} is no model: it holds {len(runs)} run(s). Name one, such as {runs[0].parent}.")
    return _put(folder.name or name, ["_spec", name], found, of_group=True)


def _put(name: str, what: Sequence[str], found: dict[str, list[str]], of_group: bool = False) -> str:
    """Write a model's overrides under a key that no other model has; the same model comes once."""
    stem = re.sub(r"\W", "_", name)
    stem = stem if stem[:1].isalpha() else f"model_{stem}"
    for number in count(1):
        key = stem if number == 1 else f"{stem}_{number}"
        overrides = [f"+models.{key}={what[0]}"]
        if of_group:
            overrides = [f"+encoder@models.{key}.encoder={what[0]}"]
            overrides += [f"models.{key}.encoder.model={value_text(value)}" for value in what[1:]]
        if found.setdefault(key, overrides) == overrides:
            return key
    raise AssertionError  # there is always another number


def _sets(argument: str) -> list[str]:
    """``sets=a,b`` as the list that Hydra's group takes; folders, and mappings, as sets of one's own."""
    key, _, value = argument.partition("=")
    if key != "sets":
        return [argument]
    inner = value.removeprefix("[").removesuffix("]")
    items = [name.strip() for name in inner.split(",") if name.strip()]
    if "{" in value:
        items = OverridesParser.create().parse_override(f"sets=[{inner}]").value()
    if not items:
        raise InputError("sets is empty; name data sets: sets=scifact,cranfield, or sets=FOLDER.")
    shipped = [item for item in items if isinstance(item, str) and (CONF / "sets" / f"{item}.yaml").is_file()]
    others = [{"path": item} if isinstance(item, str) else item for item in items if item not in shipped]
    return [f"sets=[{','.join(shipped)}]", *([f"+sets.typed.datasets={value_text(others)}"] if others else [])]
