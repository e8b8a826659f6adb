"""Which YAML is parsed in C: libyaml's parser is ten times as fast, but a text that nests too deep ends the process."""

from math import isqrt

import yaml

_DEEPEST = 5_000  # levels; 20,000 were parsed with the usual stack of 8 MiB, and 40,000 ended the process


def may_be_parsed_in_c(text: str | bytes) -> bool:
    """Tell whether the parser in C is installed, and no more than ``5,000`` levels can be in a text.

    Each level takes one of ``[{-?``, or a line that is indented by more than the level before.
    """
    text = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    levels = sum(map(text.count, (b"[", b"{", b"-", b"?"))) + isqrt(2 * len(text))
    return bool(yaml.__with_libyaml__) and levels <= _DEEPEST


def safe_loader(text: str | bytes) -> type[yaml.SafeLoader] | type[yaml.CSafeLoader]:
    """Give the fastest of yaml's safe loaders that may parse a text."""
    return yaml.CSafeLoader if may_be_parsed_in_c(text) else yaml.SafeLoader
