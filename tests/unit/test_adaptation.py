"""Adapting to a folder of texts: reading it, what it offers, what is decided, and what is said at the end."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from callbacks.reporting.statistics import paired_test
from datamodules.corpus import load_corpus
from experiments.adaptation import estimate
from experiments.adaptation.decide import decide, lines
from experiments.adaptation.estimate import Speed, measure
from experiments.adaptation.settings import AdaptSettings
from experiments.adaptation.survey import groups, survey
from experiments.adaptation.texts import content_hash, corpus_folder
from experiments.adaptation.verdict import verdict
from experiments.comparison.tables import Arm, Comparison, Table
from retriever.errors import InputError

TEXTS = Path("texts")
ROWS = [{"title": "Wings", "body": "A wing lifts."}, {"title": "", "body": "Flow, turbulent."}]


def passages(folder):
    corpus = load_corpus(folder)
    return list(zip(corpus.ids.to_pylist(), corpus.titles.to_pylist(), corpus.texts.to_pylist(), strict=True))


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])
def test_texts_of_a_table_become_a_corpus(kind, tmp_path):
    path = tmp_path / f"texts.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        separator = {"csv": ",", "tsv": "\t"}[kind]
        quoted = [f'"{row["body"]}"' if kind == "csv" else row["body"] for row in ROWS]
        rows = [separator.join((row["title"], text)) for row, text in zip(ROWS, quoted, strict=True)]
        path.write_text("\n".join([separator.join(("title", "body")), *rows]) + "\n")
    folder = corpus_folder(str(path), None, tmp_path / "made", "data")
    assert folder == tmp_path / "made" / "texts"
    first = 2 if kind in ("csv", "tsv") else 1
    assert passages(folder) == [(f"#{first}", "Wings", "A wing lifts."), (f"#{first + 1}", "", "Flow, turbulent.")]


def test_the_column_of_the_texts_may_be_named(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"id": 7, "abstract": "A wing lifts.", "lead": "Wings"}\n')
    assert passages(corpus_folder(str(path), "lead", tmp_path / "made", "data")) == [("7", "", "Wings")]
    with pytest.raises(InputError, match=r"texts.jsonl:1: which column holds the texts\? Say text=COLUMN; .* abstract"):
        corpus_folder(str(path), None, tmp_path / "made", "data")
    with pytest.raises(InputError, match="Did you mean 'abstract'"):
        corpus_folder(str(path), "abstrakt", tmp_path / "made", "data")
    path.write_text('{"text": 3}\n')
    with pytest.raises(InputError, match="text is 3; expected a text"):
        corpus_folder(str(path), None, tmp_path / "made", "data")


def test_plain_files_are_cut_at_blank_lines_and_by_length(tmp_path):
    folder = tmp_path / "notes"
    (folder / "more").mkdir(parents=True)
    words = [f"w{n}" for n in range(200)]
    (folder / "long_note.txt").write_text(" ".join(words) + "\n\nThe end\nof it.\n")
    (folder / "more" / "short.md").write_text("One.\n\n\nTwo.\n")
    (folder / "empty.txt").write_text("\n")
    assert passages(corpus_folder(str(folder), None, tmp_path / "made", "data")) == [
        ("long_note.txt#1", "long note", " ".join(words[:150])),
        ("long_note.txt#2", "long note", " ".join([*words[150:], "The end of it."])),
        ("more/short.md#1", "short", "One. Two."),
    ]
    (folder / "empty.txt").write_text("翼" * 20 + "。" + "流" * 700)
    cut = [text for passage_id, _, text in passages(corpus_folder(str(folder), None, tmp_path / "made", "data"))
           if passage_id.startswith("empty")]  # fmt: skip
    assert len(cut) == 3 and cut[0].startswith("翼" * 20 + "。 流") and "".join(cut).count("流") == 700
    (folder / "outputs" / "deep").mkdir(parents=True)
    for name in ("adapt.json", "verdict.md", "deep/card.md"):  # of an earlier adaptation
        (folder / "outputs" / name).write_text("Not a text.")
    again = passages(corpus_folder(str(folder), None, tmp_path / "made", "data"))
    assert {name.partition("#")[0] for name, _, _ in again} == {"empty.txt", "long_note.txt", "more/short.md"}
    (folder / "damaged.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"damaged.txt:1"):
        corpus_folder(str(folder), None, tmp_path / "made", "data")


def test_what_an_adaptation_depends_on_is_hashed(tmp_path, small_scifact):
    folder = tmp_path / "mine"
    shutil.copytree(small_scifact, folder, ignore=shutil.ignore_patterns("lists"))
    before = content_hash(str(folder), "data")
    assert content_hash(str(folder), "data") == before
    (folder / "qrels" / "test.tsv").open("a").write("1\t2\t1\n")
    assert content_hash(str(folder), "data") != before
    (tmp_path / "one.txt").write_text("A wing lifts.")
    texts = content_hash(str(tmp_path / "one.txt"), "data")
    (tmp_path / "one.txt").write_text("A wing falls.")
    assert content_hash(str(tmp_path / "one.txt"), "data") != texts


def test_a_folder_without_texts_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"a file of texts: corpus=texts\.csv text=COLUMN"):
        corpus_folder(str(tmp_path), None, tmp_path / "made", "data")
    with pytest.raises(InputError, match="There is no data set 'nowhere'"):
        corpus_folder("nowhere", None, tmp_path / "made", "data")


def test_a_survey_says_what_queries_there_are(small_scifact, tmp_path):
    found = survey(small_scifact, None, str(tmp_path))
    assert (found.split, found.test_queries) == ("test", 20)
    assert list(found.queries) == ["judged", "titles", "sentences"]
    assert found.queries["judged"] == 40 and found.queries["titles"] == 120 and found.queries["sentences"] > 500
    other = survey(small_scifact, "train", str(tmp_path))
    assert (other.split, other.test_queries) == ("train", 40) and "judged" not in other.queries
    with pytest.raises(InputError, match=r"split is 'trian'.*Did you mean 'train'"):
        survey(small_scifact, "trian", str(tmp_path))


def test_a_corpus_of_which_no_query_can_be_made_is_refused(tmp_path):
    (tmp_path / "corpus.jsonl").write_text('{"_id": "1", "text": "12 34"}\n')
    with pytest.raises(InputError, match="nothing to take queries from"):
        survey(tmp_path, None, str(tmp_path / "cache"))


def test_queries_are_shared_by_titles_and_sentences(small_scifact, tmp_path):
    found = survey(small_scifact, None, str(tmp_path))
    chosen = groups(found, 500)
    assert list(chosen) == ["human", "title", "sentence"]
    assert chosen["title"]["limit"] == 120 and chosen["sentence"]["limit"] == 380  # few titles leave more sentences
    assert [group["limit"] for group in list(groups(found, 100).values())[1:]] == [50, 50]


def asked(**options):
    values = {
        "corpus": "x", "text": None, "split": None, "objectives": ["distillation_corpus", "infonce_conventional"],
        "seeds": [1], "elsewhere": [], "minutes": None, "plan": False, "queries": 8000, "steps": None,
        "batch_size": None, "precision": "auto", "output_dir": "outputs", "cache_dir": "cache", "data_dir": "data",
    }  # fmt: skip
    return AdaptSettings(**values | options)


FAST = Speed(passages=100, queries=1000)


def test_a_measurement_counts_for_an_hour_but_not_a_disturbed_one(small_scifact, tmp_path, monkeypatch):
    found, file = survey(small_scifact, None, str(tmp_path)), tmp_path / "speeds.json"
    speeds = iter([replace(FAST, busy="others run"), FAST, replace(FAST, passages=50), replace(FAST, passages=70)])
    monkeypatch.setattr(estimate, "measure", lambda *_: next(speeds))
    measured = [estimate.measured_speed(None, found, file, ["a model"]) for _ in range(3)]
    assert [speed.busy for speed in measured] == ["others run", "", ""] and measured[1] == measured[2] == FAST
    assert estimate.measured_speed(None, found, file, ["longer"]).passages == 50
    later = time.time() + 3601
    monkeypatch.setattr(time, "time", lambda: later)
    assert estimate.measured_speed(None, found, file, ["a model"]).passages == 70
    file.write_text("{")
    with pytest.raises(StopIteration):  # it measures again
        estimate.measured_speed(None, found, file, ["a model"])


def test_batch_and_steps_follow_the_number_of_lists(small_scifact, tmp_path):
    found = survey(small_scifact, None, str(tmp_path))
    cache = {"cache_dir": str(tmp_path)}
    large = decide(asked(**cache), found, "x", FAST).decided
    small = decide(asked(queries=100, **cache), found, "x", FAST).decided
    assert (large.batch, large.steps) == (32, 84) and (small.batch, small.steps, small.every) == (16, 24, 6)
    stated = decide(asked(steps=7, batch_size=5, **cache), found, "x", FAST).decided
    assert (stated.batch, stated.steps, stated.every) == (5, 7, 1)


def test_where_time_is_short_less_is_done_and_said(small_scifact, tmp_path):
    found = survey(small_scifact, None, str(tmp_path))
    cache = {"cache_dir": str(tmp_path), "elsewhere": ["cranfield", str(small_scifact)]}
    whole = decide(asked(**cache), found, "x", FAST)
    few, enough = (replace(found, test_queries=count) for count in (6, 7))  # of two objectives
    said = [lines(whole, of, asked(), "a model", tmp_path)["measured on"] for of in (few, enough)]
    assert ["too few for any" in measured for measured in said] == [True, False]
    assert whole.decided.elsewhere == ["cranfield"] and whole.work.elsewhere == 1400 and not whole.cut
    minutes = sum(whole.seconds.values()) / 60
    home = decide(asked(minutes=1.5 * minutes - 0.1, **cache), found, "x", FAST)
    assert home.decided.elsewhere == [] and "cranfield" in home.cut[0] and home.work.queries == whole.work.queries
    slow = Speed(passages=100, queries=30)
    seconds = sum(decide(asked(**cache), found, "x", slow).seconds.values())
    less = decide(asked(minutes=seconds / 60, **cache), found, "x", slow)  # and may take 1.5 times the estimate
    assert less.work.queries < whole.work.queries and 1.5 * sum(less.seconds.values()) < seconds
    said = lines(less, found, asked(minutes=seconds / 60), "a model", tmp_path)
    assert f"to {less.work.queries:,}" in said["left out"] and "20 human queries (test)" in said["measured on"]
    with pytest.raises(InputError, match=r"minutes is 0\.01; .* Give it more time"):
        decide(asked(minutes=0.01, **cache), found, "x", slow)


@pytest.mark.slow
def test_the_measured_speed_is_that_of_the_encoder(tiny_encoder, small_scifact, tmp_path):
    found = survey(small_scifact, None, str(tmp_path))
    speed = measure(tiny_encoder, found)
    assert speed.passages > 0 and speed.queries > 0


@pytest.mark.parametrize(
    ("load", "used", "words"),
    [
        (1.9, 0.9, None),
        (7.31, 0.9, "other programs are using this machine (load 7.3 on 2 cores): expect less once it is quiet"),
        (1.9, 0.5, "(the measurement got 50% of a core)"),
    ],
)
def test_a_busy_machine_is_named_beside_the_minutes(
    load, used, words, tiny_encoder, small_scifact, tmp_path, monkeypatch
):
    found = survey(small_scifact, None, str(tmp_path))
    monkeypatch.setattr("time.process_time", lambda: used * time.perf_counter())
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    plan = decide(asked(cache_dir=str(tmp_path)), found, "x", measure(tiny_encoder, found))
    said = lines(plan, found, asked(), "a model", tmp_path)["minutes"]
    assert words in said if words else "other programs" not in said


@pytest.mark.parametrize(
    ("options", "words"),
    [({"objectives": []}, "objectives is"), ({"seeds": [1, 1]}, "each once"), ({"minutes": 0}, "minutes is 0")],
)
def test_wrong_settings_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        asked(**options)


def compared(values, abroad=None, step=50):
    """A comparison of arms by their nDCG@10 on 200 queries, each beside a base of 0.5."""
    base = np.linspace(0, 1, 200)[None]
    arms = [Arm("base", [1], 0.5, None)]
    for name, value in values.items():
        noise = np.random.default_rng(len(name)).normal(value, 0.05, 200)[None]
        test = paired_test([base + noise], [base], resamples=1000)
        arms.append(Arm(name, [1], 0.5 + test.mean, test, test.p, steps=[step]))

    class Run:
        folder = Path("runs/first")

        results = {"steps": {"best": step}, "criterion_value": 1.0}  # noqa: RUF012
        config = {"criterion_mode": "min"}  # noqa: RUF012

        def is_home(self, name):
            return name == "mine"

    loss = paired_test([np.full((1, 50), 0.4)], [np.full((1, 50), 0.5)], resamples=100)
    tables = {"mine": Table("mine", 200, None, len(values), arms)}
    if abroad:
        tables["other"] = Table("other", 50, None, 1, [Arm(name, [1], 0.4, loss, 0.01) for name in values])
    return Comparison(
        which="best", base="base", groups={name: [Run()] for name in values}, measured={},
        tables=tables, clean={}, average=None, clean_average=None, unfinished=[], forgetting=[],
    )  # fmt: skip


def said_of(comparison, objectives, human, corpus, last=None):
    return verdict(comparison, last or comparison, objectives, human, corpus)


def test_a_gain_is_recommended_with_its_price():
    said = said_of(
        compared({"ours": 0.03, "conventional": -0.03}, abroad=True),
        ["ours", "conventional"],
        human=True,
        corpus=Path("texts"),
    )
    assert said[0].startswith("Take ours: on this corpus it is better") and "on 200 human queries: +0.0" in said[0]
    assert "runs/first/model" in said[1] and "index" in said[1]
    assert said[2].startswith("conventional: -0.0") and said[2].endswith("(significantly worse than the base model).")
    assert said[3] == "Elsewhere (other): -0.1000 [-0.1000, -0.1000], p 0.010."
    assert not any("not people's" in sentence or "too few" in sentence for sentence in said)


def test_without_a_gain_the_base_model_is_kept():
    said = said_of(
        compared({"ours": 0.0, "conventional": -0.03}), ["ours", "conventional"], human=False, corpus=Path("texts")
    )
    assert said[0].startswith("Keep the base model") and "made-up queries" in said[0]
    assert "not people's" in said[-1] and "qrels/test.tsv beside texts/corpus.jsonl" in said[-1]
    worse = said_of(compared({"ours": -0.03}), ["ours"], True, TEXTS)
    assert "ours (significantly worse than the base model): nDCG@10" in worse[0]
    at_the_end = compared({"ours": -0.03, "conventional": 0.0})
    kept = said_of(
        compared({"ours": 0.0, "conventional": 0.0}, step=0), ["ours", "conventional"], True, TEXTS, at_the_end
    )
    assert "ours: its dev lists kept the base model; its last step is at -0.0" in kept[0]
    assert kept[0].endswith("p 0.001 (significantly worse than the base model).")
    missed = said_of(compared({"ours": 0.0}, step=0), ["ours"], True, TEXTS, compared({"ours": 0.03}))
    assert missed[0].endswith("significantly better, but dev lists did not choose it.")
    assert kept[1].startswith("conventional: its dev lists kept the base model; its last step is at ")


@pytest.mark.parametrize(("queries", "words"), [(1, "1 query is too few"), (4, "4 queries are too few")])
def test_too_few_queries_are_named(queries, words):
    comparison = compared({"ours": 0.03})
    comparison.tables["mine"] = replace(comparison.tables["mine"], queries=queries)
    [said] = [sentence for sentence in said_of(comparison, ["ours"], True, TEXTS) if "too few" in sentence]
    assert said.startswith(words) and said.endswith("Judge some fifty.")
    for number, few in ((20, True), (100, False)):
        comparison.tables["mine"] = replace(comparison.tables["mine"], queries=number)
        assert any("queries are few" in sentence for sentence in said_of(comparison, ["ours"], True, TEXTS)) == few


def test_a_loss_elsewhere_is_said_of_made_up_queries_too():
    said = said_of(compared({"ours": 0.03}, abroad=True), ["ours"], False, TEXTS)
    assert said[0].startswith("Take ours: at made-up queries of this corpus")
    assert said[2].startswith("Elsewhere (other): -0.1000")


def test_of_several_seeds_the_model_is_named_that_dev_lists_prefer():
    comparison = compared({"ours": 0.03})
    [run] = comparison.groups["ours"]

    class Other(type(run)):
        folder = Path("runs/second")
        results = {"steps": {"best": 25}, "criterion_value": 0.5}  # noqa: RUF012

    class OfBase(type(run)):
        folder = Path("runs/third")
        results = {"steps": {"best": 0}, "criterion_value": 0.1}  # noqa: RUF012

    comparison.groups["ours"] += [Other(), OfBase()]
    assert "runs/second/model" in said_of(comparison, ["ours"], True, TEXTS)[1]


def test_another_objective_that_gains_is_named_where_the_first_does_not():
    said = said_of(
        compared({"ours": 0.0, "conventional": 0.03}), ["ours", "conventional"], human=True, corpus=Path("texts")
    )
    assert said[0].startswith("Take conventional")
