"""Documents from templates: files in Jinja's language beside the code that fills them in."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from callbacks.reporting.markdown import markdown_text


def render(template: Path, autoescape: bool = False, **values: Any) -> str:
    """Fill in a template.

    Args:
        template: the file; its filter ``plain`` makes a text's markup that of Markdown ineffective.
        autoescape: whether values are escaped for HTML.
        **values: what it names.
    """
    options: Any = dict.fromkeys(("trim_blocks", "lstrip_blocks", "keep_trailing_newline"), True)
    environment = Environment(autoescape=autoescape, undefined=StrictUndefined, **options)
    environment.filters["plain"] = markdown_text
    return environment.from_string(template.read_text(encoding="utf-8")).render(values)
