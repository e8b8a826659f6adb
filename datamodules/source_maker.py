"""Makes lists ready for batches: tokens, embeddings, a teacher over the corpus, a guide."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np

from datamodules.batch_sampler import WeightedLists
from datamodules.batches import ListSource
from datamodules.caches import cached_embeddings
from datamodules.corpus import Corpus
from datamodules.corpus_scores import CorpusScores, corpus_scores
from datamodules.guide import guide_arguments
from datamodules.hidden_states import with_states
from datamodules.prompted import passage_tokens, query_tokens
from datamodules.sources import with_sources
from datamodules.specs import CorpusScoring
from retriever.batch import BatchNeeds
from retriever.encoder.projection import before_projection, fit
from retriever.encoder.text_encoder import TextEncoder
from retriever.encoder.tokens import TokenizedTexts
from retriever.errors import InputError

_FITTED = 4096, 2048  # queries and passages, at most, that a projection is fitted to


@dataclass(eq=False)
class SourceMaker:
    """Makes a :class:`~datamodules.batches.ListSource` of opened lists; each corpus is tokenised and encoded once.

    Args:
        encoder: whose tokenizer, prompts and lengths are used; encodes what the objective does not train.
        passage_encoder: takes its place for passages, and where queries are compared with these; None: ``encoder``.
        needs: what the objective needs of a batch.
        scoring: the teacher over the corpus, for :meth:`with_corpus_scores`.
        guide: arguments of the guide's encoder, or itself, for :meth:`with_guide`; None takes the passages' encoder.
        human_types: where sources are hidden, the query types that have none; None hides nothing.
        cache_dir: where token ids, embeddings and states are kept.
        token_budget: tokens of a micro-batch; None takes the machine's.
        trainer: on whose device and in whose precision texts are encoded; None where nothing is to be.
    """

    encoder: TextEncoder
    passage_encoder: TextEncoder | None
    needs: BatchNeeds
    scoring: CorpusScoring
    guide: Mapping[str, Any] | TextEncoder | None
    human_types: Sequence[str] | None
    cache_dir: str | Path
    token_budget: int | None
    trainer: L.Trainer | None
    _of_corpus: dict[str, tuple[TokenizedTexts, np.memmap | None]] = field(default_factory=dict, init=False)

    def source(self, part: WeightedLists) -> ListSource:
        """Add token ids and, where passages are frozen, the corpus' embeddings."""
        tokens, embeddings = self._passages(part.corpus)
        name = part.lists.source.name
        queries = self._started(self._queries(part, self.encoder), name)
        return ListSource(
            corpus=part.corpus,
            lists=part.lists,
            weights=part.weights,
            query_tokens=queries,
            passage_tokens=tokens,
            passage_embeddings=embeddings,
            hidden=None if self.human_types is None else with_sources(part.lists, self.human_types),
        )

    def with_corpus_scores(self, sources: list[ListSource]) -> list[ListSource]:
        """Add the teacher that scores all passages; each corpus is searched once for the queries of all files."""
        teachers: dict[int, CorpusScores] = {}
        for corpus, tokens in {s.corpus.name: (s.corpus, s.passage_tokens) for s in sources}.values():
            of_corpus = [(n, s) for n, s in enumerate(sources) if s.corpus.name == corpus.name]
            embeddings, encoded_by = None, ""
            if self.scoring.encoder:
                queries = [self._queries_beside_passages(s) for _, s in of_corpus]
                passages = self._of_corpus[corpus.name][1]
                passages = self._embeddings(corpus.name, tokens, self._of_passages) if passages is None else passages
                embeddings = np.concatenate(queries), passages
                # the files' folders are named by all that decides embeddings
                encoded_by = " ".join(Path(str(found.filename)).parent.name for found in (passages, *queries))
            texts = [s.lists.queries for _, s in of_corpus]
            found = corpus_scores(self.scoring, corpus, texts, embeddings, encoded_by, self.cache_dir)
            teachers |= {n: teacher for (n, _), teacher in zip(of_corpus, found, strict=True)}
        return [replace(source, corpus_scores=teachers[n]) for n, source in enumerate(sources)]

    def with_guide(self, sources: list[ListSource]) -> list[ListSource]:
        """Add the guide's embeddings; each corpus is encoded once."""
        guide = self.guide or self._of_passages
        if isinstance(guide, Mapping):
            guide = TextEncoder.from_pretrained(**guide_arguments(guide))
        embedded: dict[str, np.memmap] = {}
        found = []
        for source in sources:
            name = source.corpus.name
            if name not in embedded:
                tokens = passage_tokens(source.corpus, guide, self.cache_dir)
                embedded[name] = self._embeddings(name, tokens, guide)
            queries = self._embeddings(source.lists.source.name, self._queries(source, guide), guide)
            found.append(replace(source, guide=(queries, embedded[name])))
        return found

    def fit_projection(self, sources: Sequence[ListSource]) -> None:
        """Fit the encoder's projection, where it has one that is not fitted, by least squares.

        To the embeddings of queries and passages by the passages' encoder or, without one, by the guide.

        Args:
            sources: the train lists; those of weight 0 are not looked at.
        """
        sources = [source for source in sources if source.weights.any()]
        if getattr(self.encoder, "projection", None) != "unfitted" or not sources:
            return
        plain, given, wanted = before_projection(self.encoder), [], []
        # unless the guide is a third encoder, it has encoded the queries already
        by_guide = self.passage_encoder is None or self.guide is None
        for source in sources:
            taken = np.flatnonzero(source.weights)
            name, rows = source.lists.source.name, taken[_spread(len(taken), _FITTED[0] // len(sources))]
            given.append(self._embeddings(name, self._queries(source, plain).select(rows), plain))
            if by_guide and source.guide is not None:
                wanted.append(source.guide[0][rows])
            else:
                tokens = self._queries(source, self._of_passages).select(rows)
                wanted.append(self._embeddings(name, tokens, self._of_passages))
        corpora = {source.corpus.name: source for source in sources}
        for name, source in corpora.items():
            embeddings = source.guide[1] if by_guide and source.guide is not None else source.passage_embeddings
            assert embeddings is not None  # there is a passage encoder, or a guide
            rows = _spread(len(source.corpus), _FITTED[1] // len(corpora))
            given.append(
                self._embeddings(name, passage_tokens(source.corpus, plain, self.cache_dir).select(rows), plain)
            )
            wanted.append(embeddings[rows])
        fit(self.encoder, np.concatenate(given), np.concatenate(wanted))

    @property
    def _of_passages(self) -> TextEncoder:
        return self.encoder if self.passage_encoder is None else self.passage_encoder

    def _queries_beside_passages(self, source: ListSource) -> np.memmap:
        """Embed queries in the space of the passages, by weights that are not trained yet."""
        name = source.lists.source.name
        if self.passage_encoder is None:
            return self._embeddings(name, source.query_tokens)
        return self._embeddings(name, self._queries(source, self.passage_encoder), self.passage_encoder)

    def _passages(self, corpus: Corpus) -> tuple[TokenizedTexts, np.memmap | None]:
        """Token ids of a corpus and, where the objective needs them, embeddings by the base weights; looked up once."""
        if corpus.name not in self._of_corpus:
            tokens = passage_tokens(corpus, self._of_passages, self.cache_dir)
            if self.needs.frozen_passages:
                self._of_corpus[corpus.name] = tokens, self._embeddings(corpus.name, tokens, self._of_passages)
            else:
                self._of_corpus[corpus.name] = self._started(tokens, corpus.name), None
        return self._of_corpus[corpus.name]

    def _queries(self, part: WeightedLists, encoder: TextEncoder) -> TokenizedTexts:
        types = part.lists.query_types
        return query_tokens(part.lists.queries, encoder, self.cache_dir, [part.corpus.name], types)

    def _embeddings(self, name: str, tokens: TokenizedTexts, encoder: TextEncoder | None = None) -> np.memmap:
        encoder = self.encoder if encoder is None else encoder
        with self._on_device(encoder):
            return cached_embeddings(tokens, encoder, self.cache_dir, self.token_budget, f"encode {name}")

    def _started(self, tokens: TokenizedTexts, name: str) -> TokenizedTexts:
        """Let texts begin behind the frozen layers, where there are any."""
        if not getattr(self.encoder, "starts_from_states", False):
            return tokens
        with self._on_device(self.encoder):
            return with_states(tokens, self.encoder, self.cache_dir, self.token_budget, f"frozen layers, {name}")

    @contextmanager
    def _on_device(self, encoder: TextEncoder) -> Iterator[None]:
        """Encode where, and in the precision in which, the trainer does; what is not trained does not stay there."""
        if self.trainer is None:
            raise InputError("Texts are encoded on the trainer's device; open this data module by a trainer.")
        encoder.to(self.trainer.strategy.root_device)
        with self.trainer.precision_plugin.forward_context():
            yield
        if encoder is self.passage_encoder:
            encoder.cpu()


def _spread(count: int, most: int) -> np.ndarray:
    """Choose row numbers, at most so many, evenly over all."""
    return np.unique(np.linspace(0, count - 1, min(count, max(1, most))).astype(np.int64))
