"""Queries with judgements over a corpus."""

from dataclasses import dataclass, field
from pathlib import Path

from datamodules.corpus.corpus import Corpus, load_corpus
from datamodules.corpus.data_sets import find_dataset
from datamodules.corpus.qrels import load_qrels
from datamodules.corpus.queries import load_queries
from retriever.errors import InputError, choose, shown


@dataclass(frozen=True)
class EvaluationSet:
    """Queries with judgements over a corpus.

    Attributes:
        name: as in metric names, ``val/<name>/ndcg@10``.
        corpus: the whole corpus.
        queries: id → text, those with at least one judgement.
        qrels: query id → passage id → grade (0 is judged and not relevant).
        relevance_level: the lowest grade that counts as relevant in metrics of relevant and other passages; 2 for TREC
            DL, whose 1 is "related". nDCG's gains are the grades at any level.
    """

    name: str
    corpus: Corpus
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]] = field(repr=False)
    relevance_level: int = 1

    def is_query_itself(self, passage_id: str) -> bool:
        """Whether a passage that has a query's id is taken for that query: it is not judged relevant to it.

        ArguAna and Quora hold their queries among the passages. Elsewhere ids are equal by chance, as in a list of
        questions and answers that are both numbered from 0.
        """
        return passage_id in self.qrels and self.qrels[passage_id].get(passage_id, 0) <= 0

    def relevant(self) -> dict[str, set[str]]:
        """Query id → ids of the passages judged relevant (grade above 0)."""
        return {q: {p for p, grade in judged.items() if grade > 0} for q, judged in self.qrels.items()}


def load_evaluation_set(
    path: str,
    split: str = "test",
    *,
    name: str | None = None,
    data_dir: str | Path = "data",
    unknown_qrels: str = "error",
    empty_passages: str = "error",
    corpus: Corpus | None = None,
    cache_dir: str | Path | None = None,
) -> EvaluationSet:
    """Load corpus, queries and one split's qrels, and check that they belong together.

    Args:
        path: as for :func:`find_dataset`.
        split: file name under ``qrels``, without ``.tsv``.
        name: for metric names; None takes the folder's name.
        data_dir: where downloaded sets lie.
        unknown_qrels: ``error`` where a judgement names an unknown query or passage; ``keep`` keeps judgements of
            passages that the corpus lacks (they count in the ideal ranking, as in trec_eval) and leaves out unknown
            queries.
        empty_passages: as for :func:`load_corpus`.
        corpus: the corpus, if it is loaded already.
        cache_dir: as for :func:`load_corpus`.

    Raises:
        InputError: with file and line.
    """
    choose("unknown_qrels", unknown_qrels, ("error", "keep"))
    folder = find_dataset(path, data_dir)
    corpus = corpus or load_corpus(folder, empty_passages=empty_passages, cache_dir=cache_dir)
    queries = load_queries(folder)
    qrels_path, judged = load_qrels(folder, split)
    if unknown_qrels == "error":
        judgements = [(q, p, line) for q, passages in judged.items() for p, (_, line) in passages.items()]
        rows = corpus.rows([p for _, p, _ in judgements])
        for (query_id, passage_id, line), row in zip(judgements, rows, strict=True):
            missing = [f"query {shown(query_id)}"] if query_id not in queries else []
            missing += [f"passage {shown(passage_id)}"] if row < 0 else []
            if missing:
                raise InputError(
                    f"{qrels_path}:{line}: {missing[0]} is not in this data set. Are these the qrels of another "
                    "corpus? To go on all the same: unknown_qrels=keep."
                )
    qrels = {q: {p: g for p, (g, _) in passages.items()} for q, passages in judged.items() if q in queries}
    if not qrels:
        raise InputError(f"{qrels_path}: no judgement of any query of {folder}.")
    return EvaluationSet(name or folder.name, corpus, {q: queries[q] for q in qrels}, qrels)
