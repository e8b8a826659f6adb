"""ListwiseLlm: a chat model puts passages in order, a window at a time."""

import logging
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from retriever.errors import InputError, require_positive
from retriever.teachers.base import check_pairs, numbers_by_text
from retriever.teachers.chat import ChatTeacher

_log = logging.getLogger(__name__)


class ListwiseLlm(ChatTeacher):
    """Orders each query's passages by a window that slides from the last to the first, as RankGPT does.

    Sun et al. 2023, "Is ChatGPT Good at Search?" (arXiv 2304.09542). The passages begin in the order given, which is
    the fused one of stage mine. A score is 1 / rank: the same for lists of all lengths, and differing most at the top,
    where n - rank would put nearly half of a list near its first.

    Args:
        model: see :class:`ChatTeacher`.
        prompt: with ``{query}``, ``{number}`` (how many passages) and ``{passages}``, each as ``[1] text``.
        window: passages of one question.
        step: passages by which the window moves on; the others are asked about again.
        **common: arguments of :class:`ChatTeacher`.
    """

    kind = "listwise_llm"
    meaning = "1 / the rank that the model gives the passage among those of its query"
    places = ("query", "passages")

    def __init__(self, model: str, *, window: int = 20, step: int = 10, **common: Any) -> None:
        super().__init__(model, **common)
        require_positive(**{"teacher.step": step})
        if window < max(2, step):
            raise InputError(f"teacher.window is {window}; it must be at least 2, and teacher.step ({step}).")
        self.window = window
        self.step = step

    def description(self) -> dict[str, Any]:
        """See :class:`Teacher`."""
        return super().description() | {"window": self.window, "step": self.step}

    def score(self, queries: Sequence[str], passages: Sequence[str]) -> np.ndarray:
        """Score n pairs, float64 [n]; those of one query are put in order together, wherever they stand.

        Raises:
            InputError: no answer after all retries, a refusal, or an answer of another form.
        """
        check_pairs(queries, passages)
        orders = numbers_by_text(queries)
        starts = {query: self._starts(len(order)) for query, order in orders.items()}
        asked = unread = 0
        # the windows of one query follow each other; those of several queries are asked about at once
        for turn in range(max(map(len, starts.values()), default=0)):
            now = {query: slice(of[turn], of[turn] + self.window) for query, of in starts.items() if turn < len(of)}
            windows = {query: [passages[pair] for pair in orders[query][part]] for query, part in now.items()}
            answers = self.ask(map(self._question, windows.items()))
            for (query, part), (text, _) in zip(now.items(), answers, strict=True):
                before = orders[query][part]
                orders[query][part] = [before[place] for place in named_places(text, len(before))]
                asked, unread = asked + 1, unread + (not re.search(r"\d", text))
        if unread:
            _log.warning("%s: %d of %d answers name no passage; those passages keep their order", self, unread, asked)
        scores = np.zeros(len(queries))
        for order in orders.values():
            scores[order] = 1 / np.arange(1, len(order) + 1)
        return scores

    def _starts(self, number: int) -> list[int]:
        """List where windows start, the last passages first; one passage needs none."""
        return [*range(number - self.window, 0, -self.step), 0] if number > 1 else []

    def _question(self, window: tuple[str, list[str]]) -> list[dict[str, str]]:
        query, passages = window
        texts = [f"[{n}] {' '.join(text.split())[: self.max_characters]}" for n, text in enumerate(passages, 1)]
        return self.filled(query=query, number=str(len(texts)), passages="\n".join(texts))


def named_places(answer: str, number: int) -> list[int]:
    """Read an order such as ``[2] > [1]`` from an answer.

    Args:
        answer: any text; numbers in brackets count, or all where none is in brackets.
        number: of passages, which the answer counts from 1.

    Returns:
        A permutation of ``range(number)``: those named, at their first mention, and then the others as they stood.
    """
    found = re.findall(r"\[(\d+)\]", answer) or re.findall(r"\d+", answer)
    named = [int(digits) - 1 for digits in found if 0 < int(digits) <= number]
    return list(dict.fromkeys([*named, *range(number)]))
