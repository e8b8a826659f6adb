"""Two ways to say how an encoder reads texts are one, wherever configurations are compared."""

import pytest

from experiments.settings.encoders import outline, with_effective_encoders
from retriever.encoder.spec import EncoderSpec
from retriever.errors import InputError

TEXT = "retriever.encoder.TextEncoder.from_pretrained"
PAIR = "retriever.cross_encoder.CrossEncoder.from_pretrained"


def encoder(**settings):
    """An encoder's settings; those that are not given are null."""
    stated = dict.fromkeys(("preset", "revision", *EncoderSpec.__dataclass_fields__))
    return {"_target_": TEXT, "model": "some/model", **stated, **settings}


def test_a_preset_and_what_it_states_are_one_thing():
    plain = encoder(pooling="cls", query_prompt="query: ")
    preset = encoder(preset={"model": "some/model", "pooling": "cls", "query_prompt": "query: "})
    assert with_effective_encoders(preset) == plain
    assert with_effective_encoders({"evaluation": {"dense": [preset]}}) == {"evaluation": {"dense": [plain]}}
    typed_over = with_effective_encoders(preset | {"pooling": "mean"})
    assert typed_over == plain | {"pooling": "mean"}
    others = encoder(preset={"model": "other/model", "pooling": "cls"})
    assert with_effective_encoders(others) == encoder(), "a preset counts for its own model alone"
    packaged = {"distribution": "d", "folder": "f", "sha256": "0"}
    with_weights = encoder(preset={"model": "some/model", "packaged": packaged})
    assert with_effective_encoders(with_weights)["preset"] == packaged, "it says which weights"


def test_what_a_folder_says_is_in_effect_and_what_the_hub_says_is_not_known(tiny_encoder, tmp_path):
    tiny_encoder.save(tmp_path / "model")
    effective = with_effective_encoders(encoder(model=str(tmp_path / "model")))
    assert {name: effective[name] for name in ("pooling", "normalize", "passage_max_length")} == {
        name: getattr(tiny_encoder.spec, name) for name in ("pooling", "normalize", "passage_max_length")
    }
    assert with_effective_encoders(encoder())["pooling"] is None
    cross = {"_target_": PAIR, "model": "some/model", "preset": None, "query_max_length": None}
    assert with_effective_encoders(cross)["query_max_length"] == 64


def test_what_is_wrong_is_for_the_loading_to_say():
    wrong = encoder(preset={"model": "some/model", "poolin": "cls"})
    assert with_effective_encoders(wrong) == wrong
    with pytest.raises(InputError, match=r"a key of encoder\.preset is 'poolin'.*Did you mean 'pooling'"):
        outline(wrong)


def test_an_outline_is_what_the_settings_say():
    found = outline(encoder(truncate_dim=32, pooling="last"))
    assert (found.spec.pooling, found.dimension, found.name) == ("last", 32, "some/model")
    assert outline(encoder()).dimension is None and outline({"_target_": "own.Encoder"}) is None
    with pytest.raises(InputError, match=r"encoder\.query_max_length is 2"):
        outline(encoder(query_max_length=2))
