"""Conversations, and what an engine answers to them."""

from __future__ import annotations

SAMPLING = {"temperature": 0.8, "max_tokens": 12}
QUESTIONS = ["Does p53 shrink tumours?", "Is it so that statins prevent strokes in the elderly?", "Why?", "Tides"] * 3
CONVERSATIONS = [
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"{number} {question}"}]
    for number, question in enumerate(QUESTIONS)
]


def answers(engine, conversations=CONVERSATIONS, seeds=None):
    done = []
    found = engine.answer(conversations, seeds or list(range(len(conversations))), done.append)
    assert sum(done) == len(conversations) == len(found)
    return [(a.text, a.finished) for a in found]
