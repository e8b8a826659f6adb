"""What a word is, in any script: one definition for the leak guard, BM25, query cleaning and the search for copies."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import pyarrow as pa
import pyarrow.compute as pc
import regex

_BLOCK = 10_000
METHOD = 2  # stages that split texts into words are named by it: raise it where other words come out
# Scripts without spaces between words. A Han character is nearly a word; of the others a word takes several letters.
_KANA = r"\p{Hiragana}\p{Katakana}ー"
_SOUTH_EAST_ASIAN = r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_UNSPACED = rf"\p{{Han}}{_KANA}{_SOUTH_EAST_ASIAN}"
_RUNS = regex.compile(rf"(\p{{Han}}+)|([{_KANA}{_SOUTH_EAST_ASIAN}]+)|(\p{{Hangul}}+)|[^\s{_UNSPACED}\p{{Hangul}}]+")
_HAN_RUN, _LETTER_RUN, _HANGUL_RUN = 1, 2, 3
_LETTER = regex.compile(r"\P{M}\p{M}*|\p{M}+")  # with the signs around it
_LETTERS_OF_A_WORD = 3  # of South-East Asian scripts
_TWO_COLUMNS = regex.compile(rf"[\p{{Han}}{_KANA}\p{{Hangul}}]")
_SCRIPTS_BY_LETTERS = {"CJK", "HIRAGANA", "KATAKANA", "HANGUL", "THAI", "LAO", "KHMER", "MYANMAR"}
_ANY_UNSPACED = regex.compile(rf"[{_UNSPACED}]")
_BY_LETTERS = regex.compile(rf"[{_KANA}{_SOUTH_EAST_ASIAN}]")
_PART_OF_WORD = regex.compile(rf"[{_SOUTH_EAST_ASIAN}]")
_ANY_RUN = regex.compile(rf"[{_UNSPACED}\p{{Hangul}}]")
# where `\w+` finds other words than this module does; Python's lower case of İ is an i and a sign of its own
_UNLIKE_ENGLISH = regex.compile(
    rf"[{_UNSPACED}\p{{Hangul}}\p{{M}}\u0130\u0640\u200c\u200d\ufb50-\ufdff\ufe70-\ufeff\uff00-\uffef]"
)
_ENGLISH_TERM = regex.compile(r"[\p{L}\p{N}_]{2,}")

_DIGITS = regex.compile(r"\d")
_SPACE_BESIDE = regex.compile(rf" ?([{_UNSPACED}]+) ?")
_ASCII = bytes(ord(chr(n).lower()) if chr(n).isalnum() or n == ord("_") else ord(" ") for n in range(128)) + bytes(128)
# What follows is read by Arrow's RE2. Left out: what nobody sees, elongation, and the vowel points that most writers
# leave out; hamza and madda are part of their letter.
_LEFT_OUT = (
    r"[\p{Cf}\x{FE00}-\x{FE0F}\x{0591}-\x{05BD}\x{05BF}\x{05C1}\x{05C2}\x{05C4}\x{05C5}\x{05C7}\x{0610}-\x{061A}\x{0640}"
    r"\x{064B}-\x{0652}\x{0656}-\x{065F}\x{0670}\x{06D6}-\x{06DC}\x{06DF}-\x{06E8}\x{06EA}-\x{06ED}]"
)
_STRESS = r"([аеиоуыэюяієѣ]\x{0308}?)[\x{0300}\x{0301}]"
_ACCENTS = r"(^|[\p{Latin}\p{Greek}\p{Common}])\p{M}+"


def fold(texts: Sequence[str], accents: bool = False) -> list[str]:
    """Write texts in one form: lower case, one Unicode form, spaces for punctuation, without what is often left out.

    That is accents of Latin and Greek letters, stress marks of Cyrillic ones (й stays й, ё becomes е), vowel points and
    elongation in Arabic and Hebrew, and invisible characters. Signs that make another word stay: the vowels of
    Devanagari and Thai, the voicing marks of kana.

    Args:
        texts: N texts.
        accents: keep accents of Latin and Greek letters, and ё (and the final form of σ).
    """
    folded = [text.encode().translate(_ASCII).decode() if text.isascii() else "" for text in texts]
    others = [number for number, text in enumerate(texts) if not text.isascii()]
    for number, text in zip(others, _fold_any([texts[n] for n in others], accents), strict=True):
        folded[number] = text
    return folded


def _fold_any(texts: Sequence[str], accents: bool) -> list[str]:
    strings = pc.utf8_normalize(pa.array(texts, pa.large_string()), "NFKC")
    strings = pc.utf8_normalize(pc.utf8_lower(strings), "NFKD")
    strings = pc.replace_substring_regex(strings, _LEFT_OUT, "")
    strings = pc.replace_substring_regex(strings, _STRESS, r"\1")
    if not accents:
        strings = pc.replace_substring_regex(strings, _ACCENTS, r"\1")
        for written, plain in (("е\u0308", "е"), ("ς", "σ")):
            strings = pc.replace_substring(strings, written, plain)
    return pc.replace_substring_regex(pc.utf8_normalize(strings, "NFC"), r"[^\p{L}\p{N}\p{M}_ ]", " ").to_pylist()


def normalize_texts(texts: Sequence[str], ignore_digits: bool = False) -> list[str]:
    """Write texts so that copies of one text are equal, whatever case, accents, spaces, punctuation, Unicode form.

    See :func:`fold`. Underscores count as punctuation, and spaces beside a letter of a script without spaces do not
    count at all.

    Args:
        texts: N texts.
        ignore_digits: leave digits out.

    Returns:
        N texts; an empty one where there is neither letter nor digit.
    """
    return [_normalized(text, ignore_digits) for text in fold(texts)]


def _normalized(folded: str, ignore_digits: bool) -> str:
    plain = folded.replace("_", " ")
    plain = " ".join((_DIGITS.sub("", plain) if ignore_digits else plain).split())
    return plain if plain.isascii() else _SPACE_BESIDE.sub(r"\1", plain)


def words(text: str) -> list[str]:
    """The words of a text, in lower case; of a script without spaces, its letters (with the signs around them)."""
    found: list[str] = []
    for run, kind in _runs(fold([text])[0]):
        found += _LETTER.findall(run) if kind in (_HAN_RUN, _LETTER_RUN) else [run]
    return found


def terms(folded: str) -> list[str]:
    """What is compared of a text that :func:`fold` wrote: words, and Han characters.

    Of the other scripts without spaces, and of Korean, whose words change their endings, letters and pairs of
    neighbouring letters.
    """
    found: list[str] = []
    for run, kind in _runs(folded):
        letters = _LETTER.findall(run) if kind else [run]
        found += letters + (_pairs(letters) if kind in (_LETTER_RUN, _HANGUL_RUN) else [])
    return found


def search_terms(texts: Sequence[str]) -> Iterator[list[str]]:
    """What BM25 counts of each text, one text after the other.

    Words of at least two characters; of scripts without spaces and of Korean, pairs of neighbouring letters (a letter
    that is alone as it is), and Han characters as well.
    """
    for start in range(0, len(texts), _BLOCK):
        block = texts[start : start + _BLOCK]
        special = [n for n, text in enumerate(block) if unlike_english(text)]
        folded = dict(zip(special, fold([block[n] for n in special], accents=True), strict=True))
        for number, text in enumerate(block):
            yield _search_terms(folded[number]) if number in folded else _ENGLISH_TERM.findall(text.lower())


def _search_terms(folded: str) -> list[str]:
    found = []
    for run, kind in _runs(folded):
        letters = _LETTER.findall(run)
        if not kind:
            found += [run] if len(run) > 1 else []
        else:
            found += letters if kind == _HAN_RUN or len(letters) == 1 else []
            found += _pairs(letters)
    return found


def unlike_english(text: str) -> bool:
    """Whether a text has words that are not runs of letters and digits between other characters."""
    return not text.isascii() and _UNLIKE_ENGLISH.search(text) is not None


def shingles(normalized: str, size: int) -> set[str]:
    """Runs of ``size`` neighbouring words of a text that :func:`normalize_texts` wrote; a shorter text is one."""
    parts = normalized.split()
    if not normalized.isascii() and _ANY_UNSPACED.search(normalized):
        parts = [w for run, kind in _runs(normalized) for w in (_LETTER.findall(run) if kind in (1, 2) else [run])]
    return {" ".join(parts[i : i + size]) for i in range(max(1, len(parts) - size + 1))}


def is_letter(word: str) -> bool:
    """Whether what :func:`words` calls a word is a letter of which a word takes several (not so of Han)."""
    return not word.isascii() and _BY_LETTERS.match(word) is not None


def weight(word: str) -> float:
    """How much of a word it is that :func:`words` gives: 1, and a third for a letter of a South-East Asian script."""
    return 1 / _LETTERS_OF_A_WORD if not word.isascii() and _PART_OF_WORD.match(word) else 1


def count_words(text: str) -> int:
    """How long a text is, in words: what spaces separate; two Han characters, three letters of Thai and such."""
    if text.isascii() or not _ANY_UNSPACED.search(text):
        return len(text.split())
    letters = [w for w in words(text) if _ANY_UNSPACED.match(w)]
    parts = sum(bool(_PART_OF_WORD.match(w)) for w in letters)
    spaced = [part for part in _ANY_UNSPACED.sub(" ", text).split() if any(c.isalnum() for c in part)]
    return len(spaced) + (len(letters) - parts) // 2 + parts // _LETTERS_OF_A_WORD


def count_characters(text: str) -> int:
    """How long a text is, in characters; those of Han, kana and Hangul say about as much as two, and count as two."""
    return len(text) + (0 if text.isascii() else len(_TWO_COLUMNS.findall(text)))


def scripts(text: str) -> Counter[str]:
    """Script → letters of it, by Unicode's names: ``LATIN``, ``CJK`` (Han), ``HIRAGANA``, ``CYRILLIC``, …"""
    return Counter(unicodedata.name(c, "?").split()[0] for c in unicodedata.normalize("NFKC", text) if c.isalpha())


def main_script(texts: Iterable[str]) -> str | None:
    """The script of more than half of the letters; None where no script has so many. Kana and Han count together."""
    found: Counter[str] = Counter()
    for text in texts:
        found += scripts(text)
    japanese = found["HIRAGANA"] + found["KATAKANA"] + found["CJK"]
    if japanese > found.total() / 2:
        return "HIRAGANA" if found["CJK"] < japanese else "CJK"
    [(script, count)] = found.most_common(1) or [("", 0)]
    return script if count > found.total() / 2 else None


def read_by_letters(script: str | None) -> bool:
    """Whether texts of a script are compared by letters and pairs of letters, not by words."""
    return script in _SCRIPTS_BY_LETTERS


def _runs(folded: str) -> list[tuple[str, int]]:
    """Runs of one kind: (text, which group of ``_RUNS``; 0 for a word)."""
    if folded.isascii() or not _ANY_RUN.search(folded):
        return [(word, 0) for word in folded.split()]
    return [(match[0], match.lastindex or 0) for match in _RUNS.finditer(folded)]


def _pairs(letters: Sequence[str]) -> list[str]:
    return [a + b for a, b in pairwise(letters)]
