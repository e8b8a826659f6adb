"""Texts that nest too deep for the parser in C are parsed in Python, which says so."""

import pytest
import yaml

from datamodules.storage.yaml_files import read_yaml
from experiments.cli.quick_hydra import start_quickly
from experiments.cli.yaml_in_c import may_be_parsed_in_c, safe_loader
from retriever.errors import InputError

DEEP = ["[" * 100_000, "{a: " * 100_000, "- " * 100_000, "? " * 100_000, b"[" * 100_000]
DEEP.append("\n".join(" " * level + "a:" for level in range(5_100)))


@pytest.mark.parametrize("text", DEEP, ids=range(len(DEEP)))
def test_deep_texts_are_left_to_python(text):
    assert not may_be_parsed_in_c(text) and safe_loader(text) is yaml.SafeLoader


def test_a_configuration_is_parsed_in_c():
    text = "a: [1, {b: c}]\nlist:\n- x-y\n" * 100
    assert may_be_parsed_in_c(text) == yaml.__with_libyaml__
    assert safe_loader(text) is (yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader)


def test_a_deep_file_is_an_error_and_does_not_end_the_process(tmp_path):
    start_quickly()
    (tmp_path / "deep.yaml").write_text("a: " + "[" * 100_000)
    with pytest.raises(InputError, match=r"deep\.yaml: not YAML .*Mend it"):
        read_yaml(tmp_path / "deep.yaml", "Mend it.")
