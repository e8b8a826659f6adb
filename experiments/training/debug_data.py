"""The data of a debug run: a few lists and queries of each file, and the passages that they name."""

import logging
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from datamodules.corpus import Corpus, find_dataset, find_file, load_corpus, load_qrels, load_queries
from datamodules.query_lists import QueryList, read_metadata, read_query_lists, write_query_lists
from datamodules.query_lists.plain_texts import SUFFIX, plain_texts
from datamodules.small_corpus import write_data_set
from datamodules.specs import EvaluationSpec, TrainFile, read_evaluation_specs, read_list_files
from datamodules.storage.files import write_text

log = logging.getLogger(__name__)
_SCANNED = 20_000  # lists of a file that are looked at


@dataclass
class _Kept:
    """What is kept of a data set."""

    output: Path
    passages: set[str] = field(default_factory=set)
    queries: dict[str, str] = field(default_factory=dict)
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)


class DebugData:
    """Cuts the data of a run's configuration.

    Args:
        config: as composed, with ``debug``: ``lists`` of each query type of a file, ``queries`` of each split.
        folder: where the cut data are written.
    """

    def __init__(self, config: DictConfig, folder: Path) -> None:
        self.config = config
        self.folder = folder
        self._kept: dict[Path, _Kept] = {}
        self._written = 0

    def cut(self) -> DictConfig:
        """Write the cut data; return the configuration with their paths in place of the whole ones'."""
        config = self.config.copy()
        data = OmegaConf.to_container(config.data, resolve=True)
        train = read_list_files(TrainFile, data["train"], "data.train")
        dev = read_list_files(TrainFile, data["dev"], "data.dev") if data["dev"] is not None else train
        skipped = 0 if data["dev"] is not None else self.config.debug.lists
        config.data.train = [self._list_file(spec, 0)[0] for spec in train]
        dev_files = [self._list_file(spec, skipped) for spec in dev]
        config.data.dev = [{k: v for k, v in spec.items() if k in ("path", "corpus")} for spec, _ in dev_files]
        dev_queries = {query for _, queries in dev_files for query in queries}
        specs = read_evaluation_specs(OmegaConf.to_container(config.evaluation.datasets, resolve=True))
        config.evaluation.datasets = [self._evaluation_set(spec, dev_queries) for spec in specs]
        for whole, kept in self._kept.items():
            write_data_set(kept.output, self._corpus(whole), kept.passages, kept.queries, kept.splits)
        return config

    def _corpus(self, folder: Path) -> Corpus:
        return load_corpus(folder, empty_passages=self.config.empty_passages, cache_dir=self.config.cache_dir)

    def _of(self, name: str) -> _Kept:
        folder = find_dataset(name, self.config.data_dir)
        return self._kept.setdefault(folder, _Kept(self.folder / str(len(self._kept)) / folder.name))

    def _list_file(self, spec: TrainFile, skipped: int) -> tuple[dict[str, Any], list[str]]:
        path, names = self._lists(spec.path, spec.corpus, spec.types, skipped)
        cut = {"path": path, "corpus": str(self._of(spec.corpus).output), "weight": spec.weight, "types": spec.types}
        return cut, names

    def _lists(
        self, path: str, corpus: str, types: Collection[str] | None, skipped: int, among: Collection[str] | None = None
    ) -> tuple[str, list[str]]:
        """Write some lists of each query type of a file; return the new path and the ids of the queries."""
        if find_file(path).suffix == SUFFIX:
            return self._texts(path, corpus, skipped), []
        number, length = self.config.debug.lists, self.config.data.list_length
        lists = list(_some(find_file(path), number, types, skipped, among, length))
        self._of(corpus).passages.update(p for each in lists for p in (*each.passage_ids, *each.positive_ids))
        self._written += 1
        written = self.folder / f"{self._written}-{Path(path).stem}.parquet"
        write_query_lists(written, lists, read_metadata(find_file(path)))
        return str(written), [each.query_id for each in lists]

    def _texts(self, path: str, corpus: str, skipped: int) -> str:
        """Write some lines of a file of plain texts, and keep as many passages as they go round."""
        number = self.config.debug.lists
        texts = list(islice(plain_texts(find_file(path)), skipped + number))
        self._of(corpus).passages.update(
            self._corpus(find_dataset(corpus, self.config.data_dir)).ids[: 2 * number].to_pylist()
        )
        self._written += 1
        written = self.folder / f"{self._written}-{Path(path).name}"
        write_text(written, "".join(f"{text}\n" for text in texts[skipped:] or texts))
        return str(written)

    def _evaluation_set(self, spec: EvaluationSpec, dev_queries: Collection[str]) -> dict[str, Any]:
        kept = self._of(spec.path)
        among = dev_queries if spec.chooses else None
        cut = {key: value for key, value in vars(spec).items() if value is not None} | {"path": str(kept.output)}
        if spec.lists is not None:
            cut["lists"], _ = self._lists(spec.lists, spec.path, spec.types, 0, among)
        else:
            folder, split = find_dataset(spec.path, self.config.data_dir), spec.split or "test"
            texts, (_, judged) = load_queries(folder), load_qrels(folder, split)
            chosen = [query for query in judged if query in texts and (among is None or query in among)]
            qrels = {query: judged[query] for query in chosen[: self.config.debug.queries]}
            kept.queries |= {query: texts[query] for query in qrels}
            kept.passages |= {passage for judgements in qrels.values() for passage in judgements}
            kept.splits.setdefault(split, {}).update(qrels)
        if spec.sample is not None:
            cut["sample"] = vars(replace(spec.sample, size=self.config.debug.queries, depth=2))
        return cut


def _some(
    path: Path, number: int, types: Collection[str] | None, skipped: int, among: Collection[str] | None, length: int
) -> Iterator[QueryList]:
    """Lists of a file, so many of each query type, behind others that are skipped; cut at a length."""
    seen: Counter[str] = Counter()
    for each in islice(read_query_lists(path), _SCANNED):
        if (types is None or each.query_type in types) and (among is None or each.query_id in among):
            seen[each.query_type] += 1
            if skipped < seen[each.query_type] <= skipped + number:
                scored = zip(each.passage_ids, each.teacher_scores, strict=False)
                best = sorted(scored, key=lambda pair: -pair[1])[:length]
                yield replace(each, passage_ids=[p for p, _ in best], teacher_scores=[score for _, score in best])
