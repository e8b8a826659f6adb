"""Presets: what is known of how a model is used."""

from collections.abc import Iterable, Mapping
from typing import Any

from retriever.errors import InputError, choose, shown


def with_preset(
    model: str,
    preset: Mapping[str, Any] | None,
    stated: Mapping[str, Any],
    fields: Iterable[str],
    group: str = "encoder",
) -> tuple[dict[str, Any], Mapping[str, str] | None]:
    """Add what a preset knows of a model to what the user states.

    Args:
        model: the model that the user names.
        preset: ``model``, the name that it is about; ``packaged``, a package with its weights; and fields.
        stated: field → value; None where the user states nothing.
        fields: those that a preset may have.
        group: of the settings, for messages.

    Returns:
        Field → value, of those that have one; and the package with the weights. A preset counts where ``model`` is the
        name that it is about, and the user's values win over it.

    Raises:
        InputError: a preset without a model, or with a key that is no field.
    """
    known = dict(preset or {})
    for key in known:
        choose(f"a key of {group}.preset", key, ("model", "packaged", *fields))
    if known and not isinstance(known.get("model"), str):
        raise InputError(
            f"{group}.preset.model is {shown(known.get('model'))}; it must be the name of the model that the preset is "
            "about."
        )
    values = {name: value for name, value in stated.items() if value is not None}
    if known.pop("model", None) != model:
        return values, None
    packaged = known.pop("packaged", None)
    return {name: value for name, value in known.items() if value is not None} | values, packaged
