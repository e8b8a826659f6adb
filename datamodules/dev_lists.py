"""Dev lists where no file of them is named: those beside lists that are split already, or a share of them."""

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from datamodules.corpus import Corpus
from datamodules.query_lists import QueryLists, read_metadata, read_query_lists
from datamodules.query_lists.plain_texts import SUFFIX
from datamodules.specs import ListFile
from datamodules.splits import lowest_in_dev, rows_in_dev
from datamodules.storage.files import is_file
from retriever.errors import InputError

log = logging.getLogger(__name__)
DEV_FRACTION = 0.1
Part: TypeAlias = tuple[ListFile, Corpus, QueryLists]  # a file of lists: what is said of it, its corpus, its lists
_TRAIN = re.compile(r"(?:^|(?<=[._-]))train(?=[._-])")


def check_dev_fraction(fraction: float | None) -> None:
    """Refuse a share of dev lists that leaves none for train, or none for dev."""
    if fraction is not None and not 0 < fraction < 1:
        raise InputError(
            f"data.dev_fraction is {fraction}; without data.dev it must be above 0 and below 1: settings and "
            "checkpoints are chosen on dev lists."
        )


def choose_dev(
    train: list[Part], fraction: float | None, open_part: Callable[[ListFile], Part]
) -> tuple[list[Part], list[Part]]:
    """Divide train lists into train and dev, by source passage.

    Stage split of ``prepare`` divides lists by the same hash, so that none of its train lists would fall to dev again.
    Of these, the dev file beside is taken, where its share is the one asked for; else the lists whose hashes are the
    lowest of those that are left. Each of this is said on one line.

    Args:
        train: files of lists.
        fraction: share of dev; None takes the dev file beside lists that are split already, whatever its share, and
            a tenth of others.
        open_part: opens a file of lists by its specification.

    Returns:
        Train and dev; either may have no list.
    """
    kept: list[Part] = []
    dev: dict[Path, Part] = {}
    again: dict[str, list[Part]] = {}
    trained_on = {lists.source.resolve() for *_, lists in train}
    for number, (spec, corpus, lists) in enumerate(train):
        labelled = lists.positive_rows, lists.positive_offsets, corpus.ids
        inside = rows_in_dev(*labelled, fraction or DEV_FRACTION)
        if not len(lists.positive_rows) or not _is_split(lists, labelled, inside):
            kept.append((spec, corpus, lists.select(~inside)))
            dev[Path(f"{number}")] = (spec, corpus, lists.select(inside))
            continue
        beside = dev_file_beside(lists.source)
        share = lists.metadata.get("dev_fraction", fraction)
        if beside is None or beside.resolve() in trained_on or fraction not in (None, share):
            again.setdefault(corpus.name, []).append((spec, corpus, lists))
            continue
        kept.append((spec, corpus, lists))
        if beside not in dev:
            weight = 1.0 if isinstance(spec.weight, Mapping) else spec.weight
            dev[beside] = open_part(ListFile(str(beside), spec.corpus, weight))
            log.info(
                "%s is split already, and data.dev is null: its dev lists are the %d of %s",
                lists.source,
                len(dev[beside][2]),
                beside,
            )
    halves = [_split_again(parts, fraction or DEV_FRACTION) for parts in again.values()]
    train = kept + [part for half, _ in halves for part in half]
    found = [*dev.values(), *(part for _, half in halves for part in half)]
    return [part for part in train if len(part[2])], [part for part in found if len(part[2])]


def dev_file_beside(path: Path) -> Path | None:
    """The file of dev lists that stage split wrote with a file of train lists; None where there is none.

    It is called as the train file is, with ``dev`` for ``train``, or says in its metadata that it comes from the same
    work.
    """
    if path.suffix == SUFFIX:  # plain texts
        return None
    about = read_metadata(path)
    named = path.with_name(_TRAIN.sub("dev", path.name))
    if named != path and is_file(named) and _part_of(named, about) in (None, "dev") and _has_lists(named):
        return named
    if about.get("split") != "train":
        return None
    wanted = {**about, "split": "dev"}
    others = (other for other in sorted(path.parent.glob(f"*{path.suffix}")) if other != path)
    return next((other for other in others if _about(other) == wanted and _has_lists(other)), None)


def why_none(train: list[Part], fraction: float | None) -> str:
    """Why no dev list could be split off these files, and what to do."""
    count = sum(int((np.diff(lists.positive_offsets) > 0).sum()) for _, _, lists in train)
    if not count:
        return (
            "No list has positive_ids, so none can be split off by its source passage: name a file of dev lists in "
            "data.dev."
        )
    least = min(np.ceil(100 / count) / 100, 0.5)
    return (
        f"{fraction or DEV_FRACTION:g} of {count} lists with positive_ids is none, or all of them share their "
        f"positives: say data.dev_fraction={least:g}, or name a file of dev lists in data.dev."
    )


def _is_split(lists: QueryLists, labelled: tuple[np.ndarray, np.ndarray, Any], inside: np.ndarray) -> bool:
    """Whether lists are a part of what stage split has divided, by what they say and by their hashes."""
    share = lists.metadata.get("dev_fraction")
    if lists.metadata.get("split") != "train" or not isinstance(share, float | int) or not 0 < share < 1:
        return bool(inside.all() or not inside.any())
    # judgements that are not in the file bind passages together, which moves a few lists to the other side; and train
    # and dev lists that were put together keep the metadata of the first
    return bool(rows_in_dev(*labelled, share).mean() <= share / 2)


def _split_again(parts: list[Part], fraction: float) -> tuple[list[Part], list[Part]]:
    """Train and dev of files of one corpus, together, so that a source passage is on one side."""
    rows = np.concatenate([lists.positive_rows for *_, lists in parts])
    offsets = np.concatenate([[0], *(np.diff(lists.positive_offsets) for *_, lists in parts)]).cumsum()
    inside = lowest_in_dev(rows, offsets, parts[0][1].ids, fraction)
    trained_on = {lists.source.resolve() for *_, lists in parts}
    masks = np.split(inside, np.cumsum([len(lists) for *_, lists in parts])[:-1])
    for (_, _, lists), mask in zip(parts, masks, strict=True):
        log.warning(
            "%s is split already, or short: %g of its %d lists, %d, are the dev lists, by the hashes that are left; %s",
            lists.source,
            fraction,
            len(lists),
            mask.sum(),
            f"{beside} has dev lists, and data.dev_fraction=null takes them"
            if (beside := dev_file_beside(lists.source)) and beside.resolve() not in trained_on
            else "to choose by others, name their file in data.dev",
        )
    train = [(spec, corpus, lists.select(~mask)) for (spec, corpus, lists), mask in zip(parts, masks, strict=True)]
    dev = [(spec, corpus, lists.select(mask)) for (spec, corpus, lists), mask in zip(parts, masks, strict=True)]
    return train, dev


def _part_of(path: Path, about: Mapping[str, Any]) -> str | None:
    """Which part a file says that it is; ``other`` where it is of another corpus or group."""
    found = _about(path)
    same = all(found[key] == about[key] for key in ("corpus", "group") if key in found and key in about)
    return found.get("split") if same else "other"


def _about(path: Path) -> dict[str, Any]:
    try:
        return read_metadata(path)
    except InputError:  # a file of something else
        return {}


def _has_lists(path: Path) -> bool:
    return next(read_query_lists(path), None) is not None
