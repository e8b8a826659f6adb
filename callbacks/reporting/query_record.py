"""QueryRecord: the evaluation queries in words, and which of them training came close to."""

import logging

import lightning as L

from callbacks.evaluation.history import History
from datamodules.corpus import EvaluationSet
from datamodules.storage.files import write_json

log = logging.getLogger(__name__)
_PASSAGES = 3
_CHARACTERS = 120


class QueryRecord(L.Callback):
    """Writes ``queries/<dataset>.json`` and ``overlap/<dataset>.json`` when training starts, on the first rank.

    ``queries`` maps each evaluation query to its text (``query``) and the titles of its relevant passages
    (``relevant``, at most three; the first words where there is no title), so that a comparison of runs shows what was
    asked without looking for the corpus again. ``overlap`` maps those queries that share a relevant passage with, or
    nearly equal, a train query to the reason.

    Args:
        history: of the evaluation whose queries are written; to its folder.
    """

    def __init__(self, history: History) -> None:
        self.history = history

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write them."""
        if not trainer.is_global_zero:
            return
        folder = self.history.folder
        for data in (opened.data for opened in self.history.sets):
            overlap = trainer.datamodule.overlap(data)
            write_json(folder / "queries" / f"{data.name}.json", in_words(data))
            write_json(folder / "overlap" / f"{data.name}.json", overlap)
            log.info("%s: training comes close to %d of %d queries", data.name, len(overlap), len(data.queries))


def in_words(data: EvaluationSet) -> dict[str, dict[str, str | list[str]]]:
    """Write out queries: id → ``query`` and ``relevant``, see :class:`QueryRecord`."""
    relevant = {query: sorted(passages)[:_PASSAGES] for query, passages in data.relevant().items()}
    wanted = sorted(set().union(*relevant.values()))
    rows = dict(zip(wanted, data.corpus.rows(wanted).tolist(), strict=True))

    def title(row: int) -> str:
        words = data.corpus.titles[row].as_py() or data.corpus.texts[row].as_py()
        return words if len(words) <= _CHARACTERS else words[:_CHARACTERS] + "…"

    return {
        query: {"query": text, "relevant": [title(rows[p]) for p in relevant[query] if rows[p] >= 0]}
        for query, text in data.queries.items()
    }
