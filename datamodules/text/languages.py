"""Which language texts are in, and the stemmer that fits it."""

from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

from retriever.errors import installed_by

_LOOKED_AT, _CHARACTERS = 300, 500  # texts, and characters of each
_MOST = 0.8  # share of the texts from which a corpus is in one language
# ISO 639-1 → the name of its stemmer, of those that Snowball has
STEMMERS = {
    "ar": "arabic", "ca": "catalan", "cs": "czech", "da": "danish", "de": "german", "el": "greek", "en": "english",
    "eo": "esperanto", "es": "spanish", "et": "estonian", "eu": "basque", "fa": "persian", "fi": "finnish",
    "fr": "french", "ga": "irish", "hi": "hindi", "hu": "hungarian", "hy": "armenian", "id": "indonesian",
    "it": "italian", "lt": "lithuanian", "nb": "norwegian", "ne": "nepali", "nl": "dutch", "nn": "norwegian",
    "no": "norwegian", "pl": "polish", "pt": "portuguese", "ro": "romanian", "ru": "russian", "sr": "serbian",
    "sv": "swedish", "ta": "tamil", "tr": "turkish",
}  # fmt: skip


def language_of(text: str) -> tuple[str, float]:
    """Identify a text's language: its ISO 639-1 code, and how probable that is, in [0, 1].

    Raises:
        InputError: py3langid is not installed.
    """
    return _identifier().classify(text)


def languages(texts: Sequence[str]) -> Counter[str]:
    """Count the languages of a few hundred texts, evenly taken; ISO 639-1 code → texts."""
    some = texts[:: max(1, len(texts) // _LOOKED_AT)]
    return Counter(language_of(text[:_CHARACTERS])[0] for text in some if text.strip())


def stemmer_for(texts: Sequence[str]) -> str | None:
    """Choose BM25's stemmer for a corpus; None where less than 80% are in one language, or it has no stemmer."""
    found = languages(texts)
    [(code, count)] = found.most_common(1) or [("", 0)]
    return STEMMERS.get(code) if count >= _MOST * found.total() else None


@cache
def _identifier() -> Any:
    with installed_by("prepare", "Telling languages apart"):
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
