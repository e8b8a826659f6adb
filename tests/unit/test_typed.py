"""A mapping is read as a dataclass; what is wrong in it is one sentence with the key, the value and what it may be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from omegaconf import OmegaConf

from retriever.errors import InputError
from retriever.typed import accepts, read_settings


@dataclass(frozen=True)
class Inner:
    size: int
    share: float = 0.5


@dataclass(frozen=True)
class Outer:
    name: str
    folder: Path
    seed: int = 1
    rate: float = 0.1
    mode: Literal["min", "max"] = "min"
    modes: Sequence[Literal["min", "max"]] = ()
    switch: bool = True
    tags: Sequence[str] = ()
    weights: float | Mapping[str, float] = 1.0
    inner: Inner | None = None
    several: Sequence[Inner] = field(default_factory=list)

    def __post_init__(self):
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}; it must be at least 0.")


WHOLE = {"name": "a", "folder": "x"}


def test_values_defaults_and_mappings_inside_are_read():
    given = {
        **WHOLE,
        "rate": 1,
        "tags": ["b", "c"],
        "weights": {"human": 2},
        "inner": {"size": 3},
        "several": [{"size": 1}, {"size": 2, "share": 1}],
    }
    for value in (given, OmegaConf.create(given)):
        read = read_settings(Outer, value, "section")
        assert read.seed == 1 and read.rate == 1 and read.mode == "min"
        assert read.inner == Inner(3) and read.several == [Inner(1), Inner(2, 1)]
        assert type(read.tags) is list and type(read.weights) is dict, "OmegaConf's containers are not passed on"
    assert read_settings(Outer, read, "section") is read


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nam": "a"}, "section: 'nam' is no setting here; there are name, folder, .*Did you mean 'name'?"),
        ({"name": 3}, "section.name is 3; it must be text. For the text '3' quote it twice"),
        ({"tags": [True]}, r"section.tags is \[True\]; it must be a list, each of it text. For the text 'True'"),
        ({"tags": "b"}, "section.tags is 'b'; it must be a list, each of it text."),
        ({"folder": 3}, "section.folder is 3; it must be text. For the text '3'"),
        ({"seed": True}, "section.seed is True; it must be a whole number.$"),
        ({"seed": "two"}, "section.seed is 'two'; it must be a whole number.$"),
        ({"rate": None}, "section.rate is None; it must be a number.$"),
        ({"switch": "yes"}, "section.switch is 'yes'; it must be true or false.$"),
        ({"mode": "mix"}, r"section.mode is 'mix'; it must be 'min' or 'max' \(did you mean 'min'\?\)"),
        ({"modes": ["min", "mex"]}, r"section.modes is .*; it must be a list, .* 'max' \(did you mean 'm"),
        ({"weights": "x"}, "section.weights is 'x'; it must be a number or a mapping.$"),
        ({"seed": -1}, "section.seed is -1; it must be at least 0."),
        ({"inner": 3}, "section.inner is 3; it must be a mapping with size or null."),
        ({"inner": {}}, "section.inner: size is missing; it must have size."),
        ({"inner": {"size": 1.5}}, "section.inner.size is 1.5; it must be a whole number."),
        ({"inner": {"size": 1, "shar": 1}}, "section.inner: 'shar' is no setting here.*Did you mean 'share'?"),
        ({"several": [{"size": 1}, {"size": "x"}]}, r"section.several\[1\].size is 'x'; it must be a whole number."),
    ],
)
def test_what_is_wrong_is_named(change, message):
    with pytest.raises(InputError, match=f"^{message.replace('?', r'[?]') if message.endswith('?') else message}"):
        read_settings(Outer, WHOLE | change, "section")


def test_what_is_missing_and_what_is_no_mapping_are_named():
    with pytest.raises(InputError, match="section: folder is missing; it must have name and folder"):
        read_settings(Outer, {"name": "a"}, "section")
    with pytest.raises(InputError, match="section is 'a'; it must be a mapping with name and folder"):
        read_settings(Outer, "a", "section")


def test_settings_at_the_top_have_no_place_before_their_names():
    for change, message in [({"seed": 1.5}, "seed is 1.5"), ({"seed": -1}, "seed is -1"), ({"x": 1}, "'x' is no")]:
        with pytest.raises(InputError, match=f"^{message}"):
            read_settings(Outer, WHOLE | change, "")


def test_what_no_annotation_restricts_fits():
    assert accepts(object, {"a": [1]}) and accepts(Mapping | None, {"a": 1}) and not accepts(Sequence[str], [1])
    assert accepts(Inner, {"_target_": "any.class"}) and accepts(Path, Path()) and not accepts(str, Path())
