"""Leaks by the text of a passage, whatever its id and its corpus; and hits that have their query's id."""

import json
import unicodedata

import numpy as np
import pytest

from callbacks.evaluation.block_search import score_runs, search_blocks
from callbacks.evaluation.metrics import Metrics, mean_scores
from datamodules import QueryListDataModule
from datamodules.corpus import load_evaluation_set
from datamodules.leakage.same_passages import RelevantPassages
from datamodules.query_lists import QueryList, write_query_lists
from retriever.errors import InputError

THINGS = ["copper kettle", "river otter", "harbour crane", "winter barley", "clay oven", "night ferry"]
VERBS = ["repair", "feed", "paint", "harvest", "inspect", "store"]


def passages():
    texts = (
        f"To {v} a {t} you begin with the handle, and end with the lid of it."
        for t, v in zip(THINGS, VERBS, strict=True)
    )
    return {f"d{n}": (THINGS[n].title(), text) for n, text in enumerate(texts)}


def write_corpus(folder, rows, test=()):
    """A folder in BEIR's layout; ``test``: numbers of the things that a test query asks for."""
    (folder / "qrels").mkdir(parents=True)
    lines = (json.dumps({"_id": i, "title": title, "text": text}) for i, (title, text) in rows.items())
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    asked = (json.dumps({"_id": f"q{n}", "text": f"how do I {VERBS[n]} a {THINGS[n]}"}) for n in test)
    (folder / "queries.jsonl").write_text("\n".join(asked))
    (folder / "qrels" / "test.tsv").write_text("".join(f"q{n}\td{n}\t1\n" for n in test))
    return folder


def write_lists(path, corpus, positives, kind="human"):
    lists = []
    for number, positive in enumerate(positives):
        candidates = [positive, *(p for p in FILLER if p != positive)]
        scores = [float(-k) for k in range(len(candidates))]
        wording = f"{kind}{number} wording"
        lists.append(QueryList(f"t{number}", wording, kind, corpus, [positive], candidates, scores))
    write_query_lists(path, lists, {})
    return path


FILLER = {f"x{n}": ("", f"Nothing of the kind stands in text {n}, which fills a list") for n in range(4)}
COPIES = {
    "the same": lambda title, text: (title, text),
    "case, spaces and punctuation": lambda title, text: (title.upper() + " ", text.replace(", ", " —  ").upper()),
    "another Unicode form": lambda title, text: (unicodedata.normalize("NFD", title), text.replace("o", "ｏ")),
    "the title in the text": lambda title, text: ("", f"{title} {text}"),
    "part of the title in the text": lambda title, text: (title.split()[0], f"{title.split()[1]}\n{text}"),
    "no title": lambda title, text: ("", text),
}


def data_module(encoder, tmp_path, train, evaluation, **options):
    corpus = train[0]["corpus"]
    lists = write_lists(tmp_path / "dev.jsonl", corpus.rpartition("/")[2], FILLER, "dev")
    dev = [{"path": str(lists), "corpus": corpus}]
    data = QueryListDataModule(encoder, train, dev, evaluation=evaluation, cache_dir=tmp_path / "cache", **options)
    data.setup()
    return data


@pytest.mark.parametrize("where", ["another corpus", "the same corpus"])
@pytest.mark.parametrize("change", COPIES.values(), ids=COPIES)
def test_a_copy_of_a_relevant_passage_is_a_leak(tiny_encoder, tmp_path, where, change):
    copies = {f"c{n}": change(*passage) for n, passage in enumerate(passages().values())}
    if where == "another corpus":  # its ids are those of other passages of the evaluation's
        copies = {f"d{(int(i[1:]) + 1) % 6}": passage for i, passage in copies.items()}
        home = write_corpus(tmp_path / "home", passages() | FILLER, test=(0, 1, 2))
        away = write_corpus(tmp_path / "away", copies | FILLER)
    else:
        home = away = write_corpus(tmp_path / "home", passages() | copies | FILLER, test=(0, 1, 2))
    train = [
        {"path": str(write_lists(tmp_path / f"{kind}.jsonl", away.name, copies, kind)), "corpus": str(away)}
        for kind in ("human", "web")
    ]
    data = data_module(tiny_encoder, tmp_path, train, [{"path": str(home)}])
    shares = {"shares the text of a relevant passage with": 3}
    assert data.report["leak_guard"] == [{"lists": "human.jsonl", "against": "home/test", "of": 6, **shares}]
    assert data.report["train_lists"] == 9
    # a synthetic query may share its source with an evaluation query, but the overlap tells
    reason = "shares the text of a relevant passage with the train query {} of web.jsonl"
    overlap = data.overlap(load_evaluation_set(str(home)))
    assert overlap == {f"q{n}": reason.format(f"t{n}") for n in range(3)}


def test_the_guard_can_refuse_a_copy(tiny_encoder, tmp_path):
    home = write_corpus(tmp_path / "home", passages() | FILLER, test=(0,))
    away = write_corpus(tmp_path / "away", passages() | FILLER)
    lists = write_lists(tmp_path / "human.jsonl", "away", ["d0", "d3"])
    train = [{"path": str(lists), "corpus": str(away)}]
    with pytest.raises(
        InputError, match=r"human\.jsonl:1: .* shares the text of a relevant passage with the query 'q0'"
    ):
        data_module(tiny_encoder, tmp_path, train, [{"path": str(home)}], leak_guard="fail")


def test_a_query_that_nearly_equals_one_of_another_corpus_is_a_leak(tiny_encoder, tmp_path):
    home = write_corpus(tmp_path / "home", passages() | FILLER, test=(0, 1))
    away = write_corpus(tmp_path / "away", {f"y{n}": ("", f"Another text {n}") for n in range(2)} | FILLER)
    lists = write_lists(tmp_path / "web.jsonl", "away", ["y0", "y1"], "web")
    lists.write_text(lists.read_text().replace("web1 wording", "How do I FEED one river otter"))
    data = data_module(tiny_encoder, tmp_path, [{"path": str(lists), "corpus": str(away)}], [{"path": str(home)}])
    assert data.report["leak_guard"] == [
        {"lists": "web.jsonl", "against": "home/test", "of": 2, "is nearly equal to": 1}
    ]


def test_near_copies_count_where_asked_for(tiny_encoder, tmp_path):
    home = write_corpus(tmp_path / "home", passages() | FILLER, test=(0,))
    near = {i: (title, text.replace("begin with", "start at")) for i, (title, text) in passages().items()}
    away = write_corpus(tmp_path / "away", near | FILLER)
    lists = write_lists(tmp_path / "human.jsonl", "away", [f"d{n}" for n in range(6)])
    train = [{"path": str(lists), "corpus": str(away)}]
    strict, lenient = (
        data_module(tiny_encoder, tmp_path, train, [{"path": str(home)}], leak_near_passages=near)
        for near in (None, 0.5)
    )
    assert "leak_guard" not in strict.report
    assert [r["shares a near copy of a relevant passage with"] for r in lenient.report["leak_guard"]] == [1]
    with pytest.raises(InputError, match=r"data\.leak_near_passages is 1\.5; it must be in \(0, 1\], or null"):
        data_module(tiny_encoder, tmp_path, train, [], leak_near_passages=1.5)


def test_ids_of_another_corpus_and_empty_texts_are_no_copies(tmp_path):
    rows = {"d0": ("", "One text"), "d1": ("", "…"), "d2": ("", "Another text"), "d3": ("A", "See above.")}
    home = load_evaluation_set(str(write_corpus(tmp_path / "home", rows, test=(0, 1, 3)))).corpus
    rows = {"d0": ("", "Third text"), "d1": ("", "—"), "d2": ("", "one TEXT"), "d3": ("B", "See above.")}
    away = load_evaluation_set(str(write_corpus(tmp_path / "away", rows, test=(0,)))).corpus
    passages = RelevantPassages(home, {"q0": {"d0", "gone"}, "q1": {"d1"}, "q3": {"d3"}})
    found = passages.among(away, np.arange(4))
    assert {i: match.relevant for i, match in found.items()} == {"d2": ("d0",)}
    assert {i: match.reason for i, match in passages.among(home, np.arange(4)).items()} == dict.fromkeys(
        ("d0", "d1", "d3"), "shares a relevant passage with"
    )


@pytest.mark.parametrize("grade", [1, 0])
def test_a_hit_of_the_querys_id_stays_where_it_is_judged_relevant(tmp_path, caplog, grade):
    folder = tmp_path / "faq"
    (folder / "qrels").mkdir(parents=True)
    for name in ("corpus", "queries"):
        lines = (json.dumps({"_id": str(n), "text": f"{name} {n}"}) + "\n" for n in range(3))
        (folder / f"{name}.jsonl").write_text("".join(lines))
    judged = "".join(f"{n}\t{n}\t{grade}\n{n}\t{(n + 1) % 3}\t{1 - grade}\n" for n in range(3))
    (folder / "qrels" / "test.tsv").write_text(judged)
    data = load_evaluation_set(str(folder))
    embeddings = np.eye(3, dtype=np.float32)
    with caplog.at_level("INFO"):
        scores = mean_scores(score_runs(data, search_blocks(data, embeddings, embeddings, 3), Metrics()))
    if grade:
        assert scores["ndcg@10"] == scores["mrr@10"] == scores["recall@100"] == 1.0
        assert "left out" not in caplog.text
    else:  # the other two tie at 0, and come by descending id: 2 1, 2 0, 1 0, of which 1, 2, 0 are relevant
        assert "faq: 3 hits left out that have their query's id" in caplog.text and "no leak" in caplog.text
        assert scores["recall@100"] == 1.0 and scores["mrr@10"] == pytest.approx((1 / 2 + 1 + 1 / 2) / 3, abs=1e-5)
