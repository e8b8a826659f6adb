"""Draws the documentation's pictures: python -m docs.pictures.draw

``pipeline.json`` holds the counts of two runs of ``experiments.prepare``, as their manifests have them.
"""

import json
from pathlib import Path

from matplotlib.patches import Rectangle

from docs.pictures.boxes import BLUE, GREEN, GREY, INK, ORANGE, PINK, SKY, Picture

HERE = Path(__file__).parent


def idea() -> Picture:
    """From a corpus to a verdict, with the commands that lead there."""
    picture = Picture(96, 27)
    y, high, wide, gap = 11.5, 10, 14, 2.0
    boxes = [
        ("corpus", ["passages:", "id, title, text"], BLUE),
        ("queries", ["titles, sentences,", "or by an LLM,", "or by humans"], BLUE),
        ("candidates", ["mined by BM25", "and encoders,", "50 to 100 per query"], BLUE),
        ("teacher scores", ["cross-encoder", "or fusion,", "each pair once"], ORANGE),
        ("student", ["InfoNCE, listwise", "distillation,", "or both"], GREEN),
        ("verdict", ["nDCG@10 vs. base,", "95% interval,", "corrected p"], PINK),
    ]
    at = [1 + number * (wide + gap) for number in range(len(boxes))]
    for x, (title, lines, colour) in zip(at, boxes, strict=True):
        picture.box(x, y, wide, high, title, lines, colour)
    for x in (*at[1:4], at[5]):
        picture.arrow((x - gap, y + high / 2), (x, y + high / 2))
    for first, last, command, colour in ((0, 3, "prepare", BLUE), (4, 4, "run", GREEN), (5, 5, "compare", PINK)):
        picture.bracket(at[first] + 0.3, at[last] + wide - 0.3, y + high + 0.8, f"{command}", colour)
    lists = ["query · passage ids · raw teacher scores"]
    picture.box(at[1], 2.4, 3 * wide + 2 * gap, 5.2, "query lists", lists, SKY)
    picture.arrow((at[3] + wide / 2, y), (at[3] + wide / 2 - 2, 7.7))
    picture.arrow((at[3] + wide, 5.3), (at[4] + wide / 2, y - 0.1), bend=0.3)
    picture.text(at[0] + wide / 2, 6.2, "adapt", 9.5, INK, family="monospace", weight="bold")
    picture.text(at[0] + wide / 2, 4.2, "runs all of it", 8.5, "#57606a")
    return picture


def batch() -> Picture:
    """Three lists that share passages; each distinct passage is encoded once."""
    picture = Picture(78, 30)
    lists = [[4, 9, 2, 7], [9, 4, 1], [7, 3, 9, 4]]
    scores = [[0.9, 0.7, 0.4, 0.1], [1.0, 0.6, 0.2], [0.8, 0.5, 0.3, 0.2]]
    distinct = sorted({passage for one in lists for passage in one})
    picture.text(15, 28.3, "query lists: Q = 3, K = 4", 11, weight="bold")
    side = 3.6
    for row, (one, score) in enumerate(zip(lists, scores, strict=True)):
        y = 22 - row * 5.6
        picture.text(3.4, y + side / 2, f"query {row + 1}", 9.5)
        for column in range(4):
            x = 7 + column * (side + 0.6)
            held = column < len(one)
            shade = BLUE + f"{int(40 + 150 * score[column]):02x}" if held else "white"
            picture.axes.add_patch(Rectangle((x, y), side, side, fc=shade, ec=BLUE if held else GREY, lw=1.2))
            if held:
                picture.text(x + side / 2, y + side / 2, f"d{one[column]}", 9.5)
            else:
                picture.text(x + side / 2, y + side / 2, "–", 9.5, "#57606a")
    picture.text(15, 8.2, "darker: higher teacher score;  –: masked", 8.5, "#57606a")
    picture.text(40, 28.3, f"distinct passages: P = {len(distinct)}", 11, weight="bold")
    for number, passage in enumerate(distinct):
        y = 23.2 - number * 3.5
        picture.axes.add_patch(Rectangle((36.5, y), 7, 2.6, fc=GREEN + "33", ec=GREEN, lw=1.2))
        picture.text(40, y + 1.3, f"{number}: d{passage}", 9.5)
    picture.arrow((25, 18.5), (36, 18.5), "each once")
    picture.text(62, 28.3, "list_index  [Q, K]", 11, weight="bold")
    for row, one in enumerate(lists):
        y = 22 - row * 5.6
        for column in range(4):
            x = 53.5 + column * (side + 0.6)
            held = column < len(one)
            picture.axes.add_patch(Rectangle((x, y), side, side, fc="white", ec=ORANGE if held else GREY, lw=1.2))
            words = str(distinct.index(one[column])) if held else "–"
            picture.text(x + side / 2, y + side / 2, words, 9.5, INK if held else "#8c959f")
    picture.arrow((44, 18.5), (53, 18.5), "points at")
    entries = sum(map(len, lists))
    picture.text(
        39, 2.4, f"{entries} list entries, {len(distinct)} passages encoded. The loss still counts each entry.", 10
    )
    return picture


def pipeline() -> Picture:
    """What each stage of ``prepare`` left, on the two corpora that ship."""
    counts = json.loads((HERE / "pipeline.json").read_text())
    stages = counts["stages"]
    picture = Picture(86, 2 + 9 * len(counts["corpora"]))
    wide, gap = 12.2, 2.0
    for row, corpus in enumerate(counts["corpora"]):
        y = 2 + 9 * (len(counts["corpora"]) - 1 - row)
        picture.text(1, y + 7.4, corpus["name"], 11, weight="bold", ha="left")
        for number, stage in enumerate(stages):
            x = 1 + number * (wide + gap)
            picture.box(x, y, wide, 6, stage, corpus["left"][number], (BLUE, BLUE, BLUE, ORANGE, ORANGE, GREEN)[number])
            if number:
                picture.arrow((x - gap, y + 3), (x, y + 3))
    return picture


def main() -> None:
    """Draw them all."""
    for draw in (idea, batch, pipeline):
        draw().save(HERE / f"{draw.__name__}.svg")


if __name__ == "__main__":
    main()
