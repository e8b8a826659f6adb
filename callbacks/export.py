"""ExportBest: the model that the dev criterion chose, as a folder that sentence-transformers loads."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L

from callbacks.beir_evaluation import BeirEvaluation
from callbacks.best_checkpoint import best_checkpoint_step, load_best_weights
from retriever.cross_encoder import CrossEncoder
from retriever.module import QueryListModule

log = logging.getLogger(__name__)

_CARD = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
base_model: {base}
tags: [retrieval, dense-retriever]
---

# {name}

{base}, fine-tuned with **{objective}** (seed {seed}), {passages}

| | |
|---|---|
| query prompt | `{query_prompt!r}` |
| passage prompt | `{passage_prompt!r}` |
| pooling, normalised | {pooling}, {normalize} |
| tokens of a query, a passage | {query_max_length}, {passage_max_length} |
| train lists, dev lists | {train_lists}, {dev_lists} |
| teacher | {teacher} |
| chosen by | {criterion}, at step {step} |

Sentence-transformers cuts queries at the passages' length; the figures below were measured with the query's own.

## nDCG@10

| data set | base | this model |
|---|---|---|
{figures}

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("PATH")
scores = model.encode_query(["a query"]) @ model.encode_document(["a passage"]).T
```
"""

_CROSS_ENCODER_CARD = """---
library_name: sentence-transformers
pipeline_tag: text-ranking
base_model: {base}
tags: [retrieval, reranker, cross-encoder]
---

# {name}

{base} as a cross-encoder with one logit, trained with **{objective}** (seed {seed}) on labelled positives against mined
negatives.

| | |
|---|---|
| tokens of a query, a pair | {query_max_length}, {pair_max_length} (the passage is cut, not the query) |
| train lists, dev lists | {train_lists}, {dev_lists} |
| chosen by | {criterion}, at step {step} |

## nDCG@10 of re-ranking

| data set | first stage | re-ranked by this model |
|---|---|---|
{figures}

```python
from sentence_transformers import CrossEncoder

logits = CrossEncoder("PATH").predict([("a query", "a passage")])
```
"""


class ExportBest(L.Callback):
    """At the end of training, load the best checkpoint into the module and save its encoder.

    Args:
        folder: the run folder; the model goes to ``model`` in it.
        facts: ``name``, ``seed``, ``objective`` and ``criterion`` for the model card.
    """

    def __init__(self, folder: str | Path, facts: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.facts = dict(facts)

    def on_train_end(self, trainer: L.Trainer, pl_module: QueryListModule) -> None:
        """Export, on the first rank."""
        load_best_weights(trainer, pl_module)
        pl_module.end_sharding()
        if not trainer.is_global_zero:
            return
        target, temporary = self.folder / "model", self.folder / ".model.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        pl_module.encoder.save(temporary)
        (temporary / "README.md").write_text(self._card(trainer, pl_module), encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        log.info("Exported the model of step %s to %s", best_checkpoint_step(trainer), target)

    def _card(self, trainer: L.Trainer, module: QueryListModule) -> str:
        evaluation = next((c for c in trainer.callbacks if isinstance(c, BeirEvaluation)), None)
        history = {entry["step"]: entry["metrics"] for entry in evaluation.history} if evaluation else {}
        step = best_checkpoint_step(trainer)
        chosen = history.get(step, {})
        names = [data.name for data in evaluation.data if data.name in chosen] if evaluation else []
        rows = [f"| {d} | {evaluation.base[d]['ndcg@10']:.4f} | {chosen[d]['ndcg@10']:.4f} |" for d in names]
        report = trainer.datamodule.report
        card = _CROSS_ENCODER_CARD if isinstance(module.encoder, CrossEncoder) else _CARD
        return card.format(
            base=module.encoder.name,
            step=step,
            figures="\n".join(rows),
            passages="both sides."
            if module.train_passage_encoder
            else f"the query side alone: **passages must be encoded with the unchanged {module.encoder.name}**.",
            train_lists=report["train_lists"],
            dev_lists=report["dev_lists"],
            teacher="; ".join(sorted({str(t) for t in report["teachers"]})),
            **self.facts,
            **vars(module.encoder.spec),
        )
