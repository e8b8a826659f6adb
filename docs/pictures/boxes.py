"""Boxes and arrows, for the pictures of this folder."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

# told apart by most who are colour-blind (Okabe & Ito 2008)
BLUE, ORANGE, GREEN, PINK, RED, SKY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9"
INK, GREY = "#1f2328", "#d0d7de"


class Picture:
    """A drawing on a canvas of units of 3 mm; saved as SVG on white, the same bytes each time."""

    def __init__(self, width: float, height: float) -> None:
        self.figure = Figure(figsize=(width / 8.5, height / 8.5))
        self.axes: Axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(0, height))
        self.axes.axis("off")

    def text(self, x: float, y: float, words: str, size: float = 10, colour: str = INK, **more) -> None:
        """Write centred words."""
        more = {"ha": "center", "va": "center"} | more
        self.axes.text(x, y, words, fontsize=size, color=colour, **more)

    def box(
        self, x: float, y: float, width: float, height: float, title: str, lines: Sequence[str] = (), colour: str = BLUE
    ) -> None:
        """Draw a rounded box from its lower left corner, with a title and smaller lines below it."""
        style = "round,pad=0,rounding_size=0.6"
        self.axes.add_patch(FancyBboxPatch((x, y), width, height, style, fc=colour + "1f", ec=colour, lw=1.4))
        middle = x + width / 2
        top = y + height / 2 + 0.75 * len(lines)
        self.text(middle, top, title, 10.5, weight="bold")
        for number, line in enumerate(lines):
            self.text(middle, top - 1.6 - 1.5 * number, line, 8.5)

    def bracket(self, left: float, right: float, y: float, words: str, colour: str) -> None:
        """Draw a bracket above boxes, with a command's name over it."""
        self.axes.plot([left, left, right, right], [y, y + 1, y + 1, y], color=colour, lw=1.4)
        self.text((left + right) / 2, y + 2.3, words, 9.5, colour, family="monospace", weight="bold")

    def arrow(self, start: tuple[float, float], end: tuple[float, float], words: str = "", bend: float = 0.0) -> None:
        """Draw an arrow, with words above its middle."""
        how = {"arrowstyle": "-|>", "mutation_scale": 12, "lw": 1.3, "color": "#57606a"}
        self.axes.add_patch(FancyArrowPatch(start, end, connectionstyle=f"arc3,rad={bend}", **how))
        self.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.9, words, 8.5, "#57606a")

    def save(self, path: Path) -> None:
        """Write the SVG."""
        with rc_context({"svg.hashsalt": path.name}):
            self.figure.savefig(path, facecolor="white", metadata={"Date": None, "Creator": None})
