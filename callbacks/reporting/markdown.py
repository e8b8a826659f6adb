"""Text of others in Markdown."""

import re


def markdown_text(text: str) -> str:
    """One line in which nothing is markup: configurations and corpora may hold anything."""
    return re.sub(r"([\\|`*<>\[\]])", r"\\\1", " ".join(text.split()))
