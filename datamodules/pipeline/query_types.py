"""Query types that an LLM writes: instruction and examples, each type a file that a user can edit or add to."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from datamodules.storage.yaml_files import read_yaml
from retriever.errors import InputError, choose, shown

SHIPPED_TYPES = Path(__file__).parent / "prompts"
_KEYS = ("instruction", "labels", "shots", "max_phrases", "max_words", "max_copied_words", "examples")
_PASSAGES = "passages.yaml"


@dataclass(frozen=True)
class QueryType:
    """One type of synthetic query.

    Attributes:
        name: the file's name; ``query_type`` in the lists.
        instruction: what follows every passage in the prompt.
        labels: words that a model may put in front of its answer, as in "Question: …"; taken off.
        shots: examples in a prompt, drawn from the pool.
        examples: (passage, query) pairs, the pool.
        max_phrases: for lists of phrases: how many, separated by commas; None for a sentence.
        max_words: longer queries are rejected (the paper: under 20 words).
        max_copied_words: queries that repeat a longer run of words from the passage are rejected.
    """

    name: str
    instruction: str
    labels: tuple[str, ...]
    shots: int
    examples: tuple[tuple[str, str], ...]
    max_phrases: int | None = None
    max_words: int = 20
    max_copied_words: int = 7

    def conversation(self, system: str | None, passage: str, examples: Sequence[tuple[str, str]]) -> list[dict]:
        """Chat messages: each example is a turn of its own, so that the model answers as it did before."""
        messages = [{"role": "system", "content": system}] if system else []
        for text, query in examples:
            messages += [self._ask(text), {"role": "assistant", "content": query}]
        return [*messages, self._ask(passage)]

    def in_the_texts_language(self) -> "QueryType":
        """Give the same type, whose instruction also asks for the language of the text."""
        return replace(self, instruction=f"{self.instruction} Write in the language of the text.")

    def draw(self, seed: str) -> list[tuple[str, str]]:
        """``shots`` examples of the pool, by a seed."""
        return random.Random(seed).sample(self.examples, self.shots)

    def _ask(self, passage: str) -> dict[str, str]:
        return {"role": "user", "content": f"Text: {passage}\n\n{self.instruction}"}


def load_query_types(names: Sequence[str], folders: Sequence[str | Path] = ()) -> list[QueryType]:
    """Read query types by name.

    Args:
        names: of the files, without ``.yaml``.
        folders: the user's, looked through before the shipped ones; each may hold a ``passages.yaml`` of its own,
            from which examples take their passages by key.

    Raises:
        InputError: no such type, or a file that is not as it should be.
    """
    places = [*map(Path, folders), SHIPPED_TYPES]
    for place in places:
        if not place.is_dir():
            raise InputError(f"generate.type_folders: {place}: no such folder.")
    known = {p.stem: p for place in reversed(places) for p in sorted(place.glob("*.yaml")) if p.name != _PASSAGES}
    passages: dict[str, str] = {}
    for place in reversed(places):
        if (place / _PASSAGES).is_file():
            passages |= _passages(place / _PASSAGES)
    return [_query_type(known[choose("generate.types", name, sorted(known))], passages) for name in names]


def _passages(path: Path) -> dict[str, str]:
    passages = read_yaml(path, "Write it as key: text.")
    for key, text in passages.items():
        if not isinstance(text, str):
            raise InputError(f"{path}: {shown(key)} is {shown(text)}; expected a text.")
    return passages


def _query_type(path: Path, passages: dict[str, str]) -> QueryType:
    content = read_yaml(path, f"Write it as {SHIPPED_TYPES / 'question.yaml'} is written.")
    for key in content:
        choose(f"{path}: the key", key, _KEYS)
    instruction = content.get("instruction")
    if not isinstance(instruction, str) or not instruction.strip():
        raise InputError(f"{path}: no instruction, but {shown(instruction)}. Say there what the model is to write.")
    for key in ("labels", "examples"):
        if not isinstance(content.get(key) or [], list):
            raise InputError(f"{path}: {key} is {shown(content[key])}; expected a list.")
    if not _are_texts(content.get("labels") or []):
        raise InputError(f"{path}: labels are {shown(content['labels'])}; expected texts (in quotes, if need be).")
    examples = []
    for number, example in enumerate(content.get("examples") or [], 1):
        if not isinstance(example, dict) or set(example) != {"passage", "query"} or not _are_texts(example.values()):
            raise InputError(
                f"{path}: example {number} is {str(example)[:60]!r}; expected {{passage: …, query: …}}, the passage "
                f"as a text or as a key of {_PASSAGES}."
            )
        passage: str = example["passage"]
        if passage not in passages and len(passage.split()) == 1:
            raise InputError(f"{path}: example {number}: {_PASSAGES} has no passage {passage!r}.")
        examples.append((passages.get(passage, passage).strip(), example["query"].strip()))
    shots = content.get("shots", min(3, len(examples)))
    if not isinstance(shots, int) or isinstance(shots, bool) or not 0 <= shots <= len(examples):
        raise InputError(f"{path}: shots is {shots!r}; expected a number from 0 to {len(examples)}, the examples here.")
    limits = {k: content[k] for k in ("max_phrases", "max_words", "max_copied_words") if content.get(k) is not None}
    for key, value in limits.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"{path}: {key} is {value!r}; expected a whole number of at least 1.")
    return QueryType(
        name=path.stem,
        instruction=instruction.strip(),
        labels=tuple(content.get("labels") or ()),
        shots=shots,
        examples=tuple(examples),
        **limits,
    )


def _are_texts(values: Iterable[object]) -> bool:
    return all(isinstance(value, str) and value.strip() for value in values)
