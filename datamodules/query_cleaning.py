"""What a language model answered, as a query; or the reason why it is none."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

from datamodules.query_types import QueryType

# scripts without spaces between words: a character counts as a word, and two of them as one in a query's length
_NO_SPACES = "\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_NO_SPACES}]|[^\W{_NO_SPACES}]+")
_CHARACTER = re.compile(rf"[{_NO_SPACES}]")
_QUOTES = "\"'“”‘’«»`*_"
_THINKING = re.compile(r"<think>.*?(</think>|$)", re.DOTALL)
_NUMBERING = re.compile(r"^(?:[-•*]\s+|\(?\d{1,2}[.)]\s+)")
# sure signs that the query points at a text which its reader does not have, or speaks of itself
_LEANS_ON_TEXT = re.compile(
    r"\b(?:this|the|these|that|your|provided|given|above|following)\s+"
    r"(?:\w+\s+)?(?:text|texts|passage|article|paper|document|abstract|sentence|excerpt|authors?|study|review|query)\b",
    re.IGNORECASE,
)
_SPEAKS_OF_ITSELF = re.compile(
    r"^(?:sure\b|certainly\b|of course\b|here (?:is|are)\b|here's\b|i cannot\b|i can't\b|i'm sorry\b|sorry\b|"
    r"as an ai\b|i am an ai\b|text:|answer:)",
    re.IGNORECASE,
)
REASONS = (
    "empty",
    "cut off",
    "speaks of itself",
    "too long",
    "too short",
    "repeats itself",
    "copied from the passage",
    "copied from an example",
    "leans on the text",
    "wrong language",
)


def clean_query(
    raw: str, finished: bool, passage: str, kind: QueryType, examples: Sequence[tuple[str, str]], language: str | None
) -> tuple[str, str | None]:
    """Tidy an answer, and judge it.

    Args:
        raw: the model's answer.
        finished: False where the answer was cut at the maximum number of tokens.
        passage: what the query was written from.
        kind: its type.
        examples: (passage, query) pairs that stood in the prompt.
        language: ISO 639-1 code that queries must be in; None takes any in the passage's script.

    Returns:
        The query, and None or why it is rejected (one of :data:`REASONS`).
    """
    query, several = _first_line(raw, kind.labels)
    finished = finished or several  # what was cut off is a later line
    if kind.max_phrases:
        query = _phrases(query, kind.max_phrases, finished)
        finished = True
    words = _WORD.findall(query.lower())
    # the order matters: the first that holds is counted
    found = {
        "empty": not words,
        "speaks of itself": bool(_SPEAKS_OF_ITSELF.match(query)),
        "too long": len(query.split()) + len(_CHARACTER.findall(query)) // 2 > kind.max_words,
        "cut off": not finished,
        "too short": len(words) < 2,
        "repeats itself": _repeats(words),
        "copied from the passage": copied_run(words, _WORD.findall(passage.lower())) > kind.max_copied_words,
        "copied from an example": any(_alike(words, _WORD.findall(q.lower())) for _, q in examples),
        "leans on the text": bool(_LEANS_ON_TEXT.search(query)),
        "wrong language": _wrong_language(query, passage, language),
    }
    return query, next((reason for reason, holds in found.items() if holds), None)


def copied_run(words: Sequence[str], passage: Sequence[str]) -> int:
    """The longest run of words that stands in both, in words."""
    longest = 0
    before: Counter[int] = Counter()  # place → length of the run that ends there
    places: dict[str, list[int]] = {}
    for place, word in enumerate(passage):
        places.setdefault(word, []).append(place)
    for word in words:
        now = Counter({place: before[place - 1] + 1 for place in places.get(word, ())})
        longest = max(longest, *now.values(), 0) if now else longest
        before = now
    return longest


def _first_line(raw: str, labels: Sequence[str]) -> tuple[str, bool]:
    lines = [line.strip() for line in _THINKING.sub("", raw).splitlines() if line.strip()]
    lead = re.compile(rf"^(?:{'|'.join(map(re.escape, labels))})\s*:\s*", re.IGNORECASE) if labels else None
    for number, line in enumerate(lines):
        line = _NUMBERING.sub("", line).strip(_QUOTES + " ")
        line = lead.sub("", line).strip(_QUOTES + " ") if lead else line
        if line and not line.endswith(":"):  # "Here is a question:" announces the next line
            return " ".join(line.split()), number + 1 < len(lines)
    return "", False


def _phrases(query: str, limit: int, finished: bool) -> str:
    phrases = [p.strip(" .;" + _QUOTES) for p in query.split(",")]
    if not finished and len(phrases) > 1:
        phrases.pop()  # the last one was cut
    distinct: dict[str, str] = {}
    for phrase in filter(None, phrases):
        distinct.setdefault(phrase.lower(), phrase)
    return ", ".join(list(distinct.values())[:limit])


def _repeats(words: Sequence[str]) -> bool:
    pairs = list(pairwise(words))
    return len(words) >= 6 and (len(set(words)) < 0.6 * len(words) or len(set(pairs)) < 0.75 * len(pairs))


def _alike(left: Sequence[str], right: Sequence[str]) -> bool:
    both = set(left) | set(right)
    return bool(both) and len(set(left) & set(right)) >= 0.6 * len(both)


def _wrong_language(query: str, passage: str, language: str | None) -> bool:
    scripts = _scripts(query)
    expected = _scripts(passage)
    if expected and scripts:
        main, count = expected.most_common(1)[0]
        # a passage in one script does not give a query that is mostly in another
        if count > 0.9 * expected.total() and scripts[main] < 0.5 * scripts.total():
            return True
    # on a few words of jargon an identifier guesses
    if language is None or len(query.split()) < 6:
        return False
    found, probability = _identifier().classify(query)
    return found != language and probability > 0.9


def _scripts(text: str) -> Counter:
    return Counter(unicodedata.name(c, "?").split()[0] for c in text if c.isalpha())


@cache
def _identifier():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
