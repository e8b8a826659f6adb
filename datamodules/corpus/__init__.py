"""Corpora, queries and qrels in BEIR's folder layout: shipped, on disk, or downloaded by name."""

from typing import TYPE_CHECKING

from retriever.on_demand import import_when_used

if TYPE_CHECKING:
    from datamodules.corpus.corpus import Corpus, corpus_files, corpus_sha256, load_corpus
    from datamodules.corpus.data_sets import (
        BEIR_NAMES,
        SHIPPED,
        dataset_on_disk,
        find_dataset,
        find_file,
        require_dataset,
    )
    from datamodules.corpus.evaluation_set import EvaluationSet, load_evaluation_set
    from datamodules.corpus.qrels import judgement_files, load_qrels, qrels_file, qrels_splits, read_qrels
    from datamodules.corpus.queries import load_queries, read_queries
else:
    __getattr__ = import_when_used(__name__)
