"""Teachers that ask a chat model, against a server on this machine."""

import json
import math
import random

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from helpers.chat_server import chat, common_words, grade, grader, ranker, serving, token
from retriever.errors import InputError
from retriever.teachers.chat import ChatTeacher
from retriever.teachers.judge import Judge, named_grade
from retriever.teachers.listwise_llm import ListwiseLlm, named_places

WORDS = [f"w{n}" for n in range(12)]


def texts(number, seed):
    """Texts of a few words out of twelve."""
    drawn = random.Random(seed)
    return [" ".join(drawn.sample(WORDS, drawn.randint(1, 8))) + f" t{n}" for n in range(number)]


def preset(name, url, *overrides) -> ChatTeacher:
    with initialize_config_module("experiments.conf", version_base="1.3"):
        settings = ["teacher.model=tiny", f"teacher.base_url={url}/v1", "teacher.retries=0", *overrides]
        return instantiate(compose(overrides=[f"+teacher={name}", *settings]).teacher)


def slid(query, passages, window, step):
    """RankGPT's order by a model that sorts by common words, computed one window at a time."""
    order = list(range(len(passages)))
    start = len(order) - window
    while True:
        start = max(start, 0)
        part = order[start : start + window]
        order[start : start + window] = sorted(part, key=lambda n: -common_words(query, passages[n]))
        if start == 0:
            return order
        start -= step


@pytest.mark.parametrize(
    ("number", "window", "step"), [(50, 20, 10), (45, 20, 10), (15, 20, 10), (7, 3, 2), (20, 4, 3)]
)
def test_a_window_slides_from_the_last_passages_to_the_first(number, window, step):
    queries = ["w1 w2 w3", "w4 w5 w6 w7"]
    passages = {query: texts(number, n) for n, query in enumerate(queries)}
    asked = []

    def answer(path, request):
        asked.append((path, request))
        return 200, ranker(request)

    with serving(answer) as url:
        teacher = preset("listwise_llm", url, f"teacher.window={window}", f"teacher.step={step}")
        pairs = [(query, passages[query][n]) for n in range(number) for query in queries]  # in turn
        scores = teacher.score([q for q, _ in pairs], [p for _, p in pairs])
    for place, query in enumerate(queries):
        expected = np.zeros(number)
        expected[slid(query, passages[query], window, step)] = 1 / np.arange(1, number + 1)
        np.testing.assert_array_equal(scores[place::2], expected)
        best = max(common_words(query, p) for p in passages[query])
        assert common_words(query, passages[query][int(np.argmax(scores[place::2]))]) == best
    turns = 1 + max(0, math.ceil((number - window) / step))
    assert len(asked) == 2 * turns and {path for path, _ in asked} == {"/v1/chat/completions"}
    request = asked[0][1]
    assert (request["model"], request["temperature"], request["max_tokens"]) == ("tiny", 0.0, 200)


@pytest.mark.parametrize(
    ("answer", "places"),
    [
        ("[3] > [1] > [2] > [4]", [2, 0, 1, 3]),
        ("[4] > [2]", [3, 1, 0, 2]),
        ("[2] > [2] > [9] > [0] > [1]", [1, 0, 2, 3]),
        ("The 4 passages: [3] > [1]", [2, 0, 1, 3]),
        ("3, 1", [2, 0, 1, 3]),
        ("I do not know.", [0, 1, 2, 3]),
        ("", [0, 1, 2, 3]),
    ],
)
def test_what_an_answer_lacks_keeps_its_order_behind(answer, places):
    assert named_places(answer, 4) == places


def test_thoughts_and_answers_without_an_order(caplog):
    thought = "<think>[1] looks best, or 2</think>\n[3] > [2]"
    with serving(lambda _, r: (200, chat(thought if "w1" in r["messages"][0]["content"] else "Sorry."))) as url:
        teacher = preset("listwise_llm", url)
        scores = teacher.score_pairs(["w1"] * 3 + ["w2"] * 2 + ["w3"], ["a", "b", "c", "a", "b", "c"]).scores
        assert len(teacher.score([], [])) == 0
    np.testing.assert_allclose(scores, [1 / 3, 1 / 2, 1, 1, 1 / 2, 1])
    assert "1 of 2 answers name no passage" in caplog.text  # one passage alone is not asked about


def test_braces_in_texts_are_texts_and_long_passages_are_cut():
    asked = []

    def answer(_, request):
        asked.append(request["messages"][0]["content"])
        return 200, chat("[2] > [1]")

    with serving(answer) as url:
        teacher = preset("listwise_llm", url, "teacher.max_characters=9")
        assert teacher.score(["Is {passages} {query}?"] * 2, ["{query}\n is a long text", "b"]).tolist() == [0.5, 1]
    assert "search query: Is {passages} {query}?\n" in asked[0] and "\n[1] {query} i\n[2] b\n" in asked[0]


@pytest.mark.slow
def test_a_judge_grades_each_pair():
    with serving(lambda _, request: (200, grader(request))) as url:
        teacher = preset("judge", url)
        queries, passages = ["w1 w2 w3"] * 40, texts(40, 3)
        scores = teacher.score_pairs(queries, passages).scores
    assert scores.tolist() == [grade(q, p) for q, p in zip(queries, passages, strict=True)]
    assert len(set(scores.tolist())) == 4


def test_probabilities_of_the_grades_make_the_score():
    likely = [token("Grade"), token(": "), token("2", **{"g2": 0.5, " 3": 0.25, "g1": 0.125, "two": 0.1, "g7": 0.02})]
    asked = []

    def answer(_, request):
        asked.append(request)
        return 200, chat("Grade: 2", likely if request.get("logprobs") else None)

    with serving(answer) as url:
        expected = (2 * 0.5 + 3 * 0.25 + 1 * 0.125) / 0.875
        assert preset("judge", url).score(["q"], ["p"]) == pytest.approx(expected)
        assert preset("judge", url, "teacher.logprobs=false").score(["q"], ["p"]) == 2
    assert asked[0]["top_logprobs"] == 20 and "top_logprobs" not in asked[1]


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("2", 2),
        (" 3\n", 3),
        ("Grade: 0.", 0),
        ("**1**", 1),
        ("3/3", 3),
        ("It is 15 of 2", 2),
        ("a 30% chance", None),
        ("1.5", None),
        ("-1", None),
        ("7", None),
        ("none", None),
        ("", None),
    ],
)
def test_grades_are_read_from_words(text, grade):
    assert named_grade(text) == grade


def test_a_judge_that_gives_no_grade_is_asked_again_and_then_refused_or_lowest():
    asked = []

    def answer(_, request):
        asked.append(request["messages"])
        last, passage = request["messages"][-1]["content"], request["messages"][0]["content"]
        if "never" in passage or ("later" in passage and "and nothing else" not in last):
            return 200, chat("Well, it depends.")
        return 200, chat("3")

    with serving(answer) as url:
        lowest = preset("judge", url, "teacher.without_grade=lowest")
        assert lowest.score(["q"] * 3, ["at once", "later", "never"]).tolist() == [3, 3, 0]
        assert len(asked) == 5  # two of them twice
        assert [message["role"] for message in asked[-1]] == ["user", "assistant", "user"]
        with pytest.raises(InputError, match=r"tiny answered 'Well, it depends\.', without a grade.*in 2 attempts"):
            preset("judge", url).score(["q"], ["never"])


def test_servers_that_refuse_or_answer_otherwise_are_named():
    with serving(lambda path, _: (404, {"error": "no such model"}) if "none" in path else (200, {"a": 1})) as url:
        with pytest.raises(InputError, match=r"expected a chat completion\. .* does it serve 'tiny'"):
            preset("judge", url).score(["q"], ["p"])
        with pytest.raises(InputError, match=r"answered with status 404.*no such model"):
            preset("listwise_llm", f"{url}/none").score(["q"] * 2, ["p", "r"])


def test_descriptions_hold_what_decides_and_no_address():
    for name, own in {"judge": {"logprobs", "without_grade"}, "listwise_llm": {"window", "step"}}.items():
        teacher = preset(name, "http://host:1")
        known = json.loads(json.dumps(teacher.description()))
        assert known["kind"] == name and known["prompt"] == teacher.prompt and known["model"] == "tiny"
        assert own < set(known) and "host" not in json.dumps(known)
        assert known["sampling"] == {"temperature": 0.0, "max_tokens": 200}


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (ListwiseLlm, {"prompt": "{query}"}, r"must hold \{passages\}"),
        (Judge, {"prompt": "{passage}"}, r"must hold \{query\}"),
        (ListwiseLlm, {"prompt": "{query} {passages}", "window": 1}, "teacher.window is 1"),
        (ListwiseLlm, {"prompt": "{query} {passages}", "window": 5, "step": 6}, r"teacher.step \(6\)"),
        (Judge, {"prompt": "{query} {passage}", "without_grade": "zero"}, "teacher.without_grade is 'zero'"),
        (Judge, {"prompt": "{query} {passage}", "attempts": 0}, "teacher.attempts is 0"),
        (Judge, {"prompt": "{query} {passage}", "max_characters": 0}, "teacher.max_characters is 0"),
        (Judge, {"prompt": "{query} {passage}", "base_url": "host:80"}, "teacher.base_url is 'host:80'"),
    ],
)
def test_refusals(kind, options, message):
    with pytest.raises(InputError, match=message):
        kind("tiny", **{"base_url": "http://host"} | options)
