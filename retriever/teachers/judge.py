"""Judge: a chat model grades each pair."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from retriever.errors import InputError, choose, require_positive, shown
from retriever.teachers.base import check_pairs
from retriever.teachers.chat import ChatTeacher

GRADES = ("0", "1", "2", "3")


class Judge(ChatTeacher):
    """Grades each pair from 0 (nothing to do with the query) to 3 (answers it).

    Args:
        model: see :class:`ChatTeacher`.
        prompt: with ``{query}`` and ``{passage}``.
        logprobs: ask for the probabilities of tokens: the score is then the mean of the grades, weighted by theirs at
            the answer's grade. Where the server gives none, it is the grade that the answer names.
        attempts: questions about one pair, at most; after an answer without a grade, ``reminder`` is what comes next.
        reminder: see above.
        without_grade: ``error``, or ``lowest``: a pair without a grade after all attempts gets 0.
        **common: arguments of :class:`ChatTeacher`.
    """

    kind = "judge"
    meaning = "the grade, 0 to 3, by the probabilities of the grades' tokens where they are known"
    places = ("query", "passage")

    def __init__(
        self,
        model: str,
        *,
        logprobs: bool = True,
        attempts: int = 2,
        reminder: str = "Answer with one number from 0 to 3, and nothing else.",
        without_grade: str = "error",
        **common: Any,
    ) -> None:
        super().__init__(model, **common)
        require_positive(**{"teacher.attempts": attempts})
        self.logprobs = logprobs
        self.attempts = attempts
        self.reminder = reminder
        self.without_grade = choose("teacher.without_grade", without_grade, ("error", "lowest"))

    def description(self) -> dict[str, Any]:
        """See :class:`Teacher`."""
        own = ("logprobs", "attempts", "reminder", "without_grade")
        return super().description() | {name: getattr(self, name) for name in own}

    def score(self, queries: Sequence[str], passages: Sequence[str]) -> np.ndarray:
        """Score n pairs, float64 [n], in [0, 3].

        Raises:
            InputError: no answer after all retries, a refusal, an answer of another form or, unless
                ``without_grade`` is ``lowest``, without a grade.
        """
        check_pairs(queries, passages)
        scores, left = np.zeros(len(queries)), list(range(len(queries)))
        talks = [
            self.filled(query=query, passage=passage[: self.max_characters])
            for query, passage in zip(queries, passages, strict=True)
        ]
        options = {"logprobs": True, "top_logprobs": 20} if self.logprobs else {}
        for attempt in range(1, self.attempts + 1):
            unread = []
            answers = self.ask([talks[pair] for pair in left], **options)
            for pair, (text, choice) in zip(left, answers, strict=True):
                grade = named_grade(text, choice.get("logprobs"))
                if grade is not None:
                    scores[pair] = grade
                elif attempt == self.attempts and self.without_grade == "error":
                    raise InputError(
                        f"{self.model} answered {shown(text)}, without a grade from 0 to 3, in {attempt} "
                        f"attempts at the query {shown(queries[pair])}. Reword teacher.prompt, raise "
                        "teacher.sampling.max_tokens, or say teacher.without_grade=lowest."
                    )
                else:
                    unread.append(pair)
                    answer = {"role": "assistant", "content": text}
                    talks[pair] = [*talks[pair], answer, {"role": "user", "content": self.reminder}]
            left = unread
        return scores


def named_grade(answer: str, logprobs: Mapping[str, Any] | None = None) -> float | None:
    """Read the grade of an answer, 0 to 3: the first number of it that is one; None where there is none.

    Args:
        answer: any text.
        logprobs: the probabilities of its tokens, as the protocol has them. Where they have the token that is the
            grade, the grades among its alternatives are averaged, each weighted by its probability.
    """
    named = re.search(r"(?<![\w.,-])[0-3](?![\w%]|[.,]\d)", answer)
    if named is None:
        return None
    for token in (logprobs or {}).get("content") or ():
        if token["token"].strip() == named[0]:
            likely = dict.fromkeys(GRADES, 0.0)
            for other in token.get("top_logprobs") or ():
                if other["token"].strip() in likely:
                    likely[other["token"].strip()] += math.exp(other["logprob"])
            total = sum(likely.values())
            return sum(int(grade) * p for grade, p in likely.items()) / total if total else float(named[0])
    return float(named[0])
