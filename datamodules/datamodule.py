"""QueryListDataModule: query lists with precomputed teacher scores, as batches for any objective."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import lightning as L
from torch.utils.data import DataLoader

from datamodules.batch_sampler import BatchSampler, WeightedLists, dev_batch_size, fitting_batch_size
from datamodules.batches import ListBatches, ListSource
from datamodules.corpus import Corpus, EvaluationSet, find_dataset, load_corpus, load_evaluation_set
from datamodules.dev_lists import Part, check_dev_fraction, choose_dev, why_none
from datamodules.drawn_batches import drawn_batches
from datamodules.guide import check_passage_encoder, guide_arguments
from datamodules.leakage.guard import Guarded, LeakGuard, say_off
from datamodules.leakage.overlap import find_overlap
from datamodules.list_choice import (
    about_file,
    by_type,
    chosen_lists,
    held_out_lists,
    say_where_lists_are_short,
    weighted_lists,
)
from datamodules.normalization import confident, normalize_scores
from datamodules.prompted import say_unused_prompts
from datamodules.query_lists import QueryLists, open_list_file
from datamodules.query_lists.plain_texts import SUFFIX
from datamodules.source_maker import SourceMaker
from datamodules.sources import without_sources
from datamodules.specs import (
    CorpusScoring,
    EvaluationSpec,
    ListFile,
    TrainFile,
    corpus_name,
    read_evaluation_specs,
    read_list_files,
)
from datamodules.text.near_texts import checked_threshold
from datamodules.threaded_loader import ThreadedLoader
from retriever.batch import BatchNeeds, RetrievalBatch
from retriever.encoder.text_encoder import TextEncoder
from retriever.errors import InputError, choose, require_positive
from retriever.typed import read_settings

log = logging.getLogger(__name__)


@dataclass(eq=False, repr=False)
class QueryListDataModule(L.LightningDataModule):
    """Train and dev query lists of one or several corpora.

    Attributes:
        needs: what the objective needs of a batch: set it to ``module.needs`` before training. Without it, batches hold
            one labelled positive of each query, and tokens.

    Args:
        encoder: whose tokenizer, prompts and lengths are used; also encodes passages once where they are frozen.
        passage_encoder: encodes passages in its place, frozen, into embeddings of the same width; a projection of
            ``encoder`` that has no weights yet is fitted to it. None: the same encoder.
        train: files of lists, each a :class:`~datamodules.specs.TrainFile` or a mapping of its fields. ``draw`` draws
            by ``seed`` from what the leak guard left, see :func:`~datamodules.list_choice.chosen_lists`.
        dev: files of lists to choose settings and checkpoints by, each a :class:`~datamodules.specs.ListFile` or a
            mapping of its fields; None takes ``dev_fraction`` of the train lists, by source passage (and of every
            query type), or the dev file beside lists that are split already, see
            :func:`~datamodules.dev_lists.choose_dev`.
        dev_fraction: share of the train lists, in (0, 1), or None; looked at only where ``dev`` is None.
        batch_size: lists of an optimiser step, over all ranks; a corpus with fewer makes one smaller batch. None
            follows the number of lists (:func:`~datamodules.batch_sampler.fitting_batch_size`).
        list_length: candidates of a list, at most.
        candidates: ``top``, ``sample`` or ``stratified``, see :class:`~datamodules.batches.ListBatches`.
        normalization: ``percentile``, ``list_minmax`` or ``none``; percentiles are those of all candidates that
            ``prepare`` has stored with the lists, else those of the file.
        min_top_quantile: leave out lists whose best raw score is below this quantile of all scores of their
            file and type (the paper: 0.25); None keeps all.
        order: ``shuffle`` or ``rotate``, see :class:`~datamodules.batch_sampler.BatchSampler`.
        group_overlapping_lists: put lists that share passages into one batch, see
            :class:`~datamodules.batch_sampler.BatchSampler`.
        sources: ``keep``, or ``hide``: what a query that is not of ``human_types`` was cut from (its labelled positive)
            is no candidate, and objectives over the corpus do not look at it; as a label it stays.
        on_bad_list: ``error`` or ``drop``.
        leak_guard: ``drop`` leaves out, ``fail`` refuses, ``off`` keeps (with a warning) lists whose query gives away
            an evaluation query.
        leak_jaccard: word similarity from which two queries count as nearly equal.
        leak_near_passages: similarity of three-word shingles, in (0, 1], from which two passages count as one; None
            counts those of one text alone.
        human_types: query types whose labelled positives are judgements; they must not share one (its text, under
            whatever id, in whatever corpus) with an evaluation query. Other types were written from their positive,
            and may.
        evaluation: the evaluation sets to guard, each an :class:`~datamodules.specs.EvaluationSpec` or a mapping of
            its fields.
        empty_passages: ``error`` or ``keep``.
        unknown_qrels: ``error`` or ``keep``, for the guarded sets.
        cache_dir: where token ids, embeddings and memory-mapped corpora and lists are kept.
        data_dir: where downloaded data sets lie.
        token_budget: tokens of a micro-batch where passages are encoded once; None takes the machine's.
        corpus_scores: the teacher of objectives that look at the whole corpus, a
            :class:`~datamodules.specs.CorpusScoring` or a mapping of its fields; None takes its defaults.
        dev_over_corpus: compare dev queries with the whole corpus, whatever the objective does, for ``dev/corpus_kl``;
            passages must keep the base embeddings.
        guide: another encoder, which objectives compare negatives by or draw embeddings to, or arguments of
            :meth:`TextEncoder.from_pretrained <retriever.encoder.TextEncoder.from_pretrained>`; None takes
            ``passage_encoder``, else ``encoder`` as it is before training. It encodes queries and passages once.
        num_workers: threads that make batches ahead; making a batch is cheap, so 0 does on a laptop.
        seed: of order, sampling and the choice among labels.
    """

    encoder: TextEncoder
    train: Sequence[Mapping | TrainFile]
    dev: Sequence[Mapping | ListFile] | None = None
    _: KW_ONLY
    dev_fraction: float | None = None
    batch_size: int | None = None
    list_length: int = 20
    candidates: Literal["top", "sample", "stratified"] = "top"
    normalization: Literal["percentile", "list_minmax", "none"] = "percentile"
    min_top_quantile: float | None = None
    order: Literal["shuffle", "rotate"] = "shuffle"
    group_overlapping_lists: bool = False
    sources: Literal["keep", "hide"] = "keep"
    on_bad_list: Literal["error", "drop"] = "error"
    leak_guard: Literal["drop", "fail", "off"] = "drop"
    leak_jaccard: float = 0.6
    leak_near_passages: float | None = None
    human_types: Sequence[str] = ("human",)
    evaluation: Sequence[Mapping | EvaluationSpec] = ()
    empty_passages: Literal["error", "keep"] = "error"
    unknown_qrels: Literal["error", "keep"] = "error"
    cache_dir: str | Path = "outputs/cache"
    data_dir: str | Path = "data"
    token_budget: int | None = None
    corpus_scores: Mapping | CorpusScoring | None = None
    dev_over_corpus: bool = False
    guide: Mapping | TextEncoder | None = None
    passage_encoder: TextEncoder | None = None
    num_workers: int = 0
    seed: int = 1

    def __post_init__(self) -> None:
        """Check the values; nothing is opened."""
        super().__init__()
        numbers = ("batch_size", "list_length", "token_budget", "leak_jaccard")
        require_positive(**{name: getattr(self, name) for name in numbers})
        checked_threshold("data.leak_near_passages", self.leak_near_passages)
        choose("data.leak_guard", self.leak_guard, ("drop", "fail", "off"))
        choose("data.sources", self.sources, ("keep", "hide"))
        if self.num_workers < 0:
            raise InputError(f"data.num_workers is {self.num_workers}; it must not be negative.")
        if self.dev is None:
            check_dev_fraction(self.dev_fraction)
        if self.min_top_quantile is not None and not 0 <= self.min_top_quantile < 1:
            raise InputError(f"data.min_top_quantile is {self.min_top_quantile}; it must be in [0, 1), or null.")
        if not self.train:
            raise InputError("data.train names no file of query lists.")
        self.train_files: list[TrainFile] = read_list_files(TrainFile, self.train, "data.train")
        self.dev_files: list[ListFile] | None = (
            None if self.dev is None else read_list_files(ListFile, self.dev, "data.dev")
        )
        self.evaluation_specs = read_evaluation_specs(self.evaluation)
        given = self.corpus_scores or {}
        self.corpus_scoring = (
            given if isinstance(given, CorpusScoring) else read_settings(CorpusScoring, given, "data.corpus_scores")
        )
        if isinstance(self.guide, Mapping):
            guide_arguments(self.guide)  # refuses what is wrong before anything is loaded
        self.needs = BatchNeeds(labels=True)
        self.report: dict[str, Any] = {}
        self._done: tuple[int, int] | None = None
        self._sampler: BatchSampler | None = None
        self.train_lists: list[WeightedLists] = []
        self.dev_lists: list[WeightedLists] = []
        self._train: list[ListSource] = []
        self._dev: list[ListSource] = []
        self._corpora: dict[Path, Corpus] = {}

    def setup(self, stage: str | None = None) -> None:
        """Open the lists, if that is not done, and tokenise; encode passages where they are frozen. Once."""
        if self._train:
            return
        self.open()
        parts = [*self.train_lists, *self.dev_lists]
        known = {name for part in parts for name in (part.corpus.name, *by_type(part.lists)[0])}
        of_sets = {name for spec in self.evaluation_specs for name in (spec.shown_name, corpus_name(spec.path))}
        say_unused_prompts(self.encoder, known | of_sets)
        makes = self._source_maker()
        sources = [makes.source(lists) for lists in parts]
        sources = makes.with_guide(sources) if self.needs.guide else sources
        count = len(self.train_lists)
        if self.needs.all_scores:  # train and dev at once: each corpus is indexed and searched once
            sources = makes.with_corpus_scores(sources)
        elif self.needs_of(train=False).all_scores:
            sources[count:] = makes.with_corpus_scores(sources[count:])
        makes.fit_projection(sources[:count])
        self._train, self._dev = sources[:count], sources[count:]

    def _source_maker(self) -> SourceMaker:
        if self.passage_encoder is not None:
            check_passage_encoder(self.encoder, self.passage_encoder, self.needs)
        return SourceMaker(
            self.encoder,
            self.passage_encoder,
            self.needs,
            self.corpus_scoring,
            self.guide,
            self.human_types if self.sources == "hide" else None,
            self.cache_dir,
            self.token_budget,
            self.trainer,
        )

    def needs_of(self, train: bool) -> BatchNeeds:
        """What batches hold: of dev lists more than the objective needs, where ``dev_over_corpus`` says so."""
        if train or not self.dev_over_corpus:
            return self.needs
        if not self.needs.frozen_passages:
            raise InputError(
                "data.dev_over_corpus=true is for objectives whose passages keep the base embeddings, and this one "
                "trains them. Leave it out; or, if a text encoder is trained, say module.train_passage_encoder=false."
            )
        return replace(self.needs, whole_corpus=True, all_scores=True)

    def open(self, dev: bool = True) -> None:
        """Open, check, guard, split and normalise the lists, once; ``dev=False`` neither splits nor guards them."""
        if self.train_lists:
            return
        train = [self._open(spec) for spec in self.train_files]
        if not dev:
            self.train_lists = [weighted_lists(*self._chosen(*part)) for part in train]
            return
        if self.dev_files is None:
            whole = train
            train, held_out = choose_dev(whole, self.dev_fraction, self._open)
            if not held_out or not train:
                raise InputError(f"No query list is left for dev. {why_none(whole, self.dev_fraction)}")
        else:
            held_out = [self._open(spec) for spec in self.dev_files]
        before = [sum(len(lists) for _, _, lists in part) for part in (train, held_out)]
        if self.leak_guard == "off":
            say_off()
        else:
            train, held_out = self._guard(train, held_out)
        train = [self._chosen(*part) for part in train]
        left = [sum(len(lists) for _, _, lists in part) for part in (train, held_out)]
        if not all(left):
            raise InputError(
                f"No query list is left for train or for dev: of {before[0]} for train and {before[1]} for dev, the "
                f"leak guard (see above) and the choice of types and draw leave {left[0]} and {left[1]}. "
                f"Take lists of queries that give no evaluation query away."
            )
        say_where_lists_are_short([lists for _, _, lists in train], self.list_length)
        self.train_lists = [weighted_lists(*part) for part in train if len(part[2])]
        self.dev_lists = [weighted_lists(*part) for part in held_out if len(part[2])]
        self.report["train_lists"] = sum(len(s.lists) for s in self.train_lists)
        self.report["dev_lists"] = sum(len(s.lists) for s in self.dev_lists)
        self.report["teachers"] = [s.lists.metadata.get("teacher") for s in self.train_lists]
        self.report["files"] = [about_file("train", *p) for p in train] + [about_file("dev", *p) for p in held_out]

    def train_dataloader(self) -> DataLoader:
        """One item is one batch of this rank."""
        loader = self._loader(self._train, train=True)
        self._sampler = loader.sampler
        self._sampler.done = self._done
        return loader

    def state_dict(self) -> dict[str, int]:
        """How far training is, so that a run resumed inside an epoch goes on with the batches that are left."""
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.completed
        return {"epoch": self.trainer.current_epoch, "batches": done}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Take up a resumed run."""
        self._done = state_dict["epoch"], state_dict["batches"]
        if self._sampler is not None:  # under FSDP, the loader is there before the checkpoint is read
            self._sampler.done = self._done

    def val_dataloader(self) -> DataLoader:
        """The dev lists in their order, each once."""
        return self._loader(self._dev, train=False)

    @property
    def lists_of_step(self) -> int:
        """Return the batch size that was asked for, or that fits the lists, but no more than there are; once open."""
        lists = sum(len(part.lists) for part in self.train_lists)
        return min(lists, self.batch_size or fitting_batch_size(lists))

    def dev_query_ids(self, corpus: str) -> list[str]:
        """Ids of the dev queries of a corpus."""
        return [q for s in self.dev_lists if s.corpus.name == corpus for q in s.lists.query_ids.to_pylist()]

    def overlap(self, data: EvaluationSet) -> dict[str, str]:
        """Evaluation queries that training comes close to, see :func:`~datamodules.leakage.overlap.find_overlap`."""
        return find_overlap(data, self.train_lists)

    def sampler(
        self, train: bool, rank: int = 0, world_size: int = 1, group_overlapping_lists: bool | None = None
    ) -> BatchSampler:
        """Which lists a rank's batches hold, of train or of dev.

        Args:
            train: train lists, not dev lists.
            rank: this process's number.
            world_size: number of processes.
            group_overlapping_lists: None as the settings say.
        """
        grouped = self.group_overlapping_lists if group_overlapping_lists is None else group_overlapping_lists
        return BatchSampler(
            self.train_lists if train else self.dev_lists,
            self.lists_of_step if train else dev_batch_size(self.needs_of(train), self.list_length),
            self.seed,
            self.order if train else None,
            rank,
            world_size,
            grouped,
        )

    def drawn_batches(self, lists: int) -> Iterator[tuple[RetrievalBatch, list[str]]]:
        """Make batches of at most so many train lists, with their types; the same whatever the seed. Once set up."""
        columns = self.corpus_scoring.columns
        dataset = ListBatches(self._train, self.list_length, "top", self.needs, columns, drawn_anew=False)
        return drawn_batches(dataset, lists, self.lists_of_step)

    def _chosen(self, spec: ListFile, corpus: Corpus, lists: QueryLists) -> Part:
        """What a train file's ``types`` and ``draw`` take of the lists that are left."""
        assert isinstance(spec, TrainFile)
        return spec, corpus, chosen_lists(lists, f"data.train: {spec.path}", spec.types, spec.draw, self.seed)

    def _loader(self, sources: list[ListSource], train: bool) -> ThreadedLoader:
        candidates = self.candidates if train else "top"
        columns, needs = self.corpus_scoring.columns, self.needs_of(train)
        dataset = ListBatches(sources, self.list_length, candidates, needs, columns, train)
        ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else ()
        return ThreadedLoader(dataset, self.sampler(train, *ranks), self.num_workers)

    def _open(self, spec: ListFile) -> Part:
        corpus = self._corpus(spec.corpus)
        lists, dropped = open_list_file(spec.path, corpus, self.cache_dir, self.on_bad_list, self.needs)
        self._say_left_out(spec, lists, dropped)
        types, groups = by_type(lists)
        stored = lists.metadata.get("scale") or {}
        scale = {number: stored[name] for number, name in enumerate(types) if name in stored}
        if self.min_top_quantile is not None:
            keep = confident(lists.scores, lists.offsets, groups, self.min_top_quantile)
            log.info("%s: %d of %d lists have a best score too low", lists.source.name, (~keep).sum(), len(lists))
            lists, groups = lists.select(keep), groups[keep]
        # over all candidates, as prepare stores it, or the whole file: train and dev share one scale
        scores = normalize_scores(lists.scores, lists.offsets, groups, self.normalization, scale)
        lists = replace(lists, scores=scores)
        if self.sources == "hide":
            if Path(spec.path).suffix == SUFFIX:
                raise InputError(f"{spec.path}: plain texts were cut from no passage; say data.sources=keep.")
            before = len(lists)
            lists = without_sources(lists, self.human_types)
            short = before - len(lists)
            self._say_left_out(spec, lists, {"fewer than two candidates beside its source": short} if short else {})
        return spec, corpus, lists

    def _say_left_out(self, spec: ListFile, lists: QueryLists, reasons: Mapping[str, int]) -> None:
        if reasons:
            log.warning("%s: left out %s", lists.source, ", ".join(f"{n} lists: {why}" for why, n in reasons.items()))
            self.report.setdefault("bad_lists", {}).setdefault(spec.path, {}).update(reasons)

    def _corpus(self, path: str) -> Corpus:
        folder = Path(os.path.abspath(find_dataset(path, self.data_dir)))  # one folder has many spellings
        if folder not in self._corpora:
            corpus = load_corpus(folder, empty_passages=self.empty_passages, cache_dir=self.cache_dir)
            twin = [p for p, other in self._corpora.items() if other.name == corpus.name]
            if twin:
                raise InputError(f"Two corpora are named {corpus.name!r}: {twin[0]} and {folder}. Rename one folder.")
            self._corpora[folder] = corpus
        return self._corpora[folder]

    def _guard(self, train: list[Part], dev: list[Part]) -> tuple[list[Part], list[Part]]:
        """Leave out lists that give away an evaluation query, then train lists that give away a dev query."""
        guard = LeakGuard(self.leak_guard, self.leak_jaccard, self.leak_near_passages, self.human_types)

        def checked(parts: list[Part], against: Guarded) -> list[Part]:
            return [(spec, corpus, guard.without_leaks(corpus, lists, against)) for spec, corpus, lists in parts]

        for spec in self.evaluation_specs:
            if not spec.chooses:  # the others are guarded below, as dev lists
                against = self._guarded(guard, spec)
                train, dev = checked(train, against), checked(dev, against)
        for _, corpus, lists in dev:
            train = checked(train, guard.lists("the dev lists", corpus, lists))
        if guard.left_out:
            self.report["leak_guard"] = guard.left_out
        return train, dev

    def _guarded(self, guard: LeakGuard, spec: EvaluationSpec) -> Guarded:
        """The queries of an evaluation set."""
        corpus = self._corpus(spec.path)
        if spec.lists is not None:
            lists = held_out_lists(spec.lists, spec.types, corpus, self.cache_dir, self.on_bad_list)
            return guard.lists(spec.name or corpus.name, corpus, lists)
        target = load_evaluation_set(
            spec.path, spec.source, data_dir=self.data_dir, unknown_qrels=self.unknown_qrels, corpus=corpus
        )
        return guard.queries(f"{target.name}/{spec.source}", target.corpus, target.queries, target.relevant())
