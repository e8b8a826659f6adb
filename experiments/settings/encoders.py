"""The encoders that a configuration names: what presets and files add to their settings."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from experiments.settings.walk import rebuilt
from retriever.cross_encoder.spec import PairSpec
from retriever.encoder.outline import EncoderOutline
from retriever.encoder.sentence_transformers_layout import read_spec
from retriever.encoder.spec import EncoderSpec
from retriever.pretrained.preset import with_preset

# what a function that takes **spec takes with it
SPECS: dict[str, type[EncoderSpec | PairSpec]] = {
    "retriever.encoder.TextEncoder.from_pretrained": EncoderSpec,
    "retriever.cross_encoder.CrossEncoder.from_pretrained": PairSpec,
}


def outline(encoder: dict[str, Any]) -> EncoderOutline | None:
    """Describe an encoder by its settings, as far as these say; None for one of a class of the user's.

    Raises:
        InputError: a field or the preset is wrong, or two of them contradict each other.
    """
    kind = SPECS.get(encoder["_target_"])
    if kind is None:
        return None
    spec = kind(**_stated(encoder, kind)[0])
    return EncoderOutline(spec, encoder["model"], getattr(spec, "truncate_dim", None))


def with_effective_encoders(config: Any) -> Any:
    """Give every encoder in a configuration, of plain containers, the values that it has in effect.

    Presets are folded in, and so is what the files of a model folder say, so that two ways to say one thing are one.
    Of ``preset``, the package with the weights is left. What only the files of a model elsewhere say stays null.
    """
    return rebuilt(config, _with_effective)


def _with_effective(config: Any, name: str) -> Any:
    kind = SPECS.get(str(config.get("_target_"))) if isinstance(config, dict) else None
    if kind is None or not isinstance(config.get("model"), str):
        return config
    try:
        stated, packaged = _stated(config, kind)
        is_whole = kind is PairSpec or Path(config["model"]).expanduser().is_dir()
    except (TypeError, ValueError):  # a damaged folder, record or preset, which loading it tells of
        return config
    defaults = {field.name: field.default for field in fields(kind)} if is_whole else {}
    return config | {"preset": packaged} | defaults | stated


def _stated(encoder: dict[str, Any], kind: type[EncoderSpec | PairSpec]) -> tuple[dict[str, Any], Any]:
    """Field → value of what settings, preset and a model folder's files state; and the package with the weights."""
    names = [field.name for field in fields(kind)]
    asked, packaged = with_preset(
        encoder["model"], encoder.get("preset"), {name: encoder.get(name) for name in names}, names
    )
    folder = Path(encoder["model"]).expanduser()
    of_files = read_spec(folder) if kind is EncoderSpec and folder.is_dir() else {}
    return {name: value for name, value in of_files.items() if name in names} | asked, packaged
