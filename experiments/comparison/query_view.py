"""The page's view of single queries: the first passages of the base and of an arm side by side."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from experiments.comparison.changes import compared_arms, differences
from experiments.comparison.files import FileRun
from experiments.comparison.judged import Judged, read_judged
from experiments.comparison.measured import BASE, Measured
from experiments.comparison.rankings import TOP, Ranks, Wanted, ranks_of, read_ranks
from experiments.comparison.runs import Run
from experiments.comparison.tables import Comparison
from retriever.hashing import file_sha256

TEXTS = "comparison-texts.js"
LIMIT = 2_000_000  # bytes of data; above it, the passages' words are in a file beside the page
_CHARACTERS = 240  # of a passage's title, and of its text
_BELOW = 10  # relevant passages of a query that are named though neither has them among its first
_UNSAFE = "<>&\u2028\u2029"


@dataclass(frozen=True)
class QueryView:
    """What the view shows.

    Attributes:
        data: JSON, safe within an element ``script``.
        texts: the content of the file :data:`TEXTS` beside the page; None where ``data`` holds all.
    """

    data: str
    texts: str | None


@dataclass
class _Numbers:
    """Passages by numbers, in the order of their first mention."""

    ids: dict[str, int] = field(default_factory=dict)

    def of(self, passage: str) -> int:
        return self.ids.setdefault(passage, len(self.ids))


@dataclass(frozen=True)
class _Pair:
    """One run of an arm beside one of the base.

    Attributes:
        seed: the run's; None where the arm has no other.
        values: nDCG@10 of these very rankings, the base's first, [2, Q].
        sides: run and point of each, the base's first.
    """

    seed: int | None
    values: np.ndarray
    sides: tuple[tuple[Run, str], tuple[Run, str]]


def query_view(comparison: Comparison, limit: int = LIMIT) -> QueryView | None:
    """The view, as JSON; None where no data set has rankings of the base and of an arm.

    Args:
        comparison: of runs.
        limit: bytes of data above which the words of passages are apart.
    """
    sets = [found for part in comparison.measured.values() if (found := _data_set(comparison, part)) is not None]
    if not sets:
        return None
    words = to_script_json([of_set.pop("words") for of_set in sets])
    data = to_script_json({"sets": sets})
    if len(data.encode()) + len(words.encode()) <= limit or not any(of_set["has_words"] for of_set in sets):
        return QueryView(f'{data[:-1]},"words":{words}}}', None)
    key = hashlib.sha256(words.encode()).hexdigest()[:16]  # so that a file of another comparison is not taken for this
    apart = f'globalThis.comparisonTexts = {{"key": "{key}", "words": {words}}};\n'
    return QueryView(to_script_json({"sets": sets, "texts": TEXTS, "key": key}), apart)


def to_script_json(value: Any) -> str:
    """JSON without characters that HTML or JavaScript could take for anything else."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in _UNSAFE:
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _data_set(comparison: Comparison, part: Measured) -> dict[str, Any] | None:
    """One data set: queries, passages, rankings (each once), and arms that name two of these."""
    known = read_judged(part)
    wanted = {query: [p for p, grade in grades.items() if grade > 0] for query, grades in known.grades.items()}
    rankings: list[Ranks] = []
    read: dict[str, Ranks | None] = {}
    arms = []
    for arm in compared_arms(part, comparison.base):
        pair = _pair(part, arm, comparison.base, comparison.which)
        sides = [side for run, point in pair.sides if (side := _ranks(run, part, point, wanted, read)) is not None]
        if len(sides) < len(pair.sides):
            continue
        rankings += [side for side in sides if side not in rankings]
        change, base = differences(part, arm, comparison.base), part.base_values(arm, comparison.base)
        arms.append(
            {
                "name": arm,
                "base": comparison.base,
                "values": _rounded([base, base + change]),
                "seed": pair.seed,
                "shown": None if pair.seed is None else _rounded(pair.values),
                "sides": [rankings.index(side) for side in sides],
            }
        )
    if not arms:
        return None
    return {"name": part.dataset, "arms": arms, **_contents(part, known, rankings)}


def _contents(part: Measured, known: Judged, rankings: Sequence[Ranks]) -> dict[str, Any]:
    """Queries, rankings and judgements, passages by numbers."""
    numbers = _Numbers()
    named = [_named(query, known, rankings) for query in part.query_ids]
    shown = [
        [_ranking(ranks.get(q, {}), passages, numbers) for q, passages in zip(part.query_ids, named, strict=True)]
        for ranks in rankings
    ]
    grades, scores = [], []
    for query, passages in zip(part.query_ids, named, strict=True):
        judged, taught = known.grades.get(query, {}), known.scores.get(query, {})
        grades.append([n for p in passages if p in judged for n in (numbers.of(p), judged[p])])
        scores.append([n for p in passages if p in taught for n in (numbers.of(p), round(float(taught[p]), 4))])
    words = known.words(list(numbers.ids), _CHARACTERS)
    return {
        "level": known.level,
        "missing": known.missing,
        "queries": [
            [query, part.texts.get(query, {}).get("query", ""), (part.overlap or {}).get(query, "")]
            for query in part.query_ids
        ],
        "relevant": [sum(grade >= known.level for grade in known.grades.get(q, {}).values()) for q in part.query_ids],
        "rankings": shown,
        "grades": grades,
        "scores": scores if any(scores) else [],
        "passages": list(numbers.ids),
        "has_words": any(words),
        "words": words,
    }


def _ranks(run: Run, part: Measured, point: str, wanted: Wanted, read: dict[str, Ranks | None]) -> Ranks | None:
    """A run's ranking at a point; None where there is none. Runs share a base model: equal files are read once."""
    if isinstance(run, FileRun):
        return ranks_of(run.hits, wanted) if run.hits else None
    path = run.ranking(part.dataset, point)
    if not path.is_file():
        return None
    digest = file_sha256(path)
    if digest not in read:
        read[digest] = read_ranks(path, wanted)
    return read[digest]


def _named(query: str, known: Judged, rankings: Sequence[Ranks]) -> list[str]:
    """Passages that are shown of a query: the first ones of each ranking, and some relevant ones below."""
    ranks = [ranking.get(query, {}) for ranking in rankings]
    first = dict.fromkeys(p for of_query in ranks for p, rank in of_query.items() if rank <= TOP)
    judged = known.grades.get(query, {})
    below = [p for p, grade in judged.items() if grade >= known.level and p not in first]
    best = {p: min((of_query[p] for of_query in ranks if p in of_query), default=np.inf) for p in below}
    return [*first, *sorted(below, key=lambda p: (-judged[p], best[p], p))[:_BELOW]]


def _ranking(ranks: Mapping[str, int], named: Sequence[str], numbers: _Numbers) -> list[list[int]]:
    """The first passages in their order; and, of others that are shown, passage and rank by turns."""
    ordered = sorted(((p, ranks[p]) for p in named if p in ranks), key=lambda item: item[1])
    below = [n for passage, rank in ordered if rank > TOP for n in (numbers.of(passage), rank)]
    return [[numbers.of(passage) for passage, rank in ordered if rank <= TOP], below]


def _pair(part: Measured, arm: str, base: str, which: str) -> _Pair:
    """The first run of an arm, beside its own base, the named base's run of that seed, or that one's first."""
    if base == BASE:
        run = part.runs[arm][0]
        values = np.stack([part.before[arm][0], part.values[arm][0]])
        return _Pair(_seed(run, len(part.runs[arm])), values, ((run, "base"), (run, which)))
    if arm in part.bases:
        values = np.stack([part.values[base][0], part.values[arm][0]])
        seed = _seed(part.runs[base][0], len(part.runs[base]))
        return _Pair(seed, values, ((part.runs[base][0], which), (part.bases[arm], "base")))
    shared = part.shared_seeds(arm, base)
    ours, theirs = (part.seeds[name].index(shared[0]) if shared else 0 for name in (arm, base))
    seed = _seed(part.runs[arm][ours], max(len(part.runs[arm]), len(part.runs[base])))
    values = np.stack([part.values[base][theirs], part.values[arm][ours]])
    return _Pair(seed, values, ((part.runs[base][theirs], which), (part.runs[arm][ours], which)))


def _seed(run: Run, runs: int) -> int | None:
    return run.seed if runs > 1 else None


def _rounded(values: Any) -> list[list[float]]:
    return np.round(np.asarray(values, dtype=float), 4).tolist()
