"""Queries that are cut from passages."""

import pyarrow as pa
import pytest

from datamodules.corpus import Corpus
from datamodules.pipeline.free_queries import collect_queries, sentences


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
