"""What a class takes, by its source: the same as by the class itself, or nothing is said."""

import re
import sys
from typing import Any

import pytest
from hydra.utils import get_object

from experiments.cli.signatures import of_object, of_source
from experiments.conf import CONF

FILES = sorted(CONF.rglob("*.yaml"))
TARGETS = sorted({name for file in FILES for name in re.findall(r"_target_: ([\w.]+)", file.read_text())})
OTHERS = {"my_metrics.Mine", "my_rankers.Mine"}  # a user's, in comments
UNCLEAR = {"optuna.samplers.TPESampler"}  # a decorator of Optuna's own
OURS = """
from abc import ABC
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, ClassVar, Generic, Literal, TypeVar, overload

import lightning as L

import elsewhere
from elsewhere import Base as Other
from .beside import Near

if TYPE_CHECKING:
    from nowhere import Thing

Item = TypeVar("Item")


class Plain(Other):
    pass


class HandsOn(Other):
    def __init__(self, own: int | None, *, side: Literal["left", "right"] = "left", **others):
        super().__init__(**others)


class Dotted(elsewhere.Base): ...


class Beside(Near): ...


class Of(ABC, Generic[Item]):
    def __init__(self, item: "Item", names: list[str] = ()): ...


@dataclass(frozen=True)
class Fields(L.Callback):
    first: str
    _: KW_ONLY
    second: float | None = None
    count: ClassVar[int] = 0
    made: int = field(init=False, default=0)


@dataclass(frozen=True)
class MoreFields(Fields):
    third: int = 3


class Without: ...


class Made:
    @classmethod
    def load(cls, path: str, *, strict: bool = True, **spec): ...


def function(a, b=1, *rest, c: dict[str, int] | None = None): ...


def wrapped(f):
    return lambda *a: f(*a)


@wrapped
def decorated(a): ...


class TwoBases(Near, Other):
    def __init__(self, x: int, **others): ...


if len("x"):
    class Twice:
        def __init__(self, a): ...
else:
    class Twice:
        def __init__(self, b): ...


class Computed(type("Base", (), {})): ...


class WithNew:
    def __new__(cls, *args, **options):
        return super().__new__(cls)


again = Plain
"""
SAID = [
    "Plain", "HandsOn", "Dotted", "Beside", "Of", "Fields", "MoreFields", "Without", "Made.load", "function",
]  # fmt: skip
NOT_SAID = ["decorated", "Twice", "Computed", "WithNew", "again", "missing", "Made.missing"]


def assert_same(target):
    by_source, by_object = of_source(target), of_object(get_object(target))
    assert by_source is not None
    assert (by_source.name, sorted(by_source.parameters)) == (by_object.name, sorted(by_object.parameters))
    assert by_source.is_open == by_object.is_open
    for name, annotation in by_source.parameters.items():
        assert annotation is Any or by_object.parameters[name] in (annotation, Any), name


@pytest.mark.parametrize("target", [target for target in TARGETS if target not in OTHERS | UNCLEAR])
def test_every_target_of_the_configuration_is_read_as_it_is(target):
    assert_same(target)


def test_annotations_of_plain_types_are_read():
    trainer, data = of_source("lightning.Trainer"), of_source("datamodules.QueryListDataModule")
    assert trainer is not None and data is not None
    assert trainer.parameters["max_epochs"] == int | None and data.parameters["list_length"] is int
    assert data.parameters["leak_near_passages"] == float | None


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    package = tmp_path / "package_to_read"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "module.py").write_text(OURS)
    (package / "beside.py").write_text("class Near:\n    def __init__(self, near: bool = True): ...\n")
    (tmp_path / "elsewhere.py").write_text("class Base:\n    def __init__(self, b: str, c: float = 1.0): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "package_to_read.module"
    for name in ("package_to_read", "package_to_read.module", "package_to_read.beside", "elsewhere"):
        sys.modules.pop(name, None)


def test_classes_and_functions_of_a_user(own_module):
    for name in SAID:
        assert_same(f"{own_module}.{name}")
    for name in NOT_SAID:
        assert of_source(f"{own_module}.{name}") is None
    assert of_source("nowhere.at.All") is None


def test_only_our_constructors_hand_on(own_module):
    signature = of_source(f"{own_module}.HandsOn")
    assert signature is not None and signature.is_open
    assert list(signature.parameters) == ["own", "side"]
