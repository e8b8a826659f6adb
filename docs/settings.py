"""The page of all settings, made of the configuration files, their comments, and the docstrings of what they build."""

import inspect
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import griffe

logging.getLogger("griffe").setLevel(logging.ERROR)
CONF = Path("experiments/conf")
# command → its own file, and the groups of files to choose from
COMMANDS = {
    "run": (
        "run.yaml",
        "module encoder data evaluation temperatures optimizer scheduler trainer callbacks logger pruner scale debug "
        "hydra/launcher hydra/sweeper",
    ),
    "adapt": ("adapt.yaml", ""),
    "prepare": ("prepare/prepare.yaml", "teacher generator prepare/data prepare/exp"),
    "evaluate": ("evaluate.yaml", "sets"),
    "bench": ("bench.yaml", ""),
}
# groups whose settings are typed behind the group's name
NAMED = ("data", "encoder", "evaluation", "generator", "module", "optimizer", "scheduler", "teacher", "trainer")
INTRODUCTION = """# Settings of {command}

Every setting of `python -m experiments.{command}`, as its file and its docstring have it. Type `key=value` behind a
command; `--cfg job` prints all of them with the values that they would have. A wrong key names the nearest right one.
`???` must be given. `${{…}}` follows another setting. Files whose names begin with `_` are parts of the others.
"""
_LINE = re.compile(
    r"^(?P<indent> *)(?P<key>[\w.@/-]+):"
    r"(?: +(?P<value>\"[^\"]*\"|'[^']*'|(?:[^#\n]|\S#)*?))?(?: *# ?(?P<comment>.*))?$"
)


@dataclass
class Setting:
    """One line of a configuration file."""

    key: str
    value: str
    meaning: list[str] = field(default_factory=list)


def settings_page(root: Path, command: str) -> str:
    """Write the page of one command's settings as Markdown."""
    own, groups = COMMANDS[command]
    lines = [INTRODUCTION.format(command=command), *_file(root, root / CONF / own, "")]
    for group in groups.split():
        lines.append(f"\n## {group}\n")
        for path in sorted((root / CONF / group).glob("*.yaml")):
            lines.append(f"\n### {group}={path.stem}\n")
            lines += _file(root, path, group if group in NAMED else "")
    return "\n".join(lines) + "\n"


def _file(root: Path, path: Path, group: str) -> Iterator[str]:
    """The head comment of a file as a paragraph, and its settings as a table."""
    head, settings = read_settings(path.read_text(encoding="utf-8"))
    if head:
        yield head + "\n"
    target = next((s.value for s in settings if s.key == "_target_"), None)
    documented = _arguments(root, target) if target else {}
    rows = [s for s in settings if not s.key.startswith(("_", "hydra", "defaults"))]
    if not rows:
        return
    yield "| setting | value | what it does |\n|---|---|---|"
    for setting in rows:
        meaning = " ".join(setting.meaning) or documented.get(setting.key, "")
        name = f"{group}.{setting.key}" if group else setting.key
        yield f"| `{name}` | {_code(setting.value)} | {_cell(meaning)} |"


def read_settings(text: str) -> tuple[str, list[Setting]]:
    """Read a configuration file: its first comment, and its settings with what stands behind them."""
    head: list[str] = []
    found: list[Setting] = []
    above: list[tuple[int, str]] = []
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            words = line.lstrip(" #").rstrip()
            if words.startswith("@package"):
                continue
            (found[-1].meaning if found else head).append(words)
            continue
        match = _LINE.match(line)
        if match is None:
            continue
        indent = len(match["indent"])
        above = [(depth, key) for depth, key in above if depth < indent]
        key = ".".join([*(name for _, name in above), match["key"]])
        above.append((indent, match["key"]))
        meaning = [match["comment"]] if match["comment"] else []
        found.append(Setting(key, (match["value"] or "").strip(), meaning))
    return " ".join(head), found


def _arguments(root: Path, target: str) -> dict[str, str]:
    """What the docstring of a class, and of those that it inherits from, says of each argument; read, not imported."""
    package, _, inner = target.partition(".")
    if not (root / package).is_dir():
        return {}
    try:
        there = _package(root, package)[inner]
    except (KeyError, griffe.GriffeError):
        return {}
    if there.is_alias:
        there = there.final_target
    found: dict[str, str] = {}
    for one in (there, *(there.mro() if there.is_class else ())):
        if one.docstring is None:
            continue
        for section in one.docstring.parse("google"):
            if section.kind in (griffe.DocstringSectionKind.parameters, griffe.DocstringSectionKind.attributes):
                found |= {
                    item.name: inspect.cleandoc(item.description) for item in section.value if item.name not in found
                }
    return found


@cache
def _package(root: Path, package: str) -> griffe.Object:
    return griffe.load(package, search_paths=[str(root)], resolve_aliases=True, resolve_external=False)


def _code(value: str) -> str:
    return f"`{value.replace('|', chr(92) + '|')}`" if value else ""


def _cell(text: str) -> str:
    """One line for a table, with references to code as plain names."""
    text = re.sub(r":\w+:`~?([^`<]+?)(?: <[^>]*>)?`", lambda m: f"`{m[1].rpartition('.')[2]}`", " ".join(text.split()))
    return text.replace("``", "`").replace("|", "\\|").replace("<", "&lt;")
