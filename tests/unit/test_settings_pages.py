"""The documentation's pages of settings hold every setting, with its comment or its docstring."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

pytest.importorskip("griffe", reason="the extra 'docs'")

from docs.settings import COMMANDS, CONF, read_settings, settings_page
from experiments.settings.walk import walk

ROOT = Path(__file__).parents[2]
FILE = """# @package _global_
# The head,
# in two lines.
defaults: [_self_]
top: 1            # what it is,
                  # over two lines
part:
  inner: "a # b"
  last: ???       # must be given
"""


def test_a_file_is_read_with_its_comments():
    head, found = read_settings(FILE)
    assert head == "The head, in two lines."
    assert [(s.key, s.value, " ".join(s.meaning)) for s in found] == [
        ("defaults", "[_self_]", ""),
        ("top", "1", "what it is, over two lines"),
        ("part", "", ""),
        ("part.inner", '"a # b"', ""),
        ("part.last", "???", "must be given"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_page_holds_every_setting_of_its_files(command):
    page = settings_page(ROOT, command)
    own, groups = COMMANDS[command]
    for path in [ROOT / CONF / own, *(p for g in groups.split() for p in (ROOT / CONF / g).glob("*.yaml"))]:
        settings = OmegaConf.to_container(OmegaConf.load(path))
        for key, value in walk({k: v for k, v in settings.items() if not k.startswith(("_", "hydra", "defaults"))}):
            if not isinstance(value, dict) and "[" not in key:
                parts = key.split(".")
                inline = [f"{'.'.join(parts[:n])}` | `{{" for n in range(1, len(parts))]  # {a: {b: 1}} is one line
                assert f"{key}` |" in page or any(line in page for line in inline), f"{path}: {key}"


def test_what_has_no_comment_is_told_by_the_docstring():
    page = settings_page(ROOT, "run")
    [line] = [line for line in page.splitlines() if line.startswith("| `module.positive` | `teacher`")][:1]
    assert line.rstrip("| ").rpartition("| ")[2]
    assert "| `data.list_length` | `20` | candidates of a list, at most. |" in page
