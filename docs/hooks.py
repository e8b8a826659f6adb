"""Pages of the site that are generated or lie elsewhere in the repository; its links become links between pages."""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docs.settings import COMMANDS, CONF, settings_page

ROOT = Path(__file__).resolve().parents[1]
REPORTS = "experiments/reports"
# page → file of the repository
ELSEWHERE = {name.lower(): name for name in ("CONTRIBUTING.md", "BUGS.md", "CHANGELOG.md", "ATTRIBUTION.md")}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages; every committed report with its plots is under ``results/``."""
    for command in COMMANDS:
        name = f"reference/settings/{command}.md"
        files.append(File.generated(config, name, content=settings_page(ROOT, command)))
    for name, path in ELSEWHERE.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / path)))
    for path in sorted((ROOT / REPORTS).rglob("*")):
        if path.suffix in (".md", ".png", ".csv"):
            files.append(File.generated(config, _page(path.relative_to(ROOT).as_posix()), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, **_) -> str:
    """Point links, which lead from file to file of the repository, from page to page; others become plain words."""
    here = page.file.src_uri
    folder = posixpath.dirname(_file(here))

    def relinked(link: re.Match) -> str:
        image, words, target, anchor = link.groups("")
        if ":" in target:
            return link[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        name, _, own = _page(path).partition("#")
        if files.get_file_from_path(name) is None and (ROOT / path).exists():
            return words
        to = posixpath.relpath(name, posixpath.dirname(here) or ".")
        # plots without a name of their own get one, for who cannot see them
        return f"{image}[{words or Path(name).stem}]({to}{anchor or (own and '#' + own)})"

    return _LINK.sub(relinked, markdown)


def _page(path: str) -> str:
    """Path in the repository → path in the site, perhaps with an anchor."""
    for command, (own, groups) in COMMANDS.items():
        page = f"reference/settings/{command}.md"
        if path == f"{CONF}/{own}":
            return page
        for group in groups.split():
            if path == f"{CONF}/{group}":
                return f"{page}#{group}"
    if path.startswith(REPORTS):
        return path.replace(REPORTS, "results", 1).replace("results/README.md", "results/index.md")
    return path.lower() if path in ELSEWHERE.values() else path.removeprefix("docs/")


def _file(page: str) -> str:
    """The way back: path in the site → path in the repository."""
    if page in ELSEWHERE:
        return ELSEWHERE[page]
    if page.startswith("results/"):
        return f"{REPORTS}/{page.removeprefix('results/')}".replace(f"{REPORTS}/index.md", f"{REPORTS}/README.md")
    return f"docs/{page}"
