"""All files of a comparison in one folder."""

from collections.abc import Sequence
from pathlib import Path

from datamodules.storage.files import atomic_path, remove_leftovers
from experiments.comparison.changes import changes_markdown
from experiments.comparison.formats import csv_text, latex, markdown, query_csv
from experiments.comparison.page import page
from experiments.comparison.plots import draw
from experiments.comparison.query_view import TEXTS, query_view
from experiments.comparison.tables import Comparison


def write_report(comparison: Comparison, folder: Path, said: Sequence[str] = ()) -> list[Path]:
    """Write the tables, plots and queries; the paths, the HTML page (which shows all the others) first.

    Args:
        comparison: of runs.
        folder: where they go.
        said: sentences that the page begins with.
    """
    plots, view = draw(comparison), query_view(comparison)
    images = "\n".join(f"![{name}](comparison-{name}.png)" for name in plots)
    contents: dict[str, str | bytes] = {
        "comparison.html": page(comparison, plots, said, view),
        "comparison.md": f"{markdown(comparison)}\n{images}\n",
        "comparison.tex": latex(comparison),
        "comparison.csv": csv_text(comparison),
        "comparison-queries.md": changes_markdown(comparison),
        "comparison-queries.csv": query_csv(comparison),
        **{f"comparison-{name}.png": png for name, png in plots.items()},
    }
    if view is not None and view.texts is not None:
        contents[TEXTS] = view.texts
    else:
        (folder / TEXTS).unlink(missing_ok=True)  # of a larger comparison, earlier
    remove_leftovers(folder, below=False, names="comparison*")  # the folder may be one that holds other things
    for name, content in contents.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    return [folder / name for name in contents]
