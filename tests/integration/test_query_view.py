"""The page's view of single queries: what is embedded, escaped, and put into the file beside the page."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from datamodules.query_lists import QueryList, write_query_lists
from experiments.comparison.query_view import TEXTS, query_view, to_script_json
from experiments.comparison.report import write_report
from experiments.comparison.tables import compare
from helpers.run_folders import write_run

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium")
SCRIPT = '</script><script>alert(1)</script><!--<script><img src=x onerror="alert(2)">\u2028&amp;'
QUERIES = [f"q{number}" for number in range(4)]
RANKED = {0: "abcdefghijklm", 8: "bacdefghijkml"}  # step → passages, best first


def ranking(folder, step, dataset="d", prefix="", passages=None, queries=QUERIES):
    path = folder / "trec_runs" / dataset / f"step-{step:06d}.trec"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        f"{query} Q0 {prefix}{passage} {rank} {1 / rank:.6g} step-{step}\n"
        for query in queries
        for rank, passage in enumerate(passages or RANKED[step], 1)
    ]
    path.write_text("".join(rows))


def data_set(folder, text="text", prefix="", grades=None):
    """Passages a to m; ``m`` is relevant to every query, ``b`` to the first."""
    (folder / "qrels").mkdir(parents=True)
    rows = [
        json.dumps({"_id": f"{prefix}{p}", "title": f"title {p} {text}", "text": f"{text} {p} " * 40})
        for p in "abcdefghijklm"
    ]
    (folder / "corpus.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "queries.jsonl").write_text("".join(json.dumps({"_id": q, "text": f"what {q}"}) + "\n" for q in QUERIES))
    grades = grades or [("q0", "b", 2), *((query, "m", 1) for query in QUERIES), ("q1", "a", 0)]
    lines = [f"{query}\t{prefix}{passage}\t{grade}\n" for query, passage, grade in grades]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return folder


def run_over(folder, corpus, name="arm", seed=1, prefix="", **given):
    config = {"evaluation": {"datasets": [{"path": str(corpus), "name": "d"}]}} | given.pop("config", {})
    texts = given.pop("texts", {"d": {query: {"query": f"what {query}", "relevant": []} for query in QUERIES}})
    best = np.array([0.5, 0.25, 0.75, 1.0]) - seed / 100
    write_run(folder, name, seed, {"d": best}, base={"d": np.full(4, 0.5)}, config=config, texts=texts, **given)
    for step in RANKED:
        ranking(folder, step, prefix=prefix)
    return folder


def view_of(comparison, **options):
    return json.loads(query_view(comparison, **options).data)


class Scripts(HTMLParser):
    """The elements of a page; the scripts with their content."""

    def __init__(self, text):
        super().__init__()
        self.scripts, self.tags, self._inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self._inside = tag == "script"
        self.scripts += [(dict(attributes), "")] if self._inside else []

    def handle_endtag(self, tag):
        self._inside = False

    def handle_data(self, data):
        if self._inside:
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)


def test_both_rankings_are_embedded_with_grades_and_words(tmp_path):
    corpus = data_set(tmp_path / "corpus")
    overlap = {"d": {"q2": "nearly equals the train query t7"}}
    for seed in (1, 2):
        run_over(tmp_path / f"run{seed}", corpus, seed=seed, overlap=overlap)
    found = view_of(compare([tmp_path / "run1", tmp_path / "run2"]))
    [of_set], [words] = found["sets"], found["words"]
    [arm] = of_set["arms"]
    assert (arm["name"], arm["base"], arm["seed"]) == ("arm", "base", 1), "the first of two seeds"
    assert arm["values"][1] == pytest.approx([0.485, 0.235, 0.735, 0.985]), "means over seeds"
    assert arm["shown"][1] == pytest.approx([0.49, 0.24, 0.74, 0.99]), "of the rankings that are shown"
    assert of_set["queries"][2] == ["q2", "what q2", "nearly equals the train query t7"]
    before, after = (of_set["rankings"][side][0] for side in arm["sides"])
    names = of_set["passages"]
    assert ["".join(names[p] for p in side[0]) for side in (before, after)] == ["abcdefghij", "bacdefghij"]
    m = names.index("m")
    assert before[1] == [m, 13] and after[1] == [m, 12], "a relevant passage below the first ten, with its rank"
    grades = [dict(zip(flat[::2], flat[1::2], strict=True)) for flat in of_set["grades"]]
    assert grades[:2] == [{names.index("b"): 2, m: 1}, {names.index("a"): 0, m: 1}]
    assert of_set["relevant"] == [2, 1, 1, 1] and of_set["missing"] == "" and of_set["scores"] == []
    assert words[m][0] == "title m text" and words[m][1].startswith("text m text m") and words[m][1].endswith("…")
    assert len(words[m][1]) <= 241 and len(words) == len(names) == 11


def test_a_named_base_and_its_seed_are_shown(tmp_path):
    corpus = data_set(tmp_path / "corpus")
    for name, seed in (("a", 1), ("a", 2), ("b", 2), ("b", 3)):
        ranking_of_b = run_over(tmp_path / f"{name}{seed}", corpus, name, seed)
        if name == "b":
            ranking(ranking_of_b, 8, passages="mlkjihgfedcba")
    [of_set] = view_of(compare([tmp_path / f"{n}{s}" for n, s in ("a1", "a2", "b2", "b3")], base="b"))["sets"]
    arms = {arm["name"]: arm for arm in of_set["arms"]}
    assert list(arms) == ["base", "a"] and arms["a"]["seed"] == 2, "the first that both have"
    first = [of_set["passages"][of_set["rankings"][side][0][0][0]] for side in arms["a"]["sides"]]
    assert first == ["m", "b"] and arms["base"]["sides"][0] == arms["a"]["sides"][0]
    assert arms["a"]["shown"] == [pytest.approx([0.48, 0.23, 0.73, 0.98])] * 2


def test_without_corpus_ids_are_shown_and_without_rankings_nothing(tmp_path):
    run = run_over(tmp_path / "run", tmp_path / "gone")
    found = view_of(compare([run]))
    [of_set] = found["sets"]
    assert "ids alone" in of_set["missing"] and found["words"] == [[]] and of_set["grades"] == [[]] * 4
    assert of_set["passages"] == list("abcdefghijkl"[:10])
    (run / "trec_runs" / "d" / "step-000008.trec").write_text("q0 Q0 a\n")
    assert query_view(compare([run])) is None, "what is damaged is left out"
    (run / "trec_runs" / "d" / "step-000008.trec").unlink()
    write_report(compare([run]), tmp_path / "report")
    assert "view-data" not in (tmp_path / "report" / "comparison.html").read_text()


def test_a_damaged_corpus_or_list_costs_its_words_alone(tmp_path, caplog):
    corpus = data_set(tmp_path / "corpus")
    run = run_over(
        tmp_path / "run", corpus, config={"data": {"dev": [{"path": "gone.parquet", "corpus": str(corpus)}]}}
    )
    assert view_of(compare([run]))["words"][0] and "scores of the teacher are not shown" in caplog.text
    (corpus / "corpus.jsonl").write_text("{")
    assert view_of(compare([run]))["words"] == [[]] and "corpus.jsonl:1" in caplog.text


def test_scores_of_a_teacher_come_from_lists_that_name_the_query(tmp_path):
    corpus = data_set(tmp_path / "corpus")
    lists = [
        QueryList("q0", "what q0", "human", "corpus", ["b"], ["b", "a", "m"], [3.0, 2.5, 1.0]),
        QueryList("q1", "another query of that id", "human", "corpus", ["b"], ["b", "a"], [3.0, 2.5]),
    ]
    write_query_lists(tmp_path / "dev.parquet", lists, {})
    config = {"data": {"dev": [{"path": str(tmp_path / "dev.parquet"), "corpus": str(corpus)}]}}
    [of_set] = view_of(compare([run_over(tmp_path / "run", corpus, config=config)]))["sets"]
    named = {of_set["passages"][p]: s for p, s in zip(of_set["scores"][0][::2], of_set["scores"][0][1::2], strict=True)}
    assert named == {"a": 2.5, "b": 3.0, "m": 1.0} and of_set["scores"][1:] == [[]] * 3


def test_words_of_many_passages_are_in_a_file_beside_the_page(tmp_path):
    comparison = compare([run_over(tmp_path / "run", data_set(tmp_path / "corpus", SCRIPT))])
    view = query_view(comparison, limit=1000)
    data = json.loads(view.data)
    assert "words" not in data and data["texts"] == TEXTS and "title" not in view.data
    value = json.loads(re.fullmatch(r"globalThis\.comparisonTexts = (.*);\n", view.texts)[1])
    assert value["key"] == data["key"] and SCRIPT in value["words"][0][0][0].replace(" &amp;", "\u2028&amp;")
    assert not set("<>&\u2028") & set(view.texts)


def test_the_policy_lets_scripts_be_loaded_only_where_there_is_a_file(tmp_path, monkeypatch):
    run, out = run_over(tmp_path / "run", data_set(tmp_path / "corpus")), tmp_path / "report"
    written = write_report(compare([run]), out)
    page = (out / "comparison.html").read_text()
    assert "strict-dynamic" not in page and not (out / TEXTS).exists() and out / TEXTS not in written
    monkeypatch.setattr("experiments.comparison.report.query_view", lambda c: query_view(c, limit=1000))
    assert out / TEXTS in write_report(compare([run]), out)
    page = (out / "comparison.html").read_text()
    assert re.search(r"script-src 'sha256-[^']+' 'strict-dynamic'\"", page) and (out / TEXTS).is_file()
    monkeypatch.undo()
    write_report(compare([run]), out)
    assert not (out / TEXTS).exists(), "that of another comparison does not stay"


def test_hostile_ids_titles_and_queries_stay_data(tmp_path):
    hostile = "<img/src=x/onerror=alert(3)></script>"
    corpus = data_set(tmp_path / "corpus", SCRIPT, hostile)
    texts = {"d": {query: {"query": f"{SCRIPT} {query}", "relevant": [SCRIPT]} for query in QUERIES}}
    overlap = {"d": {"q1": SCRIPT}}
    run = run_over(tmp_path / "run", corpus, SCRIPT, prefix=hostile, texts=texts, overlap=overlap)
    [page, *_] = write_report(compare([run]), tmp_path / "report")
    parsed = Scripts(page.read_text())
    assert "img" in parsed.tags and parsed.tags.count("script") == 2
    [(attributes, data), (own, script)] = parsed.scripts
    assert attributes == {"type": "application/json", "id": "view-data"} and own == {}
    assert not set("<>&\u2028") & set(data)
    [of_set] = json.loads(data)["sets"]
    assert f"{hostile}a" in of_set["passages"] and of_set["queries"][1] == ["q1", f"{SCRIPT} q1", SCRIPT]
    assert of_set["arms"][0]["name"] == SCRIPT
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page.read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|srcdoc", script)


def test_json_holds_nothing_that_html_or_javascript_reads():
    value = {"a": f"{SCRIPT}\u2029\0\r\n", "b": ["]]>", "<!--"]}
    text = to_script_json(value)
    assert json.loads(text) == value and not set("<>&\u2028\u2029\0\r\n") & set(text)
    with pytest.raises(ValueError, match="JSON"):
        to_script_json(float("nan"))


def test_ids_with_spaces_are_read(tmp_path):
    corpus = data_set(tmp_path / "corpus", prefix="my note ")
    [of_set] = view_of(compare([run_over(tmp_path / "run", corpus, prefix="my note ")]))["sets"]
    assert "my note a" in of_set["passages"] and of_set["relevant"] == [2, 1, 1, 1]


def test_rankings_of_other_tools_are_shown_and_figures_are_not(tmp_path):
    corpus = data_set(tmp_path / "corpus")
    for name, passages in (("one", RANKED[0]), ("two", RANKED[8])):
        rows = [f"{q} Q0 {p} {r} {-r} x\n" for q in QUERIES for r, p in enumerate(passages, 1)]
        (tmp_path / f"{name}.trec").write_text("".join(rows))
    files = [tmp_path / "one.trec", tmp_path / "two.trec"]
    comparison = compare(files, qrels=corpus / "qrels" / "test.tsv")
    found = view_of(comparison)
    [of_set] = found["sets"]
    [arm] = of_set["arms"]
    assert (arm["name"], arm["base"], arm["seed"]) == ("two", "one", None) and of_set["relevant"] == [2, 1, 1, 1]
    after = of_set["rankings"][arm["sides"][1]][0]
    assert "".join(of_set["passages"][p] for p in after[0]) == "bacdefghij" and after[1][1] == 12
    assert (
        found["words"][0][of_set["passages"].index("a")][0] == "title a text"
        and "Single queries" in write_report(comparison, tmp_path)[0].read_text()
    )
    for name in ("f", "g"):
        (tmp_path / f"{name}.json").write_text(json.dumps(dict.fromkeys(QUERIES, 0.5)))
    assert query_view(compare([tmp_path / "f.json", tmp_path / "g.json"])) is None


@pytest.mark.skipif(CHROMIUM is None, reason="no browser on this machine")
def test_a_browser_has_the_rows_in_view_alone_and_runs_nothing_of_others(tmp_path, monkeypatch):
    hostile = "<img/src=x/onerror=alert(3)></script>"
    corpus, queries = data_set(tmp_path / "corpus", SCRIPT, hostile), [f"q{number}" for number in range(2000)]
    texts = {"d": {query: {"query": f"{SCRIPT} {query}", "relevant": []} for query in queries}}
    config = {"evaluation": {"datasets": [{"path": str(corpus), "name": "d"}]}}
    best, base = {"d": np.linspace(0, 1, 2000)}, {"d": np.full(2000, 0.5)}
    write_run(tmp_path / "run", SCRIPT, 1, best, base=base, config=config, texts=texts)
    for step in RANKED:
        ranking(tmp_path / "run", step, prefix=hostile, queries=queries)
    monkeypatch.setattr("experiments.comparison.report.query_view", lambda c: query_view(c, limit=1000))
    [page, *_] = write_report(compare([tmp_path / "run"]), tmp_path / "report")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}"]
    options += ["--window-size=1280,1000", "--virtual-time-budget=5000", "--dump-dom", page.as_uri()]
    done = subprocess.run([CHROMIUM, *options], capture_output=True, text=True, timeout=200)
    view = done.stdout.partition('<div id="view">')[2].partition("<script")[0]
    assert 5 < view.count('role="option"') < 40 and 'aria-setsize="2000"' in view
    assert "2000 of 2000 queries: 1000 better than base, 0 equal, 1000 worse." in view
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in view and "title a &lt;/script&gt;" in view, (
        "words of the file beside"
    )
    assert view.count('class="ranks"') == 1 and view.count("<path") == 10, "each of the ten has a line"
    assert not {"img", "script"} & set(Scripts(view).tags)
