"""Make query lists from a corpus: python -m experiments.prepare +data=scifact [key=value ...]."""

from __future__ import annotations

import logging
from pathlib import Path

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from datamodules.corpus import Corpus, find_dataset, load_corpus
from datamodules.free_queries import collect_queries
from datamodules.list_building import fusion_teacher, make_lists
from datamodules.query_lists import write_query_lists
from datamodules.splits import in_dev
from experiments.hydra_errors import run_kindly
from retriever.encoder import TextEncoder
from retriever.errors import InputError, choose

log = logging.getLogger(__name__)


def prepare(config: DictConfig) -> list[Path]:
    """Write the train and dev lists that a configuration asks for; return their paths."""
    corpus = load_corpus(find_dataset(config.corpus, config.data_dir))
    encoder = instantiate(config.encoder)
    paths = []
    for name, options in config.queries.items():
        paths += _prepare_one(config, name, options, corpus, encoder)
    return paths


def _prepare_one(
    config: DictConfig, name: str, options: DictConfig, corpus: Corpus, encoder: TextEncoder
) -> list[Path]:
    for key in options:
        choose(f"queries.{name}: the key", key, ("source", "split"))
    teacher = OmegaConf.to_container(config.teacher)
    source = collect_queries(
        corpus=corpus, dataset=config.corpus, data_dir=config.data_dir, **OmegaConf.to_container(options)
    )
    if not source.queries:
        raise InputError(f"queries.{name}: {options.source!r} gives no query on the corpus {corpus.name!r}.")
    hits = fusion_teacher(corpus, list(source.queries.values()), encoder, config.cache_dir, teacher)
    dev = in_dev(list(source.positive_ids.values()), config.dev_fraction)
    metadata = {
        "corpus": corpus.name,
        "queries": OmegaConf.to_container(options),
        "teacher": f"fusion of BM25 and {encoder.name} (not a cross-encoder)",
        "teacher_options": teacher,
        "dev_fraction": config.dev_fraction,
        "score": "raw, in [0, 1]: weighted sum of the two, each min-max scaled over its own best hits; 0 where absent",
    }
    written = []
    for split, chosen in {"train": ~dev, "dev": dev}.items():
        path = Path(config.output) / f"{name}.{split}.parquet"
        count = write_query_lists(path, make_lists(source, corpus, hits, chosen), {**metadata, "split": split})
        log.info("%s: %d lists", path, count)
        written.append(path)
    return written


@hydra.main(version_base="1.3", config_path="conf/prepare", config_name="prepare")
def application(config: DictConfig) -> None:
    """One job."""
    prepare(config)


def main() -> None:
    """The command."""
    run_kindly(application)


if __name__ == "__main__":
    main()
