"""The model card of an exported model: what it was trained on and by, how good it is, and what that does not say."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from callbacks.evaluation.metrics import headings
from callbacks.reporting.markdown import markdown_text
from callbacks.reporting.statistics import FEW, Difference
from callbacks.reporting.templates import render
from datamodules.corpus import BEIR_NAMES
from retriever.cross_encoder.cross_encoder import CrossEncoder
from retriever.encoder.text_encoder import TextEncoder

_INTERNAL = ("_target_", "_convert_", "token_budget", "uncheckpointed_tokens", "train_passage_encoder")
_ON_HUB = set(BEIR_NAMES) - {"cqadupstack"}  # that one is in parts there


@dataclass(frozen=True)
class Figure:
    """How good the model is on one evaluation set, beside what it started from.

    Attributes:
        name: of the set.
        path: as the evaluation names it: a folder or a BEIR name.
        split: of the judgements; None where the queries are those of query lists.
        dev: whether its queries are those of the dev lists.
        base: metric → mean over queries, of the base model (of BM25 where a cross-encoder re-ranks).
        model: the same of this model.
        difference: of nDCG@10, paired by query.
    """

    name: str
    path: str
    split: str | None
    dev: bool
    base: Mapping[str, float]
    model: Mapping[str, float]
    difference: Difference


@dataclass(frozen=True)
class CardFacts:
    """What a card tells beside figures.

    Attributes:
        name: of the run.
        seed: of the run.
        objective: the class's name.
        settings: the objective's hyperparameters, by the names that the configuration gives them.
        training: further settings, in words → value.
        criterion: the metric that chose the checkpoint; None where none was kept, and the weights are the last step's.
        data: the data module's report.
        encoder: the exported model.
        frozen_passages: whether passages keep the embeddings of the base model, or of ``passage_encoder``.
        step: optimiser step of the exported weights.
        figures: one per evaluation set.
        passage_encoder: encodes the passages in the base model's place.
    """

    name: str
    seed: int
    objective: str
    settings: Mapping[str, Any]
    training: Mapping[str, Any]
    criterion: str | None
    data: Mapping[str, Any]
    encoder: TextEncoder | CrossEncoder
    frozen_passages: bool
    step: int
    figures: Sequence[Figure]
    passage_encoder: TextEncoder | None = None

    @property
    def base(self) -> str:
        """Name of the base model."""
        return _published_name(self.encoder.name)

    @property
    def passage_model(self) -> str:
        """Name of the model that encodes passages where these are frozen."""
        return self.base if self.passage_encoder is None else _published_name(self.passage_encoder.name)

    @property
    def is_projected(self) -> bool:
        """Whether its embeddings were projected to another encoder's space before the first step."""
        return getattr(self.encoder, "projection", None) is not None

    @property
    def passage_spec(self) -> Any:
        """How passages are read."""
        return (self.passage_encoder or self.encoder).spec

    @property
    def reranks(self) -> bool:
        """Whether the model scores pairs."""
        return isinstance(self.encoder, CrossEncoder)


def model_card(facts: CardFacts) -> str:
    """The card, in Markdown with Hugging Face's front matter."""
    unclear = [markdown_text(f.name) for f in facts.figures if f.difference.low <= 0 <= f.difference.high]
    few = [f"{markdown_text(f.name)} ({f.difference.queries})" for f in facts.figures if f.difference.queries < FEW]
    return render(
        Path(__file__).with_suffix(".md"),
        card=facts,
        front_matter=_front_matter(facts),
        beside=headings(facts.figures[0].model) if facts.figures else {},
        unclear=unclear,
        few=few,
        settings={name: value for name, value in facts.settings.items() if name not in _INTERNAL},
        left_out=_left_out(facts.data),
        json=partial(json.dumps, ensure_ascii=False),
        path=Path,
        prompt=_prompt,
        shown=_shown,
        teacher=teacher_names,
    )


def _front_matter(facts: CardFacts) -> str:
    kind = ["cross-encoder", "reranker"] if facts.reranks else ["sentence-similarity", "dense-retriever"]
    other = "the base model" if facts.passage_encoder is None else facts.passage_model
    where = " of re-ranking" if facts.reranks else f" (passages by {other})" if facts.frozen_passages else ""
    results = [
        EvalResult(
            task_type="text-ranking" if facts.reranks else "information-retrieval",
            task_name="Re-ranking" if facts.reranks else "Information Retrieval",
            dataset_type=_hub_name(figure.path) or figure.name,
            dataset_name=figure.name,
            dataset_split=figure.split,
            metric_type="ndcg_at_10",
            metric_name=f"nDCG@10{where}",
            metric_value=round(figure.model["ndcg@10"], 5),
        )
        for figure in facts.figures
        if figure.split is not None and not figure.dev  # only what others measure by the same name
    ]
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", facts.encoder.name) and facts.base == facts.encoder.name
    corpora = {name for file in facts.data["files"] if (name := _hub_name(file["corpus"]))}
    return ModelCardData(
        library_name="sentence-transformers",
        pipeline_tag="text-ranking" if facts.reranks else "sentence-similarity",
        base_model=facts.base if on_hub else None,
        datasets=sorted(corpora) or None,
        tags=["sentence-transformers", "retrieval", *kind],
        model_name=facts.name,
        eval_results=results or None,
    ).to_yaml()


def _published_name(model: str) -> str:
    """Of a local folder the last part alone, for a card is published."""
    return Path(model).name if Path(model).is_dir() else model


def _hub_name(path: str) -> str | None:
    return f"BeIR/{path}" if path in _ON_HUB else None


def _prompt(prompt: str | Mapping[str, str]) -> str:
    if isinstance(prompt, Mapping):
        return "; ".join(f"{markdown_text(name)}: {_prompt(text)}" for name, text in prompt.items())
    text = repr(prompt).replace("`", "'").replace("|", r"\|")
    return f"`{text}`" if prompt else "none"


def _left_out(data: Mapping[str, Any]) -> list[str]:
    sentences = []
    for leak in data.get("leak_guard", ()):
        reasons = {why: n for why, n in leak.items() if why not in ("lists", "against", "of")}
        counts = ", ".join(f"{n} whose query {why}" for why, n in reasons.items())
        against, lists = markdown_text(leak["against"]), markdown_text(leak["lists"])
        sentences.append(f"* {counts} a query of {against} (of {leak['of']} lists of {lists})")
    for name, reasons in data.get("bad_lists", {}).items():
        counts = ", ".join(f"{n}: {why}" for why, n in reasons.items())
        sentences.append(f"* bad lists of {markdown_text(Path(name).name)}: {markdown_text(counts)}")
    return sentences


def teacher_names(teacher: Any) -> str:
    """In words, of what a list file's metadata say: a sentence, or member → what is known of it."""
    if not isinstance(teacher, Mapping):
        return str(teacher or "unknown")
    names = [str(about.get("name") or about.get("kind")) for about in teacher.values() if isinstance(about, Mapping)]
    return " and ".join(names) or "unknown"


def _shown(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else markdown_text(str(value))
