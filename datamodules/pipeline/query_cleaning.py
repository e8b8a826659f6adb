"""What a language model answered, as a query; or the reason why it is none."""

import re
from collections.abc import Sequence
from itertools import pairwise

from datamodules.pipeline.query_types import QueryType
from datamodules.text.languages import language_of, languages
from datamodules.text.words import count_words, fold, is_letter, scripts, terms, weight, words

_QUOTES = "\"'“”‘’«»`*_"
_THINKING = re.compile(r"<think>.*?(</think>|$)", re.DOTALL)
_NUMBERING = re.compile(r"^(?:[-•*]\s+|\(?\d{1,2}[.)]\s+|\d{1,2}、\s*)")
_COMMA = re.compile(r"[,，、،]")
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
        The query, and None or why it is rejected.
    """
    query, several = _first_line(raw, kind.labels)
    finished = finished or several  # what was cut off is a later line
    if kind.max_phrases:
        query = _phrases(query, kind.max_phrases, finished)
        finished = True
    asked = words(query)
    # the order matters: the first that holds is counted
    found = {
        "empty": not asked,
        "speaks of itself": bool(_SPEAKS_OF_ITSELF.match(query)),
        "too long": count_words(query) > kind.max_words,
        "cut off": not finished,
        "too short": len(asked) < 2,
        "repeats itself": _repeats(asked),
        "copied from the passage": copied_run(asked, words(passage)) > kind.max_copied_words,
        "copied from an example": any(_alike(query, example) for _, example in examples),
        "leans on the text": bool(_LEANS_ON_TEXT.search(query)),
        "wrong language": _wrong_language(query, passage, language),
    }
    return query, next((reason for reason, holds in found.items() if holds), None)


def copied_run(words: Sequence[str], passage: Sequence[str]) -> float:
    """The longest run of words that is in both, in words; :func:`~datamodules.text.words.weight` counts letters."""
    longest = 0.0
    before: dict[int, float] = {}  # place → length of the run that ends there
    places: dict[str, list[int]] = {}
    for place, word in enumerate(passage):
        places.setdefault(word, []).append(place)
    for word in words:
        before = {place: before.get(place - 1, 0.0) + weight(word) for place in places.get(word, ())}
        longest = max(longest, *before.values(), 0.0) if before else longest
    return longest


def _first_line(raw: str, labels: Sequence[str]) -> tuple[str, bool]:
    lines = [line.strip() for line in _THINKING.sub("", raw).splitlines() if line.strip()]
    lead = re.compile(rf"^(?:{'|'.join(map(re.escape, labels))})\s*[:：]\s*", re.IGNORECASE) if labels else None
    for number, line in enumerate(lines):
        line = _NUMBERING.sub("", line).strip(_QUOTES + " ")
        line = lead.sub("", line).strip(_QUOTES + " ") if lead else line
        if line and not line.endswith((":", "：")):  # "Here is a question:" announces the next line
            return " ".join(line.split()), number + 1 < len(lines)
    return "", False


def _phrases(query: str, limit: int, finished: bool) -> str:
    phrases = [p.strip(" .;" + _QUOTES) for p in _COMMA.split(query)]
    if not finished and len(phrases) > 1:
        phrases.pop()  # the last one was cut
    distinct: dict[str, str] = {}
    for phrase in filter(None, phrases):
        distinct.setdefault(phrase.lower(), phrase)
    return ", ".join(list(distinct.values())[:limit])


def _repeats(words: Sequence[str]) -> bool:
    pairs, whole = list(pairwise(words)), [word for word in words if not is_letter(word)]  # letters do come again
    return len(words) >= 6 and (len(set(whole)) < 0.6 * len(whole) or len(set(pairs)) < 0.75 * len(pairs))


def _alike(left: str, right: str) -> bool:
    ours, theirs = (set(terms(text)) for text in fold([left, right]))
    return bool(ours | theirs) and len(ours & theirs) >= 0.6 * len(ours | theirs)


def _wrong_language(query: str, passage: str, language: str | None) -> bool:
    found, expected = scripts(query), scripts(passage)
    if expected and found:
        main, count = expected.most_common(1)[0]
        # a passage in one script does not give a query that is mostly in another
        if count > 0.9 * expected.total() and found[main] < 0.5 * found.total():
            return True
    # on a few words of jargon an identifier guesses
    if language is None or count_words(query) < 6:
        return False
    identified, probability = language_of(query)
    return identified != language and probability > 0.9


def language_notes(passages: Sequence[str], language: str | None) -> list[str]:
    """What to know before queries are written from these passages: which of the checks do not fit their language.

    Args:
        passages: some of the corpus.
        language: as for :func:`clean_query`.
    """
    identified = languages(passages)
    [(theirs, count)] = identified.most_common(1) or [("en", 0)]
    if count <= identified.total() / 2 or theirs == "en":
        return []
    notes = ["the checks 'speaks of itself' and 'leans on the text' know English phrases alone"]
    if language not in (None, theirs):
        notes.append(
            f"most passages seem to be in {theirs!r}, and answers must be in {language!r}: others are rejected as "
            f"'wrong language' (generate.language={theirs} takes answers in {theirs!r}, null takes any)"
        )
    return notes
