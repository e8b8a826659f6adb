"""Encoders beside the one that is trained: a guide, by its settings, and what encodes passages."""

import inspect
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from retriever.batch import BatchNeeds
from retriever.encoder.spec import EncoderSpec
from retriever.encoder.text_encoder import TextEncoder
from retriever.errors import InputError, choose

_TARGET = "retriever.encoder.TextEncoder.from_pretrained"


def guide_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Check ``data.guide``, and give the arguments of :meth:`TextEncoder.from_pretrained` in it.

    Raises:
        InputError: it is no encoder of single texts; an unknown name; no model; a wrong pooling, prompt or length.
    """
    if (target := given.get("_target_", _TARGET)) != _TARGET:
        raise InputError(
            f"data.guide._target_ is {target}; a guide encodes single texts, by {_TARGET}. Name a preset of these, as "
            "+encoder@data.guide=minilm."
        )
    arguments = {name: value for name, value in given.items() if not str(name).startswith("_")}
    of_spec = {field.name for field in fields(EncoderSpec)}
    known = [*(name for name in inspect.signature(TextEncoder.from_pretrained).parameters if name != "spec"), *of_spec]
    for name in arguments:
        choose("data.guide: the setting", name, sorted(known))
    if not arguments.get("model"):
        raise InputError("data.guide names no model; say data.guide.model, or null for the model before training.")
    try:
        EncoderSpec(**{name: arguments[name] for name in of_spec if arguments.get(name) is not None})
    except InputError as error:
        raise InputError(str(error).replace("encoder.", "data.guide.", 1)) from error
    return arguments


def check_passage_encoder(encoder: TextEncoder, passages: TextEncoder, needs: BatchNeeds) -> None:
    """Refuse a passage encoder whose embeddings no objective compares with the queries'.

    Raises:
        InputError: passages are trained, or the widths differ.
    """
    if not needs.frozen_passages:
        raise InputError(
            f"Passages are encoded by {passages.name}, which is not trained: say module.train_passage_encoder=false."
        )
    if encoder.dimension != passages.dimension:
        raise InputError(
            f"{encoder.name} gives {encoder.dimension} dimensions, and {passages.name}, which encodes the passages, "
            f"{passages.dimension}. Project the queries: retriever.encoder.projection.project(encoder, "
            f"{passages.dimension})."
        )
