"""Corpora, queries and qrels in BEIR's folder layout: shipped, on disk, or downloaded by name."""

from datamodules.corpus.corpus import Corpus, corpus_files, corpus_sha256, load_corpus
from datamodules.corpus.data_sets import BEIR_NAMES, SHIPPED, find_dataset, find_file
from datamodules.corpus.evaluation_set import EvaluationSet, load_evaluation_set
from datamodules.corpus.qrels import judgement_files, load_qrels, qrels_file, qrels_splits, read_qrels
from datamodules.corpus.queries import load_queries, read_queries
