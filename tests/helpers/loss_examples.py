"""What the tests of the losses share: batches in words, and the tensors that an objective gets of them."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

import torch

from retriever.batch import EncodedBatch

STUDENT, TEACHER = 0.05, 0.3
GARBAGE = [0.0, 1e30, -1e30]  # stands where lists are masked
KINDS = ["cosines", "close", "ends", "large", "ties"]


@dataclass(frozen=True)
class Example:
    """A batch in words: keys of passages, and vectors as lists of numbers.

    Attributes:
        queries: one vector each.
        passages: key → vector; some stand in no list.
        lists: of each query, (key, teacher score) pairs, best first.
        labelled: of each query, the keys of its labelled positives; the first is trained on.
    """

    queries: list[list[float]]
    passages: dict[int, list[float]]
    lists: list[list[tuple[int, float]]]
    labelled: list[list[int]]

    def score(self, query: int, key: int) -> float:
        return math.fsum(a * b for a, b in zip(self.queries[query], self.passages[key], strict=True))


def random_example(seed, vectors="grid", short=True, queries=6, passages=14, length=6):
    """Lists that share many passages, with ties, over vectors whose inner products float32 holds exactly.

    ``vectors``: ``grid`` (inner products in [−1, 1], multiples of 1/256), ``signs`` (cosines −1, 0 and 1), ``large``
    (inner products up to 1,024), ``normal`` (not on a grid).
    """
    rng = random.Random(seed)

    def vector(scale=1):
        if vectors == "signs":
            chosen, sign = rng.randrange(3), rng.choice([-1.0, 1.0])
            return [sign if axis == chosen else 0.0 for axis in range(3)]
        if vectors == "normal":
            return [rng.gauss(0, 0.3) for _ in range(5)]
        return [rng.randint(-8, 8) / 16 * scale for _ in range(4)]

    keys = rng.sample(range(3, 2**40), passages)
    lists, labelled = [], []
    for _ in range(queries):
        # the first two keys stand in no list, at most among the labelled
        chosen = rng.sample(keys[2:], rng.randint(1, length) if short else length)
        # no top score is a multiple of 5/64, so that no other score is exactly 0.6 of it
        top = rng.choice([n for n in range(8, 65) if n % 5])
        scores = sorted([rng.randint(0, top) for _ in chosen], reverse=True)
        lists.append(list(zip(chosen, [n / 64 for n in [top, *scores[1:]]], strict=True)))
        trained_on = rng.choice([*chosen, *keys])
        others = rng.sample([k for k in keys if k != trained_on], rng.randint(0, 3))
        labelled.append([trained_on, *others, *([rng.randrange(2**41)] if rng.random() < 0.5 else [])])
    return Example(
        queries=[vector(1024 if vectors == "large" else 1) for _ in range(queries)],
        passages={key: vector() for key in keys},
        lists=lists,
        labelled=labelled,
    )


def encoded(example, dtype=torch.float32, garbage=0.0, seed=0, labels=True, copies=1):
    """The Example as the tensors that an objective gets; masked entries hold ``garbage`` and arbitrary passages.

    Its guide has the same vectors, backwards.

    With two ``copies`` every passage has two rows with one key, of which each query knows one: so stand the rows of two
    ranks in the pool.
    """
    rng = random.Random(seed)
    keys = list(example.passages) * copies
    rows = [{key: i + copy * len(example.passages) for i, key in enumerate(example.passages)} for copy in range(copies)]
    row_of = [rows[q % copies] for q in range(len(example.queries))]
    length = max(map(len, example.lists))
    most = max(map(len, example.labelled))
    index, mask, teacher = [], [], []
    for row, pairs in zip(row_of, example.lists, strict=True):
        padding = length - len(pairs)
        index.append([row[key] for key, _ in pairs] + [rng.randrange(len(keys)) for _ in range(padding)])
        mask.append([True] * len(pairs) + [False] * padding)
        teacher.append([score for _, score in pairs] + [garbage] * padding)
    all_scores = [dict.fromkeys(keys, 0.0) | dict(pairs) for pairs in example.lists]
    return EncodedBatch(
        guide_queries=torch.tensor([vector[::-1] for vector in example.queries], dtype=dtype),
        guide_passages=torch.tensor([example.passages[key][::-1] for key in keys], dtype=dtype),
        all_scores=torch.tensor([[scores[key] for key in keys] for scores in all_scores], dtype=torch.float32),
        log_weights=torch.zeros(len(keys)),
        queries=torch.tensor(example.queries, dtype=dtype),
        passages=torch.tensor([example.passages[key] for key in keys], dtype=dtype),
        passage_keys=torch.tensor(keys),
        list_index=torch.tensor(index),
        list_mask=torch.tensor(mask),
        teacher_scores=torch.tensor(teacher, dtype=torch.float32),
        positive_index=torch.tensor(
            [row[k[0]] if labels else -1 for row, k in zip(row_of, example.labelled, strict=True)]
        ),
        labelled_keys=torch.tensor([k + [-1] * (most - len(k)) for k in example.labelled]),
    )


def with_guide(batch, guide):
    """The batch with the embeddings of another Example, of the same queries and passages, as its guide."""
    passages = [guide.passages[key] for key in batch.passage_keys.tolist()]
    return replace(batch, guide_queries=torch.tensor(guide.queries), guide_passages=torch.tensor(passages))


def random_guide(example, seed):
    """Another encoder's vectors of an Example's queries and passages, three numbers each, with ties."""
    rng = random.Random(seed)
    queries, *passages = (
        [[rng.randint(-4, 4) / 8 for _ in range(3)] for _ in range(n)]
        for n in (len(example.queries), len(example.passages))
    )
    return replace(example, queries=queries, passages=dict(zip(example.passages, *passages, strict=True)))


def module(objective, **arguments):
    """The objective over an encoder that it never calls."""
    return objective(torch.nn.Linear(2, 2), **arguments)


def loss_of(objective, batch, **arguments):
    return module(objective, **arguments).objective(batch)["loss"]


def assert_close(value, expected, tolerance=1e-6):
    """Each within ``tolerance``, absolute or relative."""
    values = value.tolist() if isinstance(value, torch.Tensor) else value
    values, wanted = (v if isinstance(v, list) else [v] for v in (values, expected))
    assert len(values) == len(wanted)
    for got, want in zip(values, wanted, strict=True):
        assert abs(got - want) <= tolerance * max(1.0, abs(want)), (values, wanted)


def score_table(kind, seed, rows=5, columns=12):
    """float32 scores of one kind."""
    rng = random.Random(seed)
    draw = {
        "cosines": lambda: rng.uniform(-1, 1),
        "close": lambda: 0.8 + rng.uniform(-0.01, 0.01),
        "ends": lambda: rng.choice([-1.0, 1.0]),
        "large": lambda: rng.uniform(-1e3, 1e3),
        "ties": lambda: rng.choice([0.25, 0.26]),
    }[kind]
    return torch.tensor([[draw() for _ in range(columns)] for _ in range(rows)], dtype=torch.float32)
