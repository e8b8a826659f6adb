"""Writes the lists that the page on temperatures shows: python -m docs.pictures.lists FILE.parquet CORPUS NUMBER …

Takes the lists of these numbers, and adds the cosines of all-MiniLM-L6-v2 before training.
"""

import json
import sys
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from datamodules.corpus import find_dataset, load_corpus
from datamodules.query_lists import read_query_lists
from retriever.encoder.encoding import encode, evaluating

OUTPUT = Path(__file__).parents[1] / "assets" / "temperature-lists.js"
_BEGIN = "window.temperatureLists = "  # a script, so that the page works from a disk, too
SHOWN = 12  # passages of a list


def shown(path: str, dataset: str, numbers: list[int]) -> list[dict[str, object]]:
    """Give titles, teacher scores and cosines of the first passages of some lists."""
    corpus = load_corpus(find_dataset(dataset, "data"), empty_passages="keep")
    ids, titles, texts = (column.to_pylist() for column in (corpus.ids, corpus.titles, corpus.texts))
    row = {passage: number for number, passage in enumerate(ids)}
    with initialize_config_dir(str(Path("experiments/conf").absolute()), version_base="1.3"):
        encoder = instantiate(compose("run").encoder)
    lists = list(read_query_lists(path))
    found = []
    for one in (lists[number] for number in numbers):
        scored = sorted(zip(one.teacher_scores, one.passage_ids, strict=True), reverse=True)
        rows = [row[passage] for _, passage in scored[:SHOWN]]
        with evaluating(encoder), torch.no_grad():
            query = encode(encoder, encoder.tokenize([one.query], "query"))
            passages = encode(encoder, encoder.tokenize([f"{titles[r]} {texts[r]}".strip() for r in rows], "passage"))
        cosines = (passages @ query[0]).tolist()
        found.append(
            {
                "query": one.query,
                "set": dataset,
                "titles": [titles[r] or texts[r][:80] for r in rows],
                "teacher": [round(score, 4) for score, _ in scored[:SHOWN]],
                "student": [round(cosine, 4) for cosine in cosines],
            }
        )
    return found


if __name__ == "__main__":
    file, name, *chosen = sys.argv[1:]
    before = json.loads(OUTPUT.read_text().removeprefix(_BEGIN).rstrip(";\n")) if OUTPUT.is_file() else []
    lists = [one for one in before if one["set"] != name] + shown(file, name, [int(number) for number in chosen])
    OUTPUT.write_text(f"{_BEGIN}{json.dumps(lists, ensure_ascii=False, indent=1)};\n")
