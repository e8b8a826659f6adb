"""The settings of an adaptation, and the two experiment files that it makes of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from datamodules.storage.files import write_text
from experiments.adaptation.survey import HUMAN, Survey
from experiments.settings.common import PrecisionName
from retriever.errors import InputError, require_positive

LISTS, RUNS = "lists", "objectives"  # names of the experiment files
HELD_OUT = 0.1  # share of the lists that is dev, and of those that are measured on where no judgements are
_CANDIDATES = 50


@dataclass(frozen=True, kw_only=True)
class AdaptSettings:
    """The top of ``experiments/conf/adapt.yaml``, where each setting is told of."""

    corpus: str
    text: str | None
    split: str | None
    objectives: Sequence[str]
    seeds: Sequence[int]
    elsewhere: Sequence[str]
    minutes: float | None
    plan: bool
    queries: int
    steps: int | None
    batch_size: int | None
    precision: PrecisionName
    output_dir: str
    cache_dir: str
    data_dir: str

    def __post_init__(self) -> None:
        """Refuse what can be no run."""
        names = ("minutes", "queries", "steps", "batch_size")
        require_positive(**{name: getattr(self, name) for name in names})
        for name in ("objectives", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise InputError(f"{name} is {list(values)}; name at least one, and each once.")


@dataclass(frozen=True)
class Decided:
    """What was decided.

    Attributes:
        corpus: as the commands are to name it.
        groups: of queries.
        steps: of each run.
        batch: lists of a step.
        elsewhere: other data sets.
    """

    corpus: str
    groups: Mapping[str, Mapping[str, Any]]
    steps: int
    batch: int
    elsewhere: Sequence[str]

    @property
    def held_out(self) -> str:
        """The group whose test lists are measured on where there is no judged split for that.

        That is people's queries, or sentences: a title is part of what it is to find.
        """
        return HUMAN if HUMAN in self.groups else list(self.groups)[-1]

    @property
    def every(self) -> int:
        """Steps from one validation to the next."""
        return max(1, self.steps // 4)


def write_experiments(
    folder: Path, decided: Decided, found: Survey, asked: AdaptSettings, encoder: tuple[str, dict[str, Any]], gpu: bool
) -> None:
    """Write ``exp/lists.yaml`` for ``experiments.prepare`` and ``exp/objectives.yaml`` for ``experiments.run``.

    Args:
        folder: of the adaptation.
        decided: what is to be done.
        found: the corpus.
        asked: the command's settings.
        encoder: the file of the group ``encoder``, and what was changed of it.
        gpu: whether there is one.
    """
    name, changed = encoder
    where = {key: getattr(asked, key) for key in ("output_dir", "cache_dir", "data_dir")}
    common = {**where, **({"encoder": changed} if changed else {})}
    stemmed = {} if found.stemmer == "english" else {"language": found.stemmer}  # English is the default
    lists = {
        "defaults": [{"override /encoder": name}],
        **common,
        "precision": asked.precision,
        "corpus": decided.corpus,
        "queries": {group: dict(options) for group, options in decided.groups.items()},
        "output": str(folder / "lists"),
        "unknown_qrels": "keep",
        "mine": {
            "candidates": _CANDIDATES,
            "fusion": "score",
            **({"retrievers": {"bm25": {"bm25": stemmed}}} if stemmed else {}),
        },
        "filter": {"keep": None},
        "split": {
            "evaluation": [{"path": decided.corpus, "split": found.split}] if found.split else [],
            "dev_fraction": HELD_OUT,
            "test_fraction": 0.0 if found.split else HELD_OUT,
        },
    }

    def made(group: str, part: str) -> dict[str, str]:
        return {"path": str(folder / "lists" / f"{group}.{part}.parquet"), "corpus": decided.corpus}

    here = found.folder.name
    if found.split:
        sets = [{"path": decided.corpus, "split": found.split}]
    else:
        group = decided.held_out
        sets = [{"path": decided.corpus, "lists": made(group, "test")["path"], "name": f"{here}-{group}"}]
    runs = {
        "defaults": [
            {"override /encoder": name},
            {"override /data": "lists"},
            {"override /evaluation": "beir"},
            {"override /logger": "csv"},
            *([{"override /trainer": "gpu"}] if gpu else []),
        ],
        **common,
        "unknown_qrels": "keep",
        "data": {
            **{part: [made(group, part) for group in decided.groups] for part in ("train", "dev")},
            "batch_size": decided.batch,
            "list_length": _CANDIDATES,
            "normalization": "none",
            "dev_over_corpus": True,
            **({"corpus_scores": stemmed} if stemmed else {}),
        },
        "criterion": "dev/corpus_kl",  # of all objectives alike
        "evaluation": {"datasets": sets + [{"path": path} for path in decided.elsewhere]},
        "module": {"train_passage_encoder": False},
        "temperatures": {"teacher": 0.05},
        "scheduler": {"warmup_steps": max(1, decided.steps // 10)},
        "trainer": {
            "precision": asked.precision,
            "max_epochs": -1,
            "max_steps": decided.steps,
            "val_check_interval": decided.every,
            "check_val_every_n_epoch": None,
            **({"devices": 1} if gpu else {}),
        },
        "early_stopping": {"patience": None},
        "hydra": {
            "mode": "MULTIRUN",
            "sweep": {"dir": str(folder / "runs")},
            # seeds first, so that each objective has one result before any has two
            "sweeper": {"params": {"seed": ",".join(map(str, asked.seeds)), "module": ",".join(asked.objectives)}},
        },
    }
    _write(folder, LISTS, "prepare", "Queries of the corpus with candidates and teacher scores.", lists)
    _write(folder, RUNS, "run", "Each objective on these lists; passages keep the base model's embeddings.", runs)


def arguments(folder: Path, name: str) -> list[str]:
    """What to type behind ``python -m experiments.prepare`` or ``run``."""
    return ["--config-dir", str(folder / "settings"), f"+exp={name}"]


def are_written(folder: Path) -> bool:
    """Whether an earlier start has decided already; then its files count."""
    return all((folder / "settings" / "exp" / f"{name}.yaml").is_file() for name in (LISTS, RUNS))


def _write(folder: Path, name: str, command: str, what: str, content: dict[str, Any]) -> None:
    typed = f"python -m experiments.{command} {' '.join(arguments(folder, name))}"
    text = f"# @package _global_\n# {typed}\n# {what} Made by experiments.adapt; change it as you like.\n"
    write_text(folder / "settings" / "exp" / f"{name}.yaml", text + OmegaConf.to_yaml(OmegaConf.create(content)))
