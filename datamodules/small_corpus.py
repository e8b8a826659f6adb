"""A data set cut down to few passages, among them the relevant ones of as many evaluation queries as fit."""

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from datamodules.corpus import Corpus, load_corpus, load_qrels, load_queries, qrels_splits
from datamodules.storage.files import atomic_path, write_json_lines
from retriever.errors import InputError, require_positive


def cut_data_set(
    folder: Path, output: Path, passages: int, split: str = "test", seed: int = 1, empty_passages: str = "error"
) -> dict[str, int]:
    """Write a smaller data set in BEIR's layout.

    Queries of ``split`` are taken in a seeded order as long as their judged passages fill at most half of the new
    corpus; the other half is drawn from the rest, so that the answers do not stand alone in it. Any other query stays
    where all its judged passages are in it; so one with a judged passage that the whole corpus lacks never does.

    Args:
        folder: a data set in BEIR's layout.
        output: the new folder; its name is the new corpus' name.
        passages: how many, at most as many as there are.
        split: of the judgements that are evaluated.
        seed: of both draws.
        empty_passages: as for :func:`~datamodules.corpus.load_corpus`.

    Returns:
        What was written: ``passages``, and the number of queries of each split.

    Raises:
        InputError: more passages than there are, so few that no query fits, or a folder that is there already.
    """
    require_positive(passages=passages)
    corpus, queries = load_corpus(folder, empty_passages=empty_passages), load_queries(folder)
    if passages > len(corpus):
        raise InputError(f"{passages} passages were asked for, and {folder} has {len(corpus)}.")
    if output.exists():
        raise InputError(f"{output} is there already. Remove it, or name another folder.")
    splits = {name: load_qrels(folder, name)[1] for name in qrels_splits(folder)}
    _, judged = load_qrels(folder, split)
    ids = corpus.ids.to_pylist()
    present = set(ids)
    random = np.random.default_rng(seed)
    kept: set[str] = set()
    names = sorted(query for query, judgements in judged.items() if judgements.keys() <= present)
    for number in random.permutation(len(names)):
        wider = kept | judged[names[number]].keys()
        if len(wider) <= passages // 2:
            kept = wider
    if not kept:
        raise InputError(f"{passages} passages are too few: half of them hold the judged passages of no query.")
    others = [ids[row] for row in random.permutation(len(ids)) if ids[row] not in kept]
    kept |= set(others[: passages - len(kept)])
    fitting = {name: {q: j for q, j in qrels.items() if j.keys() <= kept} for name, qrels in splits.items()}
    asked = {query for qrels in fitting.values() for query in qrels}
    write_data_set(output, corpus, kept, {q: t for q, t in queries.items() if q in asked}, fitting)
    return {"passages": len(kept), **{f"{name} queries": len(qrels) for name, qrels in fitting.items()}}


def write_data_set(
    output: Path,
    corpus: Corpus,
    kept: Collection[str],
    queries: Mapping[str, str],
    splits: Mapping[str, Mapping[str, Mapping[str, tuple[int, int]]]],
) -> None:
    """Write some passages of a corpus, queries and judgements in BEIR's layout.

    Args:
        output: the folder.
        corpus: the whole.
        kept: ids of the passages that are written.
        queries: id → text.
        splits: split → query id → passage id → (grade, line), as :func:`~datamodules.corpus.load_qrels` has them.
    """
    records = zip(corpus.ids.to_pylist(), corpus.titles.to_pylist(), corpus.texts.to_pylist(), strict=True)
    written = ({"_id": i, "title": title, "text": text} for i, title, text in records if i in kept)
    write_json_lines(output / "corpus.jsonl", written)
    write_json_lines(output / "queries.jsonl", ({"_id": q, "text": t} for q, t in queries.items()))
    for name, qrels in splits.items():
        rows = [f"{q}\t{p}\t{grade}\n" for q, judgements in qrels.items() for p, (grade, _) in judgements.items()]
        with atomic_path(output / "qrels" / f"{name}.tsv") as temporary:
            temporary.write_text("".join(["query-id\tcorpus-id\tscore\n", *rows]), encoding="utf-8")
