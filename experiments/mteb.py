"""An exported model under MTEB, on local files: python -m experiments.mteb RUN/model [--dataset PATH] [--passages M].

Needs no network: corpus, queries and judgements are those of a BEIR-layout folder (or a shipped or BEIR name).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from callbacks.reporting.results import RESULTS
from datamodules.corpus import EvaluationSet, load_evaluation_set
from experiments.cli.errors import KindParser
from experiments.comparison.runs import find_runs, read_runs
from retriever.encoder.sentence_transformers_layout import read_spec
from retriever.encoder.spec import EncoderSpec
from retriever.errors import InputError, installed_by
from retriever.pretrained.source import find_model
from retriever.printable import printable

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

FIGURES = {"ndcg@10": "ndcg_at_10", "recall@100": "recall_at_100"}  # our name → MTEB's


def mteb_figures(model: str | Path, data: EvaluationSet, passages: str | Path | None = None) -> dict[str, float]:
    """Evaluate a sentence-transformers folder by ``mteb``; metric → mean over queries, in [0, 1].

    Args:
        model: the folder; its own prompts, pooling and lengths are used.
        data: queries, judgements and the passages to search; a query's own id is taken out of its hits, unless it is
            judged relevant.
        passages: another model that encodes the passages, for one whose query side alone was trained.

    Raises:
        InputError: ``mteb`` is not installed; or a model that is not there, or not in sentence-transformers' layout.
    """
    with installed_by("mteb", "This"):
        import mteb
    encoder = _loaded(str(model), "the model", data)
    if passages is not None:
        encoder = _two_sided(encoder, _loaded(str(passages), "--passages", data))
    reads = find_model(str(model if passages is None else passages)).files
    has_titles = read_spec(reads).get("passage_titles", True)
    quiet = {"show_progress_bar": False}
    options = {"batch_size": 32, **quiet}
    task = _task(data, has_titles)
    result = mteb.evaluate(encoder, task, encode_kwargs=options, cache=None, co2_tracker=False, **quiet)
    [scores] = result.task_results[0].scores["test"]
    return {ours: scores[theirs] for ours, theirs in FIGURES.items()}


def _loaded(model: str, setting: str, data: EvaluationSet) -> SentenceTransformer:
    source = find_model(model, setting=setting)
    if not (source.files / "modules.json").is_file():
        raise InputError(
            f"{setting} is {model!r}, which has no modules.json: it does not say how it pools. Name an exported "
            "folder, RUN/model."
        )
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(source.load_from, revision=source.revision)
    spec = EncoderSpec(**read_spec(source.files))
    if spec.prompted_names:
        of_set = spec.prompted_for(data.name, data.corpus.name)
        loaded.prompts |= {"query": of_set.query_prompt, "document": of_set.passage_prompt}
    return loaded


def _task(data: EvaluationSet, has_titles: bool) -> Any:
    """A retrieval task over the set, as MTEB has them; MTEB joins title and text as a corpus here does."""
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    # MTEB takes out every hit of the query's id: a query whose id is by chance that of a relevant passage gets another
    names = {q: q if data.is_query_itself(q) else f"query {q}" for q in data.queries}

    class Local(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name=f"Local-{data.name}",
            description="A data set on this machine.",
            dataset={"path": data.name, "revision": "local"},
            type="Retrieval",
            category="t2t",
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score=FIGURES["ndcg@10"],
        )
        ignore_identical_ids = True

        def load_data(self, *_: Any, **__: Any) -> None:
            corpus = data.corpus
            titles = corpus.titles.to_pylist() if has_titles else [""] * len(corpus)
            passages = {"id": corpus.ids.to_pylist(), "title": titles, "text": corpus.texts.to_pylist()}
            split = {
                "corpus": Dataset.from_dict(passages),
                "queries": Dataset.from_dict({"id": list(names.values()), "text": list(data.queries.values())}),
                "relevant_docs": {names[query]: judged for query, judged in data.qrels.items()},
                "top_ranked": None,
            }
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    return Local()


def _two_sided(queries: SentenceTransformer, passages: SentenceTransformer) -> Any:
    """One model for the queries, another for the passages, as one for MTEB."""
    from mteb.models import SentenceTransformerEncoderWrapper
    from mteb.types import PromptType

    class TwoSided(SentenceTransformerEncoderWrapper):
        def encode(self, inputs: Any, *, prompt_type: PromptType | None = None, **options: Any) -> Any:
            if prompt_type == PromptType.document:
                return passage_side.encode(inputs, prompt_type=prompt_type, **options)
            return super().encode(inputs, prompt_type=prompt_type, **options)

    passage_side = SentenceTransformerEncoderWrapper(passages)
    return TwoSided(queries)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = KindParser(prog="python -m experiments.mteb", description=__doc__.splitlines()[0])
    parser.add_argument("model", help="an exported folder, RUN/model")
    parser.add_argument("--dataset", default="scifact", help="a folder in BEIR's layout, or a shipped or BEIR name")
    parser.add_argument("--split", default="test")
    parser.add_argument("--passages", help="the model that encodes passages, where the query side alone was trained")
    of_empty = "passages without title and text: keep (default), error"
    parser.add_argument("--empty-passages", default="keep", help=of_empty)
    of_unknown = "judgements of what is not there: error (default), keep"
    parser.add_argument("--unknown-qrels", default="error", help=of_unknown)
    options = parser.parse_args(arguments)
    kept = {"empty_passages": options.empty_passages, "unknown_qrels": options.unknown_qrels}
    try:
        data = load_evaluation_set(options.dataset, options.split, **kept)
        figures = mteb_figures(options.model, data, options.passages)
        recorded = _recorded(Path(options.model).parent / RESULTS, data.name)
    except InputError as error:
        sys.exit(printable(f"error: {parser.as_options(str(error))}"))
    for metric, value in figures.items():
        print(f"{metric} {value:.5f}" + (f" (this run recorded {recorded[metric]:.5f})" if metric in recorded else ""))


def _recorded(path: Path, dataset: str) -> dict[str, float]:
    """The run's own figures of its best step, where the model lies in a run folder."""
    if not path.is_file():
        return {}
    [run] = read_runs(find_runs([path.parent])[0])
    recorded = run.metrics(dataset) if dataset in run.datasets else []
    return {metric: run.mean(dataset, metric, "best") for metric in FIGURES if metric in recorded}


if __name__ == "__main__":
    main()
