"""Pages of the site that are generated, or lie elsewhere in the repository: settings, results, bugs, contributing."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from docs.settings import COMMANDS, settings_page

ROOT = Path(__file__).resolve().parents[1]
REPORTS = ROOT / "experiments" / "reports"
ELSEWHERE = {"contributing.md": ROOT / "CONTRIBUTING.md", "bugs.md": ROOT / "BUGS.md"}
# links between files of the repository → between pages
LINKS = {"BUGS.md": "bugs.md", "experiments/reports/README.md": "results/index.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages; every committed report with its plots is under ``results/``."""
    for command in COMMANDS:
        name = f"reference/settings/{command}.md"
        files.append(File.generated(config, name, content=settings_page(ROOT, command)))
    for name, path in ELSEWHERE.items():
        files.append(File.generated(config, name, content=_relinked(path.read_text(encoding="utf-8"))))
    for path in sorted(REPORTS.rglob("*")):
        name = f"results/{path.relative_to(REPORTS).as_posix()}".replace("results/README.md", "results/index.md")
        if path.suffix == ".md":
            files.append(File.generated(config, name, content=_relinked(path.read_text(encoding="utf-8"))))
        elif path.suffix in (".png", ".csv"):
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def _relinked(text: str) -> str:
    for name, page in LINKS.items():
        text = text.replace(f"]({name}", f"]({page}")
    # plots without a name of their own get one, for who cannot see them
    return re.sub(r"!\[\]\(([^)]*/)?([^)/]*)\.png\)", r"![\2](\1\2.png)", text)
