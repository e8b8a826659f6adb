"""The pipeline from a corpus to query lists: which stages a configuration asks for, and how they connect."""

import hashlib
import logging
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from datamodules.corpus import (
    Corpus,
    EvaluationSet,
    corpus_sha256,
    find_dataset,
    judgement_files,
    load_corpus,
    load_evaluation_set,
    load_qrels,
    qrels_file,
    qrels_splits,
)
from datamodules.pipeline.engines import Engine
from datamodules.pipeline.query_types import QueryType, load_query_types
from datamodules.pipeline.searchers import Bm25, Searcher
from datamodules.pipeline.stages.deduplicate import Deduplicate
from datamodules.pipeline.stages.filter import Filter
from datamodules.pipeline.stages.generate import Generate
from datamodules.pipeline.stages.mine import Dense, Mine
from datamodules.pipeline.stages.queries import CollectQueries
from datamodules.pipeline.stages.sample import Sample
from datamodules.pipeline.stages.score import Score
from datamodules.pipeline.stages.split import Split
from datamodules.pipeline.stages.stage import Output, Shard, Stage, find_output, run_stage
from datamodules.pipeline.stages.student import Student
from experiments.cli.signatures import of_object
from experiments.cli.subjects import print_subjects
from experiments.cli.targets import check_arguments, check_settings
from experiments.preparation.generation_plan import plan_lines
from experiments.preparation.precision import Precisions, with_dtypes
from experiments.preparation.second_round import with_tuned
from experiments.preparation.settings import OF_STAGES, STAGES, JudgedSplit, PrepareSettings
from experiments.settings.encoders import SPECS
from experiments.settings.finished_runs import finished_run
from retriever.encoder.text_encoder import TextEncoder
from retriever.errors import InputError, choose
from retriever.hashing import file_sha256
from retriever.teachers import Ensemble, Teacher
from retriever.typed import read_settings, read_top

log = logging.getLogger(__name__)


def _plain(section: DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(section, resolve=True, throw_on_missing=False)


def _model(retriever: DictConfig) -> str:
    return retriever.encoder.model if "encoder" in retriever else str(retriever.get("run", "BM25"))


class Pipeline:
    """The stages of one configuration (``experiments/conf/prepare/prepare.yaml``).

    Attributes:
        outputs: stage → what it left, for the stages that are done.
        of_students: student → the same of stages filter and split, on the hits of its own retriever.
    """

    def __init__(self, config: DictConfig) -> None:
        self.config = config = with_tuned(config)
        check_arguments(config, SPECS)
        read_top(PrepareSettings, config)
        self.groups: dict[str, dict[str, Any]] = OmegaConf.to_container(config.queries, resolve=True)
        for name, stage in OF_STAGES.items():
            check_settings(name, _plain(config[name]), of_object(get_object(stage)))
        self.students: dict[str, str] = OmegaConf.to_container(config.students, resolve=True)
        self.outputs: dict[str, Output] = {}
        self.of_students: dict[str, dict[str, Output]] = {}

    def run(self) -> bool:
        """Run what is left, as far as asked; return whether all of it is done.

        It is not where other processes have blocks, and where a plan was asked for.
        """
        shard, work = Shard.parse(self.config.shard), Path(self.config.work)
        self._check()
        if not self.config.get("plan") and self._precisions.keep():
            for made in ("_retrievers", "_teacher"):
                self.__dict__.pop(made, None)
        for subject, text in self.describe().items():
            log.info("%s: %s", subject, text)
        for name in self.names:
            stage = getattr(self, f"_{name}")()
            if self.config.get("plan") and isinstance(stage, Generate):
                print_subjects(plan_lines(stage, work))
                return False
            if self.config.stage not in (None, name):
                found = find_output(stage, work)
                if found is None:
                    raise InputError(
                        f"Stage {self.config.stage} needs the output of stage {name}, which has not run with these "
                        f"settings. Run it first: until={name}, or stage={name}."
                    )
            else:
                if isinstance(stage, Generate):
                    for note in stage.notes():
                        log.warning("generate: %s", note)
                found = run_stage(stage, work, shard)
            if name == "generate":
                self._engine.release()
            if found is None:
                return False
            self.outputs[name] = found
        done = [self._make_lists_of(name, work, shard) for name in self.students if "split" in self.names]
        return all(done)

    def _make_lists_of(self, name: str, work: Path, shard: Shard) -> bool:
        """Filter and split the hits of a student's retriever; return whether that is done."""
        log.info("student %s: lists of the hits of %s", name, self.students[name])
        student = Student(self.students[name], self.outputs["mine"], self.corpus)
        filtered = run_stage(self._filter(student), work, shard)
        split = filtered and run_stage(self._split(filtered), work, shard)
        if filtered is None or split is None:
            return False
        self.of_students[name] = {"filter": filtered, "split": split}
        return True

    @cached_property
    def names(self) -> list[str]:
        """The stages that this configuration needs, in order."""
        unneeded = set()
        if not any(o["source"] == "generated" for o in self.groups.values()):
            unneeded |= {"sample", "generate"}
            if not (self.config.mine.drop_near_duplicates or self.config.mine.drop_duplicates):
                unneeded.add("deduplicate")
        last = self.config.stage or self.config.until
        if last in unneeded:
            raise InputError(f"Stage {last} is not needed here: no group of queries has source: generated.")
        wanted = [name for name in STAGES if name not in unneeded]
        wanted = wanted[: wanted.index(last) + 1] if last else wanted
        if self.config.get("plan") and "generate" not in wanted:
            raise InputError(
                "plan is true, and it says what stage generate would cost, which is not among the stages here: "
                f"{', '.join(wanted)}."
            )
        return wanted

    @cached_property
    def corpus(self) -> Corpus:
        """The corpus, loaded once."""
        return load_corpus(self._folder, empty_passages=self.config.empty_passages, cache_dir=self.config.cache_dir)

    def _check(self) -> None:
        """Build every stage on nothing, so that a wrong setting of the last one shows before the first one runs."""
        self.outputs = {name: Output(Path(), {"outputs": {}}) for name in self.names}
        for name in self.names:
            getattr(self, f"_{name}")()
        self.outputs = {}
        named = {"filter.consistency_retrievers": self.config.filter.consistency_retrievers or ()}
        named |= {f"students.{name}": [retriever] for name, retriever in self.students.items()}
        if "score" in self.names:
            named |= {f"{n}.weights": t.retrievers or () for n, t in Ensemble.of(self._teacher).members.items()}
        for setting, retrievers in named.items():
            for retriever in retrievers:
                choose(f"{setting}: the retriever", retriever, [n for n, o in self.config.mine.retrievers.items() if o])

    def describe(self) -> dict[str, str]:
        """Subject → what this pipeline runs on and with, as far as its stages need it."""
        config, names = self.config, self.names
        groups = [
            f"{name} ({', '.join(str(v) for k, v in options.items() if k in ('source', 'split', 'path'))})"
            for name, options in self.groups.items()
        ]
        lines = {
            "corpus": f"{self.corpus.name} ({self._folder}), {len(self.corpus):,} passages",
            "queries": ", ".join(groups),
            "stages": ", ".join(names),
        }
        if "generate" in names:
            engine = self._engine.settings()
            kind = config.generator.get("engine", engine.get("engine"))
            lines["generator"] = f"{engine.get('model')}, by {kind}, sampling {engine['sampling']}"
        if "mine" in names:
            for name, retriever in self._retrievers.items():
                lines[f"retriever {name}"] = retriever.describe()
                if isinstance(retriever, Dense):
                    lines["precision"] = self._precisions.of(retriever.encoder).said("precision")
        if "score" in names:
            for name, teacher in Ensemble.of(self._teacher).members.items():
                lines["teacher" if teacher is self._teacher else f"teacher {name}"] = str(teacher)
        if "split" in names and config.split.leak_guard != "off":
            sets = [f"{data.name} ({len(data.queries):,} queries)" for data, _ in self._evaluation_sets]
            lines["leak guard"] = f"protects {', '.join(sets) or 'nothing'}"
        return lines

    def with_precisions(self, config: DictConfig) -> DictConfig:
        """The configuration as given, with what ``auto`` took: it goes with the lists, for those made as they were."""
        names = {self._precisions.of(r.encoder).name for r in self._retrievers.values() if isinstance(r, Dense)}
        config = config.copy()
        config.teacher = with_dtypes(config, self._precisions)
        if len(names) == 1:
            config.precision = names.pop()
        return config

    def judged_groups(self) -> dict[str, str]:
        """Group → split, for groups of judged queries."""
        return {n: o.get("split", "train") for n, o in self.groups.items() if o["source"] == "judged"}

    def _deduplicate(self) -> Stage:
        return Deduplicate(self.corpus, **self.config.deduplicate)

    def _sample(self) -> Stage:
        deduplicated = self.outputs["deduplicate"]
        return Sample(self.corpus, deduplicated, **_plain(self.config.sample))

    def _generate(self) -> Stage:
        options = _plain(self.config.generate)
        del options["types"], options["type_folders"]
        return Generate(self.corpus, self.outputs["sample"], self._engine, self._generate_types(), **options)

    def _generate_types(self) -> list[QueryType]:
        options = self.config.generate
        types = load_query_types(options.types, options.type_folders)
        return types if options.language == "en" else [kind.in_the_texts_language() for kind in types]

    def _queries(self) -> Stage:
        config, generated = self.config, self.outputs.get("generate")
        where = self.corpus, config.corpus, config.data_dir
        return CollectQueries(*where, self.groups, generated, config.unknown_qrels)

    def _mine(self) -> Stage:
        options = _plain(self.config.mine)
        for key in ("retrievers", "chunk", "keep_embeddings"):
            options.pop(key)
        outputs = self.outputs["queries"], self.outputs.get("deduplicate")
        return Mine(self.corpus, *outputs, self._retrievers, **options)

    def _score(self) -> Stage:
        outputs = self.outputs["queries"], self.outputs["mine"]
        return Score(self.corpus, *outputs, self._teacher, **self.config.score)

    def _filter(self, student: Student | None = None) -> Stage:
        exempt = [name for name, o in self.groups.items() if not o.get("filter", True)]
        return Filter(self.outputs["score"], exempt=exempt, student=student, **_plain(self.config.filter))

    def _split(self, filtered: Output | None = None) -> Stage:
        options = self.config.split
        guards = {name: o.get("leak_guard", options.leak_guard) for name, o in self.groups.items()}
        return Split(
            filtered or self.outputs["filter"],
            self.outputs["score"],
            self.corpus.name,
            self._evaluation_sets,
            dev_fraction=options.dev_fraction,
            test_fraction=options.test_fraction,
            guards=guards,
            judged=list(self.judged_groups()),
            judgements=[*self._judgements, *self._copies(options.test_fraction)],
            jaccard=options.leak_jaccard,
            cosine=options.leak_cosine,
            encoder=self._encoder if options.leak_cosine else None,
            cache_dir=self.config.cache_dir,
            near_passages=options.leak_near_passages,
            corpus=self.corpus,
            metadata=self._about(),
        )

    @cached_property
    def _judgements(self) -> list[list[str]]:
        """Relevant passages of each query that the corpus judges, the evaluation's apart."""
        chosen = self._protected or [JudgedSplit(self.config.corpus)]
        evaluated = {s.split for s in chosen if find_dataset(s.path, self.config.data_dir) == self._folder}
        found = []
        for split in sorted(set(qrels_splits(self._folder)) - evaluated):
            _, judged = load_qrels(self._folder, split)
            found += [sorted(p for p, (grade, _) in passages.items() if grade > 0) for passages in judged.values()]
        return found

    def _copies(self, test_fraction: float) -> list[list[str]]:
        """Passages that say the same, which no test list may have in common with a train list."""
        deduplicated = self.outputs.get("deduplicate")
        if not test_fraction or deduplicated is None or not deduplicated.manifest.get("counts"):
            return []
        removed = deduplicated.table("removed.parquet").to_pylist()
        return [[row["passage_id"], row["kept_id"]] for row in removed if row["kept_id"]]

    def _retriever(self, name: str) -> Searcher:
        options = self.config.mine.retrievers[name]
        kind = choose(f"mine.retrievers.{name}", next(iter(options)), ("bm25", "encoder", "run"))
        if len(options) != 1 or kind == "bm25":
            return Bm25(**options.bm25)
        encoder, passages = self._of_run(options.run) if kind == "run" else (self._of_encoder(options.encoder), None)
        return Dense(
            encoder,
            self.config.cache_dir,
            precision=self._precisions.of(encoder).name,
            chunk=self.config.mine.chunk,
            token_budget=self.config.token_budget,
            keep_embeddings=self.config.mine.keep_embeddings,
            passage_encoder=passages,
        )

    def _of_encoder(self, options: DictConfig) -> TextEncoder:
        return self._encoder if options == self.config.encoder else self._on_device(options)

    def _of_run(self, folder: str) -> tuple[TextEncoder, TextEncoder | None]:
        """A run's model and, where its query side alone was trained, the encoder of its passages."""
        trusted = self.config.encoder.get("trust_remote_code", False)
        run = finished_run(Path(folder).expanduser(), check_arguments, self.config.allowed_targets, trusted)
        tuned = TextEncoder.from_pretrained(str(run.model), trust_remote_code=trusted)
        return self._placed(tuned), None if run.of_passages is None else self._on_device(run.of_passages)

    def _about(self) -> dict[str, Any]:
        """What the lists' metadata say of where queries and candidates come from."""
        mine = self.config.mine
        names = {n: _model(options) for n, options in mine.retrievers.items() if options}
        mined = {"retrievers": names, "depth": mine.depth, "candidates": mine.candidates, "fusion": mine.fusion}
        generated = self.outputs["generate"].manifest.get("settings") if "generate" in self.outputs else None
        return {"queries": self.groups, "generated": generated, "mined": mined}

    @cached_property
    def _protected(self) -> list[JudgedSplit] | None:
        """What the leak guard is to protect; None where nothing is said."""
        named = self.config.split.evaluation
        key = "split.evaluation"
        return None if named is None else [read_settings(JudgedSplit, s, f"{key}[{n}]") for n, s in enumerate(named)]

    @cached_property
    def _evaluation_sets(self) -> list[tuple[EvaluationSet, str]]:
        chosen = self._protected
        if chosen is None:
            if qrels_file(self._folder, "test") is None:
                log.warning("split: %s has no qrels/test.tsv, so the leak guard has nothing to protect", self._folder)
                return []
            chosen = [JudgedSplit(self.config.corpus)]
        found = []
        for spec in chosen:
            folder, split = find_dataset(spec.path, self.config.data_dir), spec.split
            digests = "".join(file_sha256(p) for p in judgement_files(folder, split))
            if folder != self._folder:  # the guard compares passages with this corpus' texts
                digests += corpus_sha256(folder)
            digest = hashlib.sha256(digests.encode()).hexdigest()
            corpus = self.corpus if folder == self._folder else None
            reading = {k: self.config[k] for k in ("empty_passages", "cache_dir")} | {"unknown_qrels": "keep"}
            found.append((load_evaluation_set(str(folder), split, corpus=corpus, **reading), digest))
        return found

    @cached_property
    def _folder(self) -> Path:
        return find_dataset(self.config.corpus, self.config.data_dir)

    @cached_property
    def _engine(self) -> Engine:
        return instantiate(self.config.generator)

    @cached_property
    def _retrievers(self) -> dict[str, Searcher]:
        return {name: self._retriever(name) for name, options in self.config.mine.retrievers.items() if options}

    @cached_property
    def _teacher(self) -> Teacher:
        return instantiate(with_dtypes(self.config, self._precisions))

    @cached_property
    def _precisions(self) -> Precisions:
        return Precisions(self.config, self.corpus.sha256)

    @cached_property
    def _encoder(self) -> TextEncoder:
        return self._on_device(self.config.encoder)

    def _on_device(self, config: DictConfig) -> TextEncoder:
        return self._placed(instantiate(config))

    def _placed(self, encoder: TextEncoder) -> TextEncoder:
        return encoder.to(self.config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
