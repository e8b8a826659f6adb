"""Queries that say nothing of their passage: each with its reason, and counted by stage queries."""

import tempfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from datamodules.corpus import Corpus
from datamodules.pipeline.query_choice import QueryChoice
from datamodules.pipeline.query_quality import reason_against
from datamodules.pipeline.stages.queries import CollectQueries
from datamodules.pipeline.stages.stage import run_stage
from retriever.errors import InputError

GOOD = (
    "The boundary layer separates behind the shock.",
    "Die Grenzschicht löst sich hinter dem Stoß ab.",
    "境界層は衝撃波の後方で剥離する。",
    "Пограничный слой отрывается за скачком.",
    "Wind tunnels of 1958",
    "heat transfer",
    "Smith et al. showed in 1958 that lift grows.",
)
BAD = {
    "Introduction": "too short",
    "": "too short",
    "12.5 13.7 14.9 | 0.3 0.4 x y": "few letters",
    "y = 3 x + 4 z - 5": "few letters",
    "See https://example.org/tables for all of them": "a reference",
    "Smith, J. et al. Supersonic flow over cones, 1957": "a reference",
    "[12] Prandtl, L. Tragflügeltheorie, Göttingen 1918": "a reference",
    "Journal of the Aeronautical Sciences, pp. 211 to 229": "a reference",
    "Write to the authors at someone@example.org": "a reference",
}


@pytest.fixture
def good_queries(tmp_path):
    def chosen(texts, passage=lambda n: f"p{n}"):
        table = pa.table({"query_id": [f"q{n}" for n in range(len(texts))], "query": list(texts)})
        choice = QueryChoice(
            [table.append_column("positive_ids", pa.array([[passage(n)] for n in range(len(texts))]))],
            Path(tempfile.mkdtemp(dir=tmp_path)),
            quality=True,
            limit=None,
        )
        return [text for kept in choice.tables() for text in kept["query"].to_pylist()], choice.left_out

    return chosen


def test_good_queries_stay_in_their_order(good_queries):
    assert good_queries(GOOD) == (list(GOOD), {})


@pytest.mark.parametrize(("text", "reason"), BAD.items())
def test_each_other_has_a_reason(text, reason):
    assert reason_against(text) == reason


def test_what_is_bad_is_left_out_and_counted(good_queries):
    assert good_queries([*BAD, GOOD[0]]) == ([GOOD[0]], Counter(BAD.values()))


def test_what_stands_in_three_passages_is_left_out_of_all(good_queries):
    notes = ["All rights reserved.", "all rights RESERVED", "All rights reserved"]
    assert good_queries([*notes, GOOD[0]]) == ([GOOD[0]], {"in several passages": 3})
    assert len(good_queries(notes[:2])[0]) == 2
    assert len(good_queries(notes, lambda _: "one")[0]) == 3, "of one passage"


def corpus():
    titles = ["Introduction", "Flow over cones", "Heat of plates", "Results 1 2 3 4 5 6 7"]
    return Corpus("small", pa.array(list("abcd")), pa.array(titles), pa.array(["x"] * 4))


def stage(**options):
    return CollectQueries(corpus(), "small", "data", {"title": {"source": "titles", **options}}, None)


def test_the_stage_says_what_it_left_out(tmp_path):
    output = run_stage(stage(quality=True), tmp_path)
    assert output.manifest["counts"] == {
        "queries": 2,
        "title": 2,
        "title left out, few letters": 1,
        "title left out, too short": 1,
    }
    assert output.table("queries.parquet")["query"].to_pylist() == ["Flow over cones", "Heat of plates"]
    assert run_stage(stage(), tmp_path).manifest["counts"] == {"queries": 4, "title": 4}
    assert run_stage(stage(quality=True, limit=1), tmp_path).manifest["counts"]["title"] == 1
    assert stage(quality=False).key() == stage().key() != stage(quality=True).key()


def test_other_sources_have_no_such_filter():
    with pytest.raises(InputError, match=r"queries\.mine\.quality is for queries that are cut from passages"):
        CollectQueries(corpus(), "small", "data", {"mine": {"source": "judged", "quality": True}}, None)


def test_where_it_leaves_no_query_the_counts_are_said(tmp_path):
    short = Corpus("small", pa.array(["a"]), pa.array(["Introduction"]), pa.array(["x"]))
    stage = CollectQueries(short, "small", "data", {"title": {"source": "titles", "quality": True}}, None)
    with pytest.raises(InputError, match=r"queries\.title\.quality leaves none of 1 queries on 'small': 1 too short"):
        run_stage(stage, tmp_path)
