"""The model card of an exported model: what it was trained on and by, how good it is, and what that does not say."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from callbacks.evaluation.metrics import headings
from callbacks.reporting.markdown import markdown_text
from callbacks.reporting.statistics import Difference
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
        frozen_passages: whether passages keep the base model's embeddings.
        step: optimiser step of the exported weights.
        figures: one per evaluation set.
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

    @property
    def base(self) -> str:
        """Name of the base model; of a local folder the last part alone, for a card is published."""
        return Path(self.encoder.name).name if Path(self.encoder.name).is_dir() else self.encoder.name

    @property
    def reranks(self) -> bool:
        """Whether the model scores pairs."""
        return isinstance(self.encoder, CrossEncoder)


def model_card(facts: CardFacts) -> str:
    """The card, in Markdown with Hugging Face's front matter."""
    parts = [_what(facts), _use(facts), _how_good(facts), _training(facts), _data(facts)]
    return f"---\n{_front_matter(facts)}\n---\n\n" + "\n\n".join(parts) + "\n"


def _front_matter(facts: CardFacts) -> str:
    kind = ["cross-encoder", "reranker"] if facts.reranks else ["sentence-similarity", "dense-retriever"]
    where = " of re-ranking" if facts.reranks else " (passages by the base model)" if facts.frozen_passages else ""
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


def _hub_name(path: str) -> str | None:
    return f"BeIR/{path}" if path in _ON_HUB else None


def _what(facts: CardFacts) -> str:
    base = markdown_text(facts.base)
    if facts.reranks:
        what = f"{base} as a cross-encoder with one logit, trained with **{facts.objective}** on labelled positives "
        return f"# {markdown_text(facts.name)}\n\n{what}against mined negatives."
    side = (
        "both sides, queries and passages."
        if not facts.frozen_passages
        else f"the query side alone: **passages must be encoded with the unchanged {base}**. An index that the "
        "base model made stays valid."
    )
    return f"# {markdown_text(facts.name)}\n\n{base}, fine-tuned for retrieval with **{facts.objective}**, {side}"


def _use(facts: CardFacts) -> str:
    if facts.reranks:
        code = [
            "from sentence_transformers import CrossEncoder",
            "",
            'logits = CrossEncoder("PATH").predict([("a query", "a passage")])',
        ]
    else:
        passages = (
            f"SentenceTransformer({json.dumps(facts.base, ensure_ascii=False)})" if facts.frozen_passages else "model"
        )
        code = [
            "from sentence_transformers import SentenceTransformer",
            "",
            'model = SentenceTransformer("PATH")',
            f"passages = {passages}",
            'scores = model.encode_query(["a query"]) @ passages.encode_document(["a title a text"]).T',
        ]
    return "## Use\n\n```python\n" + "\n".join(code) + "\n```\n\n" + _table(("", ""), _specification(facts))


def _specification(facts: CardFacts) -> list[tuple[str, str]]:
    spec: Any = facts.encoder.spec
    if facts.reranks:
        lengths = f"{spec.query_max_length}, {spec.pair_max_length} (the passage is cut, not the query)"
        return [("tokens of a query, a pair", lengths)]
    return [
        ("query prompt", _prompt(spec.query_prompt)),
        ("passage prompt", _prompt(spec.passage_prompt)),
        ("passage", "title, a space, text"),
        ("pooling", spec.pooling),
        ("normalised", "yes: inner products are cosines" if spec.normalize else "no: inner products"),
        ("dimensions", str(facts.encoder.dimension)),
        ("tokens of a query, a passage", f"{spec.query_max_length}, {spec.passage_max_length}"),
    ]


def _prompt(prompt: str) -> str:
    return f"`{repr(prompt).replace(chr(96), chr(39))}`" if prompt else "none"


def _how_good(facts: CardFacts) -> str:
    if not facts.figures:
        return "## How good it is\n\nIt was evaluated on no data set."
    start = "BM25" if facts.reranks else "base"
    beside = headings(facts.figures[0].model)
    head = ("data set", "queries", f"nDCG@10, {start}", "this model", "difference", "paired 95% interval")
    rows = [
        (
            f"{markdown_text(figure.name)} ({figure.split or 'held-out lists'}{', dev queries' if figure.dev else ''})",
            str(figure.difference.queries),
            f"{figure.base['ndcg@10']:.4f}",
            f"{figure.model['ndcg@10']:.4f}",
            f"{figure.difference.mean:+.4f}",
            f"[{figure.difference.low:+.4f}, {figure.difference.high:+.4f}]",
            *(f"{figure.base[name]:.4f} → {figure.model[name]:.4f}" for name in beside),
        )
        for figure in facts.figures
    ]
    caveats = "\n".join(f"* {sentence}" for sentence in _caveats(facts))
    return f"## How good it is\n\n{_table((*head, *beside.values()), rows)}\n\n{caveats}"


def _caveats(facts: CardFacts) -> list[str]:
    unclear = [markdown_text(f.name) for f in facts.figures if f.difference.low <= 0 <= f.difference.high]
    sentences = [
        "The interval is a bootstrap over the queries: how far the mean difference would move with other queries of "
        f"that kind. It knows nothing of other seeds: this is one run, with seed {facts.seed}."
    ]
    if unclear:
        sentences.append(f"On {', '.join(unclear)} the interval holds 0: no difference can be told.")
    few = [f"{markdown_text(f.name)} ({f.difference.queries})" for f in facts.figures if f.difference.queries < 100]
    if few:
        sentences.append(f"Few queries: {', '.join(few)}. An interval from so few is itself unsure.")
    if facts.criterion is None:
        sentences.append("The weights are those of the last step; no criterion chose among steps.")
    elif facts.criterion.startswith("val/"):
        sentences.append(f"The checkpoint was chosen by `{facts.criterion}`: that figure is flattered by the choice.")
    else:
        sentences.append(f"The checkpoint was chosen by `{facts.criterion}`, on dev lists.")
    if any(figure.dev for figure in facts.figures):
        sentences.append("Dev queries are there to choose settings by; what was chosen by them is flattered by them.")
    if not facts.reranks:
        spec = facts.encoder.spec
        sentences.append(
            f"The figures are of queries cut at {spec.query_max_length} tokens, as encode_query does; encode cuts all "
            f"texts at the passages' {spec.passage_max_length}."
        )
    return sentences


def _training(facts: CardFacts) -> str:
    settings = {name: value for name, value in facts.settings.items() if name not in _INTERNAL}
    rows = [
        ("objective", facts.objective),
        *((f"`{name}`", _shown(value)) for name, value in settings.items()),
        *((name, _shown(value)) for name, value in facts.training.items()),
        ("seed", str(facts.seed)),
        ("weights of step", str(facts.step)),
    ]
    return f"## How it was trained\n\n{_table(('setting', 'value'), rows)}"


def _data(facts: CardFacts) -> str:
    head = ("part", "lists", "query types", "passes an epoch", "corpus", "file", "teacher")
    rows = [
        (
            file["part"],
            str(file["lists"]),
            ", ".join(f"{count} {markdown_text(kind)}" for kind, count in file["types"].items()),
            _shown(file["weight"]) if file["part"] == "train" else "",
            markdown_text(Path(file["corpus"]).name),
            markdown_text(file["file"]),
            markdown_text(_teacher(file["teacher"])),
        )
        for file in facts.data["files"]
    ]
    total = f"{facts.data['train_lists']} train lists and {facts.data['dev_lists']} dev lists."
    return f"## Data\n\n{total}\n\n{_table(head, rows)}\n\n{_left_out(facts)}"


def _left_out(facts: CardFacts) -> str:
    sentences = []
    for leak in facts.data.get("leak_guard", ()):
        reasons = {why: n for why, n in leak.items() if why not in ("lists", "against", "of")}
        counts = ", ".join(f"{n} whose query {why}" for why, n in reasons.items())
        against, lists = markdown_text(leak["against"]), markdown_text(leak["lists"])
        sentences.append(f"* {counts} a query of {against} (of {leak['of']} lists of {lists})")
    for name, reasons in facts.data.get("bad_lists", {}).items():
        counts = ", ".join(f"{n}: {why}" for why, n in reasons.items())
        sentences.append(f"* bad lists of {markdown_text(Path(name).name)}: {markdown_text(counts)}")
    if not sentences:
        return "No list was left out."
    return "Left out, lest train queries give away evaluation queries, or as bad:\n\n" + "\n".join(sentences)


def _teacher(teacher: Any) -> str:
    """In words, of what a list file's metadata say: a sentence, or member → what is known of it."""
    if not isinstance(teacher, Mapping):
        return str(teacher or "unknown")
    names = [str(about.get("name") or about.get("kind")) for about in teacher.values() if isinstance(about, Mapping)]
    return " and ".join(names) or "unknown"


def _shown(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else markdown_text(str(value))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(re.sub(r"(?<!\\)\|", r"\\|", cell).replace("\n", " ") for cell in line) + " |"
        for line in lines
    )
