"""Queries that are cut from passages."""

import pyarrow as pa
import pytest

from datamodules.corpus import Corpus
from datamodules.pipeline.free_queries import collect_queries, keywords, sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The wing lifts the whole craft. It is short. Does the air behind it move fast?", [
            "The wing lifts the whole craft.", "Does the air behind it move fast?"]),
        ("the wing lifts the whole craft .  the flow behind it is slow .", [
            "the wing lifts the whole craft .", "the flow behind it is slow ."]),
        ("空気力学は流体の運動を研究する学問です。翼の周りの流れを計算した。短い。", [
            "空気力学は流体の運動を研究する学問です。", "翼の周りの流れを計算した。"]),
        ("Крыло поднимает весь этот самолёт… Дальше ничего", ["Крыло поднимает весь этот самолёт…"]),
        ("हवा पंख के ऊपर से तेज़ बहती है। छोटा वाक्य।", ["हवा पंख के ऊपर से तेज़ बहती है।"]),
        ("A heading without a stop\nand the line below it goes on here", [
            "A heading without a stop", "and the line below it goes on here"]),
        ("x = 3 + 4 * 17 / 2 - 9 1 2 3 4 5 6.", []),
        ("One sentence stands here twice. One sentence stands here twice.", ["One sentence stands here twice."]),
        (" ".join(["word"] * 31) + ".", []),
        ("", []),
    ],
)  # fmt: skip
def test_a_text_is_cut_at_the_ends_of_its_sentences(text, expected):
    assert sentences(text) == expected


def test_each_sentence_is_a_query_for_its_passage():
    texts = [
        "The wing lifts the whole craft. Does the air behind it move fast?",
        "Short.",
        "A tail keeps a craft level.",
    ]
    corpus = Corpus("air", pa.array(["a", "b", "c"]), pa.array([""] * 3), pa.array(texts))
    assert list(collect_queries("sentences", "air", corpus)) == [
        ("sentence-a-1", "The wing lifts the whole craft.", "sentence", ["a"]),
        ("sentence-a-2", "Does the air behind it move fast?", "sentence", ["a"]),
        ("sentence-c-1", "A tail keeps a craft level.", "sentence", ["c"]),
    ]


def test_keywords_are_the_words_that_tell_a_text_from_the_others():
    texts = [
        "The flow over a wing: the wing, and its flow at 40 degrees of heat, in flow.",
        "The flow of heat through the wing of an aircraft.",
        "The heat of the sun, and an aircraft.",
        "Cars of the sun.",
    ]
    # "the" and "heat" are in more than two of four texts, "degrees" in this one alone
    assert list(keywords(texts)) == [
        ["flow", "wing", "and"],
        ["flow", "wing", "aircraft"],
        ["sun", "and", "aircraft"],
        ["sun"],
    ]
    assert list(keywords(["東京の塔", "Ложка. Ложка и вилка.", "вилка"])) == [[], ["вилка"], ["вилка"]]


def test_a_query_of_keywords_has_three_to_five():
    names = ["lift", "drag", "heat", "flow", "wing", "tail", "nose"]
    texts = [" ".join(names[(n + k) % 7] for k in range(1 + n % 7)) for n in range(56)]
    rare = [*texts, *["cars"] * 200]  # else each of these words is in more than a quarter of the texts
    corpus = Corpus("air", pa.array([str(n) for n in range(256)]), pa.array([""] * 256), pa.array(rare))
    found = list(collect_queries("keywords", "air", corpus))
    assert len(found) == sum(1 + n % 7 >= 3 for n in range(56))
    assert {len(query.split()) for _, query, _, _ in found} == {3, 4, 5}
    assert all(kind == "keywords" and query_id == f"keywords-{ids[0]}" for query_id, _, kind, ids in found)
