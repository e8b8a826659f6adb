"""Query types as files, and the cleaning of what a model answers."""

import pytest

from datamodules.pipeline.query_cleaning import clean_query, copied_run
from datamodules.pipeline.query_types import SHIPPED_TYPES, load_query_types
from retriever.errors import InputError

PASSAGE = (
    "Restoring the tumour suppressor p53 in established mouse lymphomas caused rapid regression through cell death, "
    "while loss of the protein let cultured cells divide in spite of damaged DNA."
)
QUESTION, KEYWORDS = load_query_types(["question", "keywords"])


def test_the_six_types_of_the_paper_are_shipped():
    types = load_query_types(["question", "claim", "title", "keywords", "web", "zero_shot"])
    assert [t.shots for t in types] == [3, 3, 3, 3, 3, 0]
    assert all(len(t.examples) in (12, 13) for t in types[:5]) and types[5].examples == ()
    assert all(t.max_words == 20 for t in types) and types[3].max_phrases == 5
    for kind in types[:5]:
        for passage, query in kind.examples:
            # an example that its own rules reject would teach the wrong thing
            assert clean_query(query, True, passage, kind, [], "en") == (query, None)


def test_a_conversation_shows_the_examples_as_turns():
    draw = QUESTION.draw("seed")
    messages = QUESTION.conversation("Be brief.", PASSAGE, draw)
    assert [m["role"] for m in messages] == ["system", *["user", "assistant"] * 3, "user"]
    assert messages[2]["content"] == draw[0][1] and PASSAGE in messages[-1]["content"]
    assert messages[-1]["content"].endswith(QUESTION.instruction)
    assert draw == QUESTION.draw("seed") and any(draw != QUESTION.draw(str(s)) for s in range(5))


def test_a_users_folder_adds_types_and_replaces_shipped_ones(tmp_path):
    (tmp_path / "passages.yaml").write_text("own: A passage of my own domain.\n")
    (tmp_path / "jargon.yaml").write_text(
        "instruction: Write jargon.\nexamples:\n  - {passage: own, query: my domain}\n"
        "  - {passage: tides, query: the tides}\n  - {passage: A text in full., query: a text}\nshots: 2\n"
    )
    (tmp_path / "title.yaml").write_text("instruction: My title.\n")
    jargon, title = load_query_types(["jargon", "title"], [tmp_path])
    assert jargon.shots == 2 and jargon.examples[0] == ("A passage of my own domain.", "my domain")
    assert jargon.examples[1][0].startswith("The gravity of the Moon")  # the shipped passages stay
    assert title.instruction == "My title." and title.shots == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("examples: []\n", "no instruction"),
        ("instruction: Go.\nexample: []\n", "'example'; valid values are.*Did you mean 'examples'"),
        ("instruction: Go.\nexamples: [{passage: tide, query: q}]\n", "no passage 'tide'"),
        ("instruction: Go.\nexamples: [{passage: tides}]\n", "example 1 is"),
        ("instruction: Go.\nshots: 1\n", "shots is 1; expected a number from 0 to 0"),
        ("instruction: Go.\nmax_words: 0\n", "max_words is 0"),
        ("- a list\n", "expected keys and values"),
        ("instruction: [unclosed\n", "not YAML"),
    ],
)
def test_a_bad_type_file_is_named(tmp_path, content, words):
    (tmp_path / "own.yaml").write_text(content)
    with pytest.raises(InputError, match=words):
        load_query_types(["own"], [tmp_path])


def test_an_unknown_type_and_a_missing_folder_are_named(tmp_path):
    with pytest.raises(InputError, match=r"'quesion'.*Did you mean 'question'"):
        load_query_types(["quesion"])
    with pytest.raises(InputError, match="no such folder"):
        load_query_types(["question"], [tmp_path / "none"])


@pytest.mark.parametrize(
    ("raw", "query"),
    [
        ('"Does p53 shrink lymphomas?"', "Does p53 shrink lymphomas?"),
        ("Question: Does p53 shrink lymphomas?", "Does p53 shrink lymphomas?"),
        ("**Question:** Does p53 shrink lymphomas?", "Does p53 shrink lymphomas?"),
        ("1. Does p53 shrink lymphomas?\n2. Is it so?", "Does p53 shrink lymphomas?"),
        ("Here is a question:\n\nDoes p53   shrink lymphomas?", "Does p53 shrink lymphomas?"),
        ("<think>What now?</think>\nDoes p53 shrink lymphomas?", "Does p53 shrink lymphomas?"),
        ("“Does p53 shrink lymphomas?”\n", "Does p53 shrink lymphomas?"),
    ],
)
def test_what_stands_around_a_query_is_taken_off(raw, query):
    assert clean_query(raw, True, PASSAGE, QUESTION, [], "en") == (query, None)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("", "empty"),
        ("...", "empty"),
        ("<think>never ends", "empty"),
        ("Sure, I can write a question about p53", "speaks of itself"),
        ("I cannot write a question about p53", "speaks of itself"),
        ("Is it " + "really " * 19 + "so?", "too long"),
        ("p53", "too short"),
        ("p53 and p53 and p53 and p53 and p53", "repeats itself"),
        ("established mouse lymphomas caused rapid regression through cell death", "copied from the passage"),
        ("Why do most coasts have 2 high tides a day?", "copied from an example"),
        ("What does this text say of p53 in lymphomas?", "leans on the text"),
        ("According to the given passage, what did p53 do?", "leans on the text"),
        ("Was bewirkt die Wiederherstellung von p53 bei Lymphomen der Maus?", "wrong language"),
        ("восстановление белка", "wrong language"),
    ],
)
def test_what_is_no_query_is_rejected_with_its_reason(raw, reason):
    assert clean_query(raw, True, PASSAGE, QUESTION, QUESTION.examples, "en")[1] == reason


def test_an_answer_that_was_cut_is_rejected_unless_the_cut_is_behind_its_first_line():
    assert clean_query("Does p53 shrink", False, PASSAGE, QUESTION, [], "en")[1] == "cut off"
    assert clean_query("Does p53 shrink tumours?\nIt does, for", False, PASSAGE, QUESTION, [], "en")[1] is None


def test_the_language_is_checked_where_one_is_asked_for():
    german = "Was bewirkt die Wiederherstellung von p53 bei Lymphomen der Maus?"
    assert clean_query(german, True, PASSAGE, QUESTION, [], None)[1] is None
    assert clean_query(german, True, PASSAGE, QUESTION, [], "de")[1] is None
    assert clean_query("восстановление белка", True, PASSAGE, QUESTION, [], None)[1] == "wrong language"
    assert clean_query("восстановление белка", True, "Потеря белка p53 в клетках", QUESTION, [], None)[1] is None


def test_phrases_are_cut_to_five_distinct_whole_ones():
    raw = "p53, lymphoma, p53, apoptosis, mouse, DNA damage, regression, cell"
    assert clean_query(raw, False, PASSAGE, KEYWORDS, [], "en") == ("p53, lymphoma, apoptosis, mouse, DNA damage", None)
    assert clean_query("p53, lymphoma, apop", False, PASSAGE, KEYWORDS, [], "en") == ("p53, lymphoma", None)


def test_a_script_without_spaces_is_counted_by_its_characters():
    passage = "地中海の食事は心臓病の危険を減らすことが、大規模な試験で示された。"
    assert clean_query("地中海食は心臓病を減らすか", True, passage, QUESTION, [], "ja") == (
        "地中海食は心臓病を減らすか",
        None,
    )
    assert clean_query("心" * 3 + "臓" * 60, True, passage, QUESTION, [], None)[1] == "too long"
    copied = "大規模な試験で示された"
    assert clean_query(copied, True, passage, QUESTION, [], None)[1] == "copied from the passage"


@pytest.mark.parametrize(
    ("words", "run"), [("a b c", 3), ("x a b y", 2), ("c b a", 1), ("z", 0), ("", 0), ("b c a b c", 3), ("c d c d", 4)]
)
def test_copied_run_is_the_longest_common_run(words, run):
    assert copied_run(words.split(), ["a", "b", "c", "d", "c", "d"]) == run


def test_every_shipped_file_loads():
    names = [p.stem for p in SHIPPED_TYPES.glob("*.yaml") if p.stem != "passages"]
    assert len(load_query_types(names)) == len(names) == 6
